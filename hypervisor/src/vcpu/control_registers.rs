//! What a guest may write to CR0, CR4 and EFER, and what follows from it: pure rules (SDM
//! vol. 3A, 2.5 and 4.1; vol. 3C, 25.6.6).
#![forbid(unsafe_code)]

use arch::{Cr0Flags, Cr4Flags, EferFlags, GeneralProtection};

const CR0_PE: u64 = Cr0Flags::PROTECTED_MODE_ENABLE.bits();
const CR0_ET: u64 = Cr0Flags::EXTENSION_TYPE.bits();
const CR0_NE: u64 = Cr0Flags::NUMERIC_ERROR.bits();
const CR0_NW: u64 = Cr0Flags::NOT_WRITE_THROUGH.bits();
const CR0_CD: u64 = Cr0Flags::CACHE_DISABLE.bits();
const CR0_PG: u64 = Cr0Flags::PAGING.bits();
const CR4_PAE: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits();
const CR4_PCIDE: u64 = Cr4Flags::PCID.bits();
const EFER_LME: u64 = EferFlags::LONG_MODE_ENABLE.bits();
const EFER_LMA: u64 = EferFlags::LONG_MODE_ACTIVE.bits();

/// CR0 bits that the guest does not own: the one that VMX fixes; the cache controls, which
/// would slow the whole machine; and ET, which a processor keeps at one, but KVM shows to a
/// guest's guest as it was last written.
pub(crate) const CR0_HOST_OWNED: u64 = CR0_NE | CR0_NW | CR0_CD | CR0_ET;
/// The values of the bits in [`CR0_HOST_OWNED`].
pub(crate) const CR0_HOST_VALUE: u64 = CR0_NE | CR0_ET;

/// A CR0 that may be written, and what the write makes of EFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cr0Write {
    /// The CR0 that the guest reads back.
    pub visible: u64,
    /// The CR0 that the processor holds.
    pub real: u64,
    /// The new EFER: turning paging on and off with EFER.LME set switches LMA.
    pub efer: u64,
    /// Whether the PDPTEs are to be loaded from memory.
    pub loads_pdptes: bool,
}

/// The state that a write to CR0 is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cr0Context {
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS.L.
    pub cs_long: bool,
    /// Whether TR holds a TSS of 16 bits.
    pub tr_16_bit: bool,
}

/// Checks MOV to CR0 of `value`.
///
/// # Errors
/// If the processor would raise #GP(0).
pub(crate) fn write_cr0(value: u64, context: &Cr0Context) -> Result<Cr0Write, GeneralProtection> {
    let Cr0Context {
        cr0,
        cr4,
        efer,
        cs_long,
        tr_16_bit,
    } = *context;
    if value >> 32 != 0 {
        return Err(GeneralProtection);
    }
    // Undefined bits of the low half are ignored, and ET is always one.
    let visible = value & Cr0Flags::all().bits() | CR0_ET;
    if visible & CR0_PG != 0 && visible & CR0_PE == 0 {
        return Err(GeneralProtection);
    }
    if visible & CR0_NW != 0 && visible & CR0_CD == 0 {
        return Err(GeneralProtection);
    }
    let mut new_efer = efer;
    let paging_on = visible & CR0_PG != 0;
    if paging_on && cr0 & CR0_PG == 0 && efer & EFER_LME != 0 {
        // The page of MOV to CRn, SDM vol. 2B.
        if cr4 & CR4_PAE == 0 || cs_long || tr_16_bit {
            return Err(GeneralProtection);
        }
        new_efer |= EFER_LMA;
    }
    if !paging_on && cr0 & CR0_PG != 0 {
        if cr4 & CR4_PCIDE != 0 || (efer & EFER_LMA != 0 && cs_long) {
            return Err(GeneralProtection);
        }
        new_efer &= !EFER_LMA;
    }
    // SDM vol. 3A, 4.4.1: PDPTEs are loaded if this write could change paging under PAE.
    let pae = paging_on && cr4 & CR4_PAE != 0 && new_efer & EFER_LMA == 0;
    let loads_pdptes = pae && (cr0 ^ visible) & (CR0_PG | CR0_CD | CR0_NW) != 0;
    Ok(Cr0Write {
        visible,
        real: visible & !CR0_HOST_OWNED | CR0_HOST_VALUE,
        efer: new_efer,
        loads_pdptes,
    })
}

/// Returns `cr0` after LMSW of `value`: PE, MP, EM and TS are loaded, but PE is not cleared (SDM vol. 2A, LMSW).
pub(crate) const fn with_machine_status(cr0: u64, value: u16) -> u64 {
    cr0 & !0xe | value as u64 & 0xf
}

/// Checks WRMSR to EFER of `value`, and returns the new EFER, keeping LMA.
///
/// # Errors
/// If the processor would raise #GP(0): a bit outside `allowed`, or LME changed with paging
/// on.
pub(crate) const fn write_efer(
    value: u64,
    efer: u64,
    cr0: u64,
    allowed: u64,
) -> Result<u64, GeneralProtection> {
    if value & !(allowed | EFER_LMA) != 0 {
        return Err(GeneralProtection);
    }
    if (value ^ efer) & EFER_LME != 0 && cr0 & CR0_PG != 0 {
        return Err(GeneralProtection);
    }
    Ok(value & !EFER_LMA | efer & EFER_LMA)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNPAGED: Cr0Context = Cr0Context {
        cr0: CR0_PE | CR0_ET,
        cr4: CR4_PAE,
        efer: 0,
        cs_long: false,
        tr_16_bit: false,
    };
    const LONG: Cr0Context = Cr0Context {
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        cs_long: true,
        tr_16_bit: false,
    };

    #[test]
    fn paging_with_lme_activates_long_mode_and_without_it_deactivates() {
        let context = Cr0Context {
            efer: EFER_LME,
            ..UNPAGED
        };
        let on = write_cr0(CR0_PE | CR0_PG, &context).unwrap();
        assert_eq!(on.efer, EFER_LME | EFER_LMA);
        assert!(!on.loads_pdptes);
        let context = Cr0Context {
            cs_long: false,
            ..LONG
        };
        assert_eq!(write_cr0(CR0_PE, &context).unwrap().efer, EFER_LME);
    }

    #[test]
    fn illegal_combinations_fault() {
        for (value, context) in [
            (CR0_PG, UNPAGED),
            (CR0_PE | CR0_NW, UNPAGED),
            (1 << 32, UNPAGED),
            (CR0_PE, LONG),
            (
                CR0_PE | CR0_PG,
                Cr0Context {
                    efer: EFER_LME,
                    cr4: 0,
                    ..UNPAGED
                },
            ),
            (
                CR0_PE | CR0_PG,
                Cr0Context {
                    efer: EFER_LME,
                    cs_long: true,
                    ..UNPAGED
                },
            ),
            (
                CR0_PE | CR0_PG,
                Cr0Context {
                    efer: EFER_LME,
                    tr_16_bit: true,
                    ..UNPAGED
                },
            ),
            (
                CR0_PE,
                Cr0Context {
                    cs_long: false,
                    cr4: CR4_PAE | CR4_PCIDE,
                    ..LONG
                },
            ),
        ] {
            assert_eq!(
                write_cr0(value, &context),
                Err(GeneralProtection),
                "{value:#x} in {context:?}"
            );
        }
    }

    #[test]
    fn cache_controls_are_shown_to_the_guest_but_kept_from_the_machine() {
        let write = write_cr0(CR0_PE | CR0_CD | CR0_NW, &UNPAGED).unwrap();
        assert_eq!(write.visible & (CR0_CD | CR0_NW), CR0_CD | CR0_NW);
        assert_eq!(write.real & (CR0_CD | CR0_NW), 0);
        assert_ne!(write.real & CR0_NE, 0);
    }

    #[test]
    fn turning_pae_paging_on_loads_pdptes() {
        assert!(write_cr0(CR0_PE | CR0_PG, &UNPAGED).unwrap().loads_pdptes);
        let paged = Cr0Context {
            cr0: CR0_PE | CR0_ET | CR0_PG,
            ..UNPAGED
        };
        assert!(
            !write_cr0(CR0_PE | CR0_PG | Cr0Flags::TASK_SWITCHED.bits(), &paged)
                .unwrap()
                .loads_pdptes
        );
    }

    #[test]
    fn efer_keeps_lma_and_refuses_lme_under_paging() {
        let allowed = EFER_LME | 1 | 1 << 11;
        assert_eq!(
            write_efer(EFER_LME | 1, EFER_LME | EFER_LMA, CR0_PG, allowed),
            Ok(EFER_LME | EFER_LMA | 1)
        );
        assert_eq!(
            write_efer(0, EFER_LME | EFER_LMA, CR0_PG, allowed),
            Err(GeneralProtection)
        );
        assert_eq!(write_efer(1 << 12, 0, 0, allowed), Err(GeneralProtection));
    }
}
