//! The host's I/O APICs, which tarpit keeps silent but for what it asks for (Intel 82093AA, and ICH's after it).

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
        if registers.read(FIRST_ENTRY + 2 * entry) & NOTHING == 0 {
            open += 1;
        }
        mask_entry(registers, entry);
    }
    open
}

fn mask_entry(registers: &mut impl Registers, entry: u32) {
    let low = FIRST_ENTRY + 2 * entry;
    registers.write(low, NOTHING);
    registers.write(low + 1, 0);
}

/// Masks the input `input` of the I/O APIC at `address` again.
///
/// # Safety
/// As for [`mask_all`]; there is such an input.
pub(crate) unsafe fn mask(address: u64, input: u32) {
    mask_entry(&mut Mapped { address }, input);
}

/// Has the input `input` of the I/O APIC at `address`, active low or high, send an NMI to the CPU with the local APIC
/// `apic_id` at each of its edges. Returns whether there is such an input.
///
/// # Safety
/// As for [`mask_all`]; the CPU handles NMIs.
pub(crate) unsafe fn send_nmi(address: u64, input: u32, is_active_low: bool, apic_id: u8) -> bool {
    route_as_nmi(&mut Mapped { address }, input, is_active_low, apic_id)
}

fn route_as_nmi(
    registers: &mut impl Registers,
    input: u32,
    is_active_low: bool,
    apic_id: u8,
) -> bool {
    if input > registers.read(LAST_ENTRY) >> 16 & 0xff {
        return false;
    }
    let polarity = if is_active_low { ioapic::ACTIVE_LOW } else { 0 };
    let low = FIRST_ENTRY + 2 * input;
    registers.write(low + 1, u32::from(apic_id) << 24);
    registers.write(low, (ioapic::NMI | polarity) as u32);
    true
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

    #[test]
    fn an_input_sends_nmis_to_one_cpu() {
        let mut registers = Fake(std::vec![NOTHING; 0x10 + 2 * 24]);
        registers.0[LAST_ENTRY as usize] = 23 << 16 | 0x20;
        assert!(route_as_nmi(&mut registers, 4, false, 7));
        assert!(route_as_nmi(&mut registers, 9, true, 0));
        assert!(!route_as_nmi(&mut registers, 24, false, 7));
        assert_eq!(registers.0[0x10 + 8..][..2], [4 << 8, 7 << 24]);
        assert_eq!(registers.0[0x10 + 18..][..2], [4 << 8 | 1 << 13, 0]);
        assert_eq!(registers.0[0x10 + 10], NOTHING, "the next one");
        mask_entry(&mut registers, 4);
        assert_eq!(registers.0[0x10 + 8..][..2], [NOTHING, 0]);
    }
}
