//! IA32_APIC_BASE: where the APIC is, and in which mode.

use arch::apic::DEFAULT_ADDRESS;
use arch::paging::PAGE_SIZE;
use arch::{ApicBaseFlags, GeneralProtection};

use super::LocalApic;

/// The mode of a local APIC (SDM vol. 3A, table 11-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Disabled: as if there were none.
    Disabled,
    /// Memory-mapped registers, 8-bit IDs.
    XApic,
    /// Registers as MSRs, 32-bit IDs.
    X2Apic,
}

/// IA32_APIC_BASE (SDM vol. 3A, 11.4.4 and 11.12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicBase(u64);

impl ApicBase {
    const BOOTSTRAP: u64 = ApicBaseFlags::BSP.bits();
    const EXTENDED: u64 = ApicBaseFlags::X2APIC_ENABLE.bits();
    const ENABLED: u64 = ApicBaseFlags::LAPIC_ENABLE.bits();

    /// Returns the value after power-up: enabled in xAPIC mode at the default address.
    #[must_use]
    pub const fn power_up(bootstrap: bool) -> Self {
        let bootstrap = if bootstrap { Self::BOOTSTRAP } else { 0 };
        Self(DEFAULT_ADDRESS | Self::ENABLED | bootstrap)
    }

    /// Returns the MSR's value.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns whether the APIC is enabled at all: CPUID.1:EDX.APIC.
    #[must_use]
    pub const fn is_enabled(self) -> bool {
        self.0 & Self::ENABLED != 0
    }

    /// Returns whether this is the bootstrap processor.
    #[must_use]
    pub const fn is_bootstrap(self) -> bool {
        self.0 & Self::BOOTSTRAP != 0
    }

    /// Returns the guest-physical address of the register page, which means something in xAPIC mode
    /// only.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & !(PAGE_SIZE - 1)
    }

    /// Returns the mode; `None` for the invalid combination of x2APIC mode without enabling.
    const fn checked_mode(self) -> Option<Mode> {
        match (self.0 & Self::ENABLED != 0, self.0 & Self::EXTENDED != 0) {
            (false, false) => Some(Mode::Disabled),
            (true, false) => Some(Mode::XApic),
            (true, true) => Some(Mode::X2Apic),
            (false, true) => None,
        }
    }

    /// Returns the value after a WRMSR of `bits` on a processor with physical addresses of
    /// `address_bits` bits.
    ///
    /// # Errors
    /// For reserved bits, the invalid mode, and the transitions that SDM vol. 3A, figure
    /// 11-27 does not have.
    fn write(self, bits: u64, address_bits: u8) -> Result<(Self, Mode), GeneralProtection> {
        let address = (1u64 << address_bits.min(52)) - PAGE_SIZE;
        if bits & !(address | Self::BOOTSTRAP | Self::EXTENDED | Self::ENABLED) != 0 {
            return Err(GeneralProtection);
        }
        let next = Self(bits);
        let mode = next.checked_mode().ok_or(GeneralProtection)?;
        match (self.checked_mode(), mode) {
            (Some(Mode::X2Apic), Mode::XApic) | (Some(Mode::Disabled), Mode::X2Apic) => {
                Err(GeneralProtection)
            }
            _ => Ok((next, mode)),
        }
    }
}

impl LocalApic {
    /// Returns IA32_APIC_BASE.
    #[must_use]
    pub fn apic_base(&self) -> ApicBase {
        self.base
    }

    /// Returns the mode that [`LocalApic::apic_base`] has set.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes a WRMSR of IA32_APIC_BASE. Disabling stops the timer; the other registers keep their
    /// values, which the SDM leaves open (vol. 3A, 11.4.3). Afterwards the register page may be
    /// somewhere else ([`ApicBase::address`]) and CPUID.1:EDX.APIC different.
    ///
    /// # Errors
    /// For reserved bits, an invalid mode, and an illegal transition; nothing changes then.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let (base, mode) = self.base.write(value, self.config.physical_address_bits)?;
        self.base = base;
        if mode != self.mode {
            self.change_mode(mode);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISABLED: u64 = DEFAULT_ADDRESS;
    const XAPIC: u64 = DISABLED | 0x800;
    const X2APIC: u64 = DISABLED | 0xc00;
    const INVALID: u64 = DISABLED | 0x400;

    #[test]
    fn only_the_transitions_of_the_manual_are_legal() {
        for (from, to, legal) in [
            (DISABLED, DISABLED, true),
            (DISABLED, XAPIC, true),
            (DISABLED, X2APIC, false),
            (DISABLED, INVALID, false),
            (XAPIC, DISABLED, true),
            (XAPIC, XAPIC, true),
            (XAPIC, X2APIC, true),
            (XAPIC, INVALID, false),
            (X2APIC, DISABLED, true),
            (X2APIC, XAPIC, false),
            (X2APIC, X2APIC, true),
            (X2APIC, INVALID, false),
        ] {
            assert_eq!(
                ApicBase(from).write(to, 46).is_ok(),
                legal,
                "{from:#x} to {to:#x}"
            );
        }
    }

    #[test]
    fn reserved_bits_fault() {
        let base = ApicBase::power_up(true);
        assert_eq!(base.bits(), 0xfee0_0900);
        for bit in (0..8).chain([9]).chain(46..64) {
            assert_eq!(
                base.write(XAPIC | 1 << bit, 46),
                Err(GeneralProtection),
                "bit {bit}"
            );
        }
        assert!(base.write(XAPIC | 1 << 45, 46).is_ok());
        assert!(base.write(XAPIC | 1 << 52, 255).is_err());
    }

    #[test]
    fn the_page_can_be_moved() {
        let (moved, mode) = ApicBase::power_up(true).write(0x1234_5900, 46).unwrap();
        assert_eq!(moved.address(), 0x1234_5000);
        assert_eq!(mode, Mode::XApic);
    }
}
