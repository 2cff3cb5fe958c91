//! Sending interrupts: the interrupt command register and the self-IPI register.
//!
//! SDM vol. 3A, 11.6.1 and 11.12.11.

use arch::apic::{Register, esr, icr};

use super::base::Mode;
use super::{ApicBus, LocalApic};
use crate::apic_message::{ApicMessage, DeliveryMode, Destination, DestinationMode, Trigger};

impl LocalApic {
    /// Sends: by a write of the ICR's low half in xAPIC mode, or of all of it in x2APIC mode.
    pub(super) fn send_ipi(&mut self, command: u32, destination: u32, bus: &mut impl ApicBus) {
        let vector = command as u8;
        let Some(delivery_mode) = DeliveryMode::from_bits(command >> 8) else {
            return;
        };
        let to_self = match command >> icr::SHORTHAND_SHIFT & 3 {
            0 => command & icr::LOGICAL == 0 && self.is_own_id(destination),
            shorthand => shorthand == 1,
        };
        let mut is_vector = false;
        match delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if vector < 16 {
                    self.send_illegal_vector(to_self);
                    if to_self {
                        return;
                    }
                }
                is_vector = true;
            }
            // The level de-assert of INIT does nothing since the Pentium 4.
            DeliveryMode::Init if command & (icr::ASSERT | icr::LEVEL) == icr::LEVEL => return,
            // Reserved in this register.
            DeliveryMode::ExtInt => return,
            _ => {}
        }
        if to_self && is_vector {
            return self.deliver_vector(vector, false);
        }
        let destination = match command >> icr::SHORTHAND_SHIFT & 3 {
            0 => self.resolve(command, destination),
            1 => Destination::Physical(self.config.id),
            2 => Destination::All,
            _ => Destination::AllExcept(self.config.id),
        };
        // Trigger and level mean nothing but for the INIT de-assert: all else is an edge.
        let message = ApicMessage {
            destination,
            delivery_mode,
            vector,
            trigger: Trigger::Edge,
        };
        if to_self {
            self.deliver(&message);
        } else {
            bus.send(message);
        }
    }

    fn resolve(&self, command: u32, destination: u32) -> Destination {
        let mode = if command & icr::LOGICAL == 0 {
            DestinationMode::Physical
        } else {
            DestinationMode::Logical
        };
        if self.mode == Mode::X2Apic {
            Destination::from_x2apic(mode, destination)
        } else {
            Destination::from_xapic(mode, (destination >> 24) as u8)
        }
    }

    /// Returns whether the ICR's high half is this APIC's ID, as the ID register shows it in either
    /// mode. The ID of all ones is the broadcast and nobody's.
    fn is_own_id(&self, destination: u32) -> bool {
        if self.mode == Mode::X2Apic {
            destination == self.config.id && destination != u32::MAX
        } else {
            destination >> 24 == self.config.id & 0xff && destination >> 24 != 0xff
        }
    }

    /// Sends a vector below 16. That is an error of its sender, and goes out all the same: it is
    /// another of each receiver, which finds it in the message (SDM vol. 3A, 11.5.3).
    #[cold]
    fn send_illegal_vector(&mut self, to_self: bool) {
        let received = if to_self && self.software_enabled {
            esr::RECEIVE_ILLEGAL_VECTOR
        } else {
            0
        };
        self.record_error(esr::SEND_ILLEGAL_VECTOR | received);
    }

    /// Takes a write of the x2APIC's self-IPI register.
    pub(super) fn send_self_ipi(&mut self, vector: u8) {
        if vector < 16 {
            self.send_illegal_vector(true);
        } else {
            self.deliver_vector(vector, false);
        }
    }

    /// Returns the ICR's high half, where the present mode keeps it.
    pub(super) fn icr_high(&self) -> u32 {
        self.page().read(if self.mode == Mode::X2Apic {
            Register::X2APIC_ICR_HIGH
        } else {
            Register::ICR_HIGH
        })
    }
}
