//! Messages that arrive: from this processor itself, or posted by other CPUs.

use super::{ExtInts, LocalApic};
use crate::apic_message::{ApicMessage, DeliveryMode, Trigger};

/// One NMI to be taken, and one that the processor latches while it handles that.
const MAX_NMIS: u8 = 2;

impl LocalApic {
    /// Takes `message`, whatever its destination says.
    pub fn deliver(&mut self, message: &ApicMessage) {
        match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.deliver_vector(message.vector, message.trigger == Trigger::Level);
            }
            DeliveryMode::Nmi => self.request_nmi(),
            DeliveryMode::Init => self.request_init(),
            DeliveryMode::StartUp => self.start_up = Some(message.vector),
            DeliveryMode::ExtInt => {
                if self.software_enabled {
                    self.ext_ints.insert(ExtInts::MESSAGE);
                }
            }
            // There is no system-management mode to go to.
            DeliveryMode::Smi => {}
        }
    }

    /// Delivers a vector from anywhere, legal or not.
    #[inline]
    pub(super) fn deliver_vector(&mut self, vector: u8, level: bool) {
        if !self.software_enabled {
            return;
        }
        if vector < 16 {
            return self.receive_illegal_vector();
        }
        self.request(vector, level);
    }

    #[inline]
    pub(super) fn request(&mut self, vector: u8, level: bool) {
        self.priority.request(self.port.page(), vector, level);
    }

    pub(super) fn request_nmi(&mut self) {
        self.nmis = (self.nmis + 1).min(MAX_NMIS);
    }

    pub(super) fn request_init(&mut self) {
        self.init = true;
        self.start_up = None;
    }

    /// Takes in what others have posted. True if there was something.
    #[inline]
    pub fn accept_incoming(&mut self) -> bool {
        let has_incoming = self.port.has_incoming();
        if has_incoming {
            self.accept_messages();
        }
        has_incoming
    }

    fn accept_messages(&mut self) {
        let incoming = self.port.take_incoming();
        if self.software_enabled {
            // The level-triggered ones last, so that a vector posted as both keeps its
            // source waiting for the end of interrupt.
            for (requests, level) in [(incoming.edge, false), (incoming.level, true)] {
                for (index, vectors) in (0u8..).zip(requests) {
                    for (word, vectors) in [
                        (2 * index, vectors as u32),
                        (2 * index + 1, (vectors >> 32) as u32),
                    ] {
                        if vectors != 0 {
                            self.priority
                                .request_word(self.port.page(), word, vectors, level);
                        }
                    }
                }
            }
            if incoming.events.ext_int() {
                self.ext_ints.insert(ExtInts::MESSAGE);
            }
        }
        if incoming.events.illegal_vector() {
            self.receive_illegal_vector();
        }
        self.nmis = (self.nmis + incoming.events.nmis()).min(MAX_NMIS);
        if incoming.events.init() {
            self.request_init();
        }
        if let Some(vector) = incoming.events.start_up() {
            self.start_up = Some(vector);
        }
    }

    /// Takes a pending interrupt of the 8259 pair, which is to be asked for the vector.
    pub fn take_ext_int(&mut self) {
        self.ext_ints.remove(ExtInts::MESSAGE);
    }

    /// Returns whether there is an NMI to take.
    #[must_use]
    #[inline]
    pub fn nmi_pending(&self) -> bool {
        self.nmis != 0
    }

    /// Takes an NMI, if there is one.
    pub fn take_nmi(&mut self) -> bool {
        let pending = self.nmi_pending();
        self.nmis = self.nmis.saturating_sub(1);
        pending
    }

    /// Tells that the processor is handling an NMI: it latches one more, and no more than
    /// that (SDM vol. 3A, 6.7.1). Otherwise two that came at the same time are taken one
    /// after the other.
    pub fn limit_nmis(&mut self) {
        self.nmis = self.nmis.min(1);
    }

    /// Returns whether there is an INIT or a start-up to take.
    #[must_use]
    #[inline]
    pub fn reset_pending(&self) -> bool {
        self.init || self.start_up.is_some()
    }

    /// Takes an INIT, if there is one. The processor is to be reset, with
    /// [`LocalApic::init_reset`], and then waits for a start-up.
    pub fn take_init(&mut self) -> bool {
        core::mem::take(&mut self.init)
    }

    /// Takes a start-up, if there is one, and returns its vector. A processor that does not
    /// wait for it ignores it. An INIT is to be taken first.
    pub fn take_start_up(&mut self) -> Option<u8> {
        self.start_up.take()
    }
}
