//! The register page of a local APIC, shared with the virtualization hardware.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use arch::apic::Register;

/// The registers of a local APIC, laid out as the xAPIC's memory-mapped page (SDM vol. 3A,
/// 11.4.1), which is also the layout of the virtual-APIC page of VMX (SDM vol. 3C, 30.1.1).
/// The hypervisor may hand this very page to the hardware.
///
/// Words are atomics, so that other CPUs can look at a running processor's priority; only
/// the owner, or the hardware on its behalf, writes.
#[repr(C, align(4096))]
pub struct ApicPage {
    words: [AtomicU32; 1024],
}

/// One of the three 256-bit vector registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorRegister {
    /// In-service register: vectors being handled.
    Isr,
    /// Trigger-mode register: vectors last accepted as level-triggered.
    Tmr,
    /// Interrupt-request register: vectors accepted and not yet handed to the processor.
    Irr,
}

impl VectorRegister {
    /// Returns the index of word `word` of the register in the page.
    const fn word(self, word: u8) -> usize {
        let base = match self {
            Self::Isr => Register::ISR,
            Self::Tmr => Register::TMR,
            Self::Irr => Register::IRR,
        };
        base.word() + ((word & 7) as usize) * 4
    }
}

impl ApicPage {
    /// Makes a page of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            words: [const { AtomicU32::new(0) }; 1024],
        }
    }

    /// Returns the 32 bits of `register`.
    #[must_use]
    pub fn read(&self, register: Register) -> u32 {
        self.words[register.word()].load(Relaxed)
    }

    /// Sets the 32 bits of `register`.
    pub(super) fn write(&self, register: Register, value: u32) {
        self.words[register.word()].store(value, Relaxed);
    }

    /// Returns word `word` (modulo 8) of a vector register: vectors 32 * `word` and up.
    pub(super) fn vectors(&self, register: VectorRegister, word: u8) -> u32 {
        self.words[register.word(word)].load(Relaxed)
    }

    /// Sets word `word` (modulo 8) of a vector register.
    pub(super) fn set_vectors(&self, register: VectorRegister, word: u8, vectors: u32) {
        self.words[register.word(word)].store(vectors, Relaxed);
    }

    /// Returns whether `vector` is set in `register`.
    #[must_use]
    pub fn has_vector(&self, register: VectorRegister, vector: u8) -> bool {
        self.vectors(register, vector >> 5) & bit(vector) != 0
    }

    /// Returns the highest vector set in `register`, from a look at all of its words.
    #[must_use]
    pub fn highest(&self, register: VectorRegister) -> Option<u8> {
        (0..8u8).rev().find_map(|word| {
            let vectors = self.vectors(register, word);
            (vectors != 0).then(|| (word << 5) | vectors.ilog2() as u8)
        })
    }

    /// Returns all 256 bits of `register`, for the EOI-exit bitmap of VMX, which has the same
    /// layout.
    #[must_use]
    pub fn bitmap(&self, register: VectorRegister) -> [u64; 4] {
        core::array::from_fn(|index| {
            let word = (index as u8) * 2;
            u64::from(self.vectors(register, word))
                | u64::from(self.vectors(register, word + 1)) << 32
        })
    }
}

impl Default for ApicPage {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the bit of `vector` within its word.
pub(super) const fn bit(vector: u8) -> u32 {
    1 << (vector & 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_hardware_page() {
        assert_eq!(size_of::<ApicPage>(), 4096);
        assert_eq!(align_of::<ApicPage>(), 4096);
    }

    #[test]
    fn vector_registers_have_a_word_every_16_bytes() {
        let page = ApicPage::new();
        page.set_vectors(VectorRegister::Irr, 7, bit(0xfe));
        assert_eq!(page.words[0x270 / 4].load(Relaxed), 1 << 30);
        page.set_vectors(VectorRegister::Isr, 1, bit(0x21));
        assert_eq!(page.words[0x110 / 4].load(Relaxed), 2);
        assert!(page.has_vector(VectorRegister::Isr, 0x21));
        assert_eq!(page.highest(VectorRegister::Irr), Some(0xfe));
        assert_eq!(page.highest(VectorRegister::Tmr), None);
        assert_eq!(page.bitmap(VectorRegister::Isr), [1 << 33, 0, 0, 0]);
        assert_eq!(page.bitmap(VectorRegister::Irr), [0, 0, 0, 1 << 62]);
    }
}
