//! Memory type range registers (SDM vol. 3A, 12.11): state of the guest that it reads back
//! and that has no effect, since EPT says how a guest's RAM is cached.

use arch::GeneralProtection;
use arch::msr::*;

use crate::guest_boot::memory_map::{DEVICE_HOLE_END, DEVICE_HOLE_START};

/// The number of variable ranges, pairs of base and mask.
const VARIABLE: usize = 8;
/// All fixed-range registers.
const FIXED: usize = 11;
/// The value of IA32_MTRRCAP: the number of variable ranges; fixed ranges (bit 8) and write
/// combining (bit 10) are there.
const CAPABILITIES: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;
const ENABLE: u64 = 1 << 11;
const FIXED_ENABLE: u64 = 1 << 10;
const VALID: u64 = 1 << 11;

const UNCACHEABLE: u8 = 0;
const WRITE_BACK: u8 = 6;

/// The MTRRs of a VCPU.
#[derive(Clone, Debug)]
pub(super) struct Mtrrs {
    default_type: u64,
    fixed: [u64; FIXED],
    /// Base and mask of each pair.
    variable: [[u64; 2]; VARIABLE],
    /// The bits from 12 up that a physical address has.
    address_mask: u64,
}

impl Mtrrs {
    /// Sets them as firmware does: all is write-back, but for the legacy video memory and the
    /// device hole.
    pub(super) fn new(physical_address_bits: u32) -> Self {
        // The architecture's bounds: 36 bits with PAE, 52 at most.
        let bits = physical_address_bits.clamp(36, 52);
        let address_mask = (1 << bits) - (1 << 12);
        let of = |kind: u8| u64::from_le_bytes([kind; 8]);
        let mut fixed = [of(WRITE_BACK); FIXED];
        fixed[2] = of(UNCACHEABLE);
        let mut variable = [[0; 2]; VARIABLE];
        let hole_mask = !(DEVICE_HOLE_END - DEVICE_HOLE_START - 1) & address_mask;
        variable[0] = [
            DEVICE_HOLE_START | u64::from(UNCACHEABLE),
            hole_mask | VALID,
        ];
        Self {
            default_type: ENABLE | FIXED_ENABLE | u64::from(WRITE_BACK),
            fixed,
            variable,
            address_mask,
        }
    }

    /// Returns the value of `msr`, if it is one of these.
    pub(super) fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            IA32_MTRRCAP => Some(CAPABILITIES),
            IA32_MTRR_DEF_TYPE => Some(self.default_type),
            _ => fixed_index(msr)
                .and_then(|index| self.fixed.get(index))
                .or_else(|| {
                    let (pair, half) = variable_index(msr)?;
                    self.variable.get(pair)?.get(half)
                })
                .copied(),
        }
    }

    /// Writes `msr`, if it is one of these and takes `value`.
    pub(super) fn write(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        let is_valid;
        let slot;
        if msr == IA32_MTRR_DEF_TYPE {
            is_valid = value & !(ENABLE | FIXED_ENABLE | 0xFF) == 0 && is_type(value as u8);
            slot = Some(&mut self.default_type);
        } else if let Some(index) = fixed_index(msr) {
            is_valid = value.to_le_bytes().into_iter().all(is_type);
            slot = self.fixed.get_mut(index);
        } else if let Some((pair, half)) = variable_index(msr) {
            is_valid = match half {
                0 => value & !(self.address_mask | 0xFF) == 0 && is_type(value as u8),
                _ => value & !(self.address_mask | VALID) == 0,
            };
            slot = self
                .variable
                .get_mut(pair)
                .and_then(|pair| pair.get_mut(half));
        } else {
            return Err(GeneralProtection);
        }
        match slot {
            Some(slot) if is_valid => {
                *slot = value;
                Ok(())
            }
            _ => Err(GeneralProtection),
        }
    }
}

/// Returns whether `byte` is a memory type: UC, WC, WT, WP or WB.
const fn is_type(byte: u8) -> bool {
    matches!(byte, 0 | 1 | 4 | 5 | 6)
}

fn fixed_index(msr: u32) -> Option<usize> {
    match msr {
        IA32_MTRR_FIX64K_00000 => Some(0),
        IA32_MTRR_FIX16K_80000 => Some(1),
        IA32_MTRR_FIX16K_A0000 => Some(2),
        IA32_MTRR_FIX4K_C0000..=IA32_MTRR_FIX4K_F8000 => {
            Some(3 + (msr - IA32_MTRR_FIX4K_C0000) as usize)
        }
        _ => None,
    }
}

/// Returns which pair, and 0 for its base or 1 for its mask.
fn variable_index(msr: u32) -> Option<(usize, usize)> {
    let index = msr.checked_sub(IA32_MTRR_PHYSBASE0)? as usize;
    (index < 2 * VARIABLE).then_some((index / 2, index % 2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn firmware_leaves_ram_write_back_and_devices_uncacheable() {
        let mtrrs = Mtrrs::new(46);
        assert_eq!(mtrrs.read(IA32_MTRR_DEF_TYPE), Some(0xC06));
        assert_eq!(mtrrs.read(IA32_MTRR_PHYSBASE0), Some(0xC000_0000));
        assert_eq!(mtrrs.read(IA32_MTRR_PHYSBASE0 + 1), Some(0x3FFF_C000_0800));
        assert_eq!(mtrrs.read(IA32_MTRR_FIX16K_A0000), Some(0));
        assert_eq!(
            mtrrs.read(IA32_MTRR_FIX4K_F8000),
            Some(0x0606_0606_0606_0606)
        );
        assert_eq!(mtrrs.read(IA32_MTRRCAP), Some(0x508));
    }

    #[test]
    fn reserved_bits_and_types_fault() {
        let mut mtrrs = Mtrrs::new(46);
        for (msr, value) in [
            (IA32_MTRRCAP, 0x508),
            (IA32_MTRR_DEF_TYPE, 0xC02),
            (IA32_MTRR_DEF_TYPE, 1 << 12),
            (IA32_MTRR_DEF_TYPE, 1 << 8),
            (IA32_MTRR_FIX64K_00000, 0x0700_0000_0000_0000),
            (IA32_MTRR_PHYSBASE0, 0x103),
            (IA32_MTRR_PHYSBASE0, 1 << 46),
            (IA32_MTRR_PHYSBASE0 + 1, 1),
            (IA32_MTRR_PHYSBASE0 + 1, 1 << 63),
            (IA32_MTRR_PHYSBASE0 + 2 * VARIABLE as u32, 0),
            (0x251, 0),
        ] {
            let before = mtrrs.read(msr);
            assert_eq!(
                mtrrs.write(msr, value),
                Err(GeneralProtection),
                "{msr:#x} {value:#x}"
            );
            assert_eq!(mtrrs.read(msr), before);
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_read_back(msr in 0xFE_u32..0x300, value: u64) {
            let mut mtrrs = Mtrrs::new(39);
            let before = mtrrs.read(msr);
            match mtrrs.write(msr, value) {
                Ok(()) => prop_assert_eq!(mtrrs.read(msr), Some(value)),
                Err(GeneralProtection) => prop_assert_eq!(mtrrs.read(msr), before),
            }
        }
    }
}
