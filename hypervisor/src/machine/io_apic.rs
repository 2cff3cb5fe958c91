//! The host's I/O APICs, which tarpit keeps silent (Intel 82093AA, and ICH's after it).

use arch::ioapic;

/// The index of the version register: its bits 23:16 tell the last entry.
const LAST_ENTRY: u32 = ioapic::VERSION as u32;
/// The index of the low half of the first redirection entry; the high one follows.
const FIRST_ENTRY: u32 = ioapic::ENTRIES as u32;
/// A redirection entry that delivers nothing. Edge-triggered, so that an interrupt of a level that
/// was in service before is forgotten.
const NOTHING: u32 = ioapic::MASKED as u32;

/// The registers of an I/O APIC.
trait Registers {
    fn read(&mut self, index: u32) -> u32;
    fn write(&mut self, index: u32, value: u32);
}

/// Registers in physical memory, mapped one to one: one selects, the other is read and written.
struct Mapped {
    address: u64,
}

impl Mapped {
    fn select(&self, index: u32) {
        // SAFETY: by the contract of `mask_all`; no memory of Rust's.
        unsafe { (self.address as *mut u32).write_volatile(index) };
    }

    const fn window(&self) -> *mut u32 {
        (self.address + 0x10) as *mut u32
    }
}

impl Registers for Mapped {
    fn read(&mut self, index: u32) -> u32 {
        self.select(index);
        // SAFETY: as for selecting.
        unsafe { self.window().read_volatile() }
    }

    fn write(&mut self, index: u32, value: u32) {
        self.select(index);
        // SAFETY: as for selecting.
        unsafe { self.window().write_volatile(value) };
    }
}

/// Masks all inputs of the I/O APIC at `address`. Returns how many were not.
///
/// # Safety
/// There is an I/O APIC, its registers are mapped one to one, and nothing else uses them.
pub(crate) unsafe fn mask_all(address: u64) -> u32 {
    mask_entries(&mut Mapped { address })
}

fn mask_entries(registers: &mut impl Registers) -> u32 {
    let last = registers.read(LAST_ENTRY) >> 16 & 0xff;
    let mut open = 0;
    for entry in 0..=last {
        let low = FIRST_ENTRY + 2 * entry;
        if registers.read(low) & NOTHING == 0 {
            open += 1;
        }
        registers.write(low, NOTHING);
        registers.write(low + 1, 0);
    }
    open
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    struct Fake(Vec<u32>);

    impl Registers for Fake {
        fn read(&mut self, index: u32) -> u32 {
            self.0[index as usize]
        }

        fn write(&mut self, index: u32, value: u32) {
            assert!(index >= FIRST_ENTRY, "register {index}");
            self.0[index as usize] = value;
        }
    }

    #[test]
    fn every_input_is_masked_and_the_open_ones_are_counted() {
        let mut registers = Fake(std::vec![0; 0x10 + 2 * 24]);
        registers.0[LAST_ENTRY as usize] = 23 << 16 | 0x20;
        for entry in 0..24 {
            registers.0[0x10 + 2 * entry] = NOTHING;
        }
        // The PIT's, of an edge, and the last, of a level and in service.
        registers.0[0x10 + 4] = 0x68;
        registers.0[0x10 + 46] = 0xc070;
        registers.0[0x10 + 47] = 3 << 24;
        assert_eq!(mask_entries(&mut registers), 2);
        for entry in 0..24 {
            let halves = &registers.0[0x10 + 2 * entry..][..2];
            assert_eq!(halves, [NOTHING, 0], "entry {entry}");
        }
    }
}
