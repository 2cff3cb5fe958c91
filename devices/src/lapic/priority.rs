//! Which interrupt comes next: IRR, ISR, TMR and the processor priority.
//!
//! SDM vol. 3A, 11.8. The registers in the page are the truth; what is kept beside them is
//! a summary of their words that are not zero, so that a look at the highest vector costs a
//! handful of instructions.

use arch::apic::Register;

use super::page::{ApicPage, VectorRegister, bit};

/// The highest vectors that wait and that are handled: one look at all words of the IRR and the ISR,
/// which others than the hardware may keep until they change either. Zero stands for none: no vector
/// below 16 is ever accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Highest {
    /// The highest requested vector: RVI of the guest interrupt status.
    pub requested: u8,
    /// The highest vector in service: SVI of the guest interrupt status.
    pub in_service: u8,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Priority {
    /// Bit `n` is set if word `n` of the IRR is not zero.
    irr_words: u32,
    /// Bit `n` is set if word `n` of the ISR is not zero.
    isr_words: u32,
    /// The hardware moves vectors by itself, so that the summaries are worth nothing.
    hardware_delivers: bool,
    /// Whether the TMR has changed since [`Priority::take_mode_change`].
    modes_changed: bool,
}

impl Priority {
    /// Says whether virtual-interrupt delivery is on.
    pub(super) fn set_hardware_delivers(&mut self, page: &ApicPage, on: bool) {
        self.hardware_delivers = on;
        self.irr_words = summarize(page, VectorRegister::Irr);
        self.isr_words = summarize(page, VectorRegister::Isr);
        self.modes_changed = true;
        self.update(page);
    }

    /// Clears IRR, ISR and TMR.
    pub(super) fn clear(&mut self, page: &ApicPage) {
        for word in 0..8 {
            page.set_vectors(VectorRegister::Irr, word, 0);
            page.set_vectors(VectorRegister::Isr, word, 0);
            page.set_vectors(VectorRegister::Tmr, word, 0);
        }
        self.irr_words = 0;
        self.isr_words = 0;
        self.modes_changed = true;
        self.update(page);
    }

    /// Accepts `vector`.
    #[inline]
    pub(super) fn request(&mut self, page: &ApicPage, vector: u8, level: bool) {
        self.request_word(page, vector >> 5, bit(vector), level);
    }

    /// Accepts the vectors 32 * `word` and up whose bits are set in `vectors`.
    #[inline]
    pub(super) fn request_word(&mut self, page: &ApicPage, word: u8, vectors: u32, level: bool) {
        let requests = page.vectors(VectorRegister::Irr, word);
        page.set_vectors(VectorRegister::Irr, word, requests | vectors);
        self.irr_words |= 1 << word;
        let modes = page.vectors(VectorRegister::Tmr, word);
        let changed = if level {
            modes | vectors
        } else {
            modes & !vectors
        };
        if changed != modes {
            page.set_vectors(VectorRegister::Tmr, word, changed);
            self.modes_changed = true;
        }
    }

    #[inline]
    pub(super) fn highest_request(&self, page: &ApicPage) -> Option<u8> {
        self.highest(page, VectorRegister::Irr, self.irr_words)
    }

    #[inline]
    pub(super) fn highest_in_service(&self, page: &ApicPage) -> Option<u8> {
        self.highest(page, VectorRegister::Isr, self.isr_words)
    }

    /// Returns the highest vectors of the IRR and the ISR.
    #[inline]
    pub(super) fn highest_of_both(&self, page: &ApicPage) -> Highest {
        Highest {
            requested: self.highest_request(page).unwrap_or(0),
            in_service: self.highest_in_service(page).unwrap_or(0),
        }
    }

    /// Returns whether the TMR may have changed since the last call.
    #[inline]
    pub(super) fn take_mode_change(&mut self) -> bool {
        core::mem::take(&mut self.modes_changed)
    }

    #[inline]
    fn highest(&self, page: &ApicPage, register: VectorRegister, words: u32) -> Option<u8> {
        if self.hardware_delivers {
            return page.highest(register);
        }
        let word = words.checked_ilog2()? as u8;
        let vectors = page.vectors(register, word);
        Some((word << 5) | vectors.checked_ilog2()? as u8)
    }

    /// Returns the processor priority: the higher of the task priority and the class in service.
    #[inline]
    pub(super) fn processor_priority(&self, page: &ApicPage) -> u8 {
        let task = page.read(Register::TPR) as u8;
        match self.highest_in_service(page) {
            Some(vector) if vector >> 4 > task >> 4 => vector & 0xf0,
            _ => task,
        }
    }

    /// Brings the PPR in the page up to date.
    #[inline]
    pub(super) fn update(&self, page: &ApicPage) {
        page.write(Register::PPR, u32::from(self.processor_priority(page)));
    }

    /// Returns the vector that the processor would take now.
    #[inline]
    pub(super) fn deliverable(&self, page: &ApicPage) -> Option<u8> {
        Self::deliverable_of(page, self.highest_of_both(page))
    }

    /// Returns the vector that the processor would take now if these are the highest.
    #[inline]
    pub(super) fn deliverable_of(page: &ApicPage, highest: Highest) -> Option<u8> {
        let class = |priority: u8| priority >> 4;
        let task = page.read(Register::TPR) as u8;
        let held_back_by = class(highest.in_service).max(class(task));
        (class(highest.requested) > held_back_by).then_some(highest.requested)
    }

    /// Puts the deliverable vector in service.
    #[inline]
    pub(super) fn acknowledge(&mut self, page: &ApicPage) -> Option<u8> {
        let vector = self.deliverable(page)?;
        let word = vector >> 5;
        let requests = page.vectors(VectorRegister::Irr, word) & !bit(vector);
        page.set_vectors(VectorRegister::Irr, word, requests);
        if requests == 0 {
            self.irr_words &= !(1 << word);
        }
        let services = page.vectors(VectorRegister::Isr, word);
        page.set_vectors(VectorRegister::Isr, word, services | bit(vector));
        self.isr_words |= 1 << word;
        // It was above the processor priority, and so is that now.
        page.write(Register::PPR, u32::from(vector & 0xf0));
        Some(vector)
    }

    /// Ends the highest vector in service and returns it.
    #[inline]
    pub(super) fn end_of_interrupt(&mut self, page: &ApicPage) -> Option<u8> {
        let vector = self.highest_in_service(page)?;
        let word = vector >> 5;
        let services = page.vectors(VectorRegister::Isr, word) & !bit(vector);
        page.set_vectors(VectorRegister::Isr, word, services);
        if services == 0 {
            self.isr_words &= !(1 << word);
        }
        self.update(page);
        Some(vector)
    }
}

fn summarize(page: &ApicPage, register: VectorRegister) -> u32 {
    (0..8u8)
        .filter(|&word| page.vectors(register, word) != 0)
        .fold(0, |words, word| words | 1 << word)
}
