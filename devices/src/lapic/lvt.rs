//! The local vector table and the pins LINT0 and LINT1 (SDM vol. 3A, 11.5.1).

use arch::apic::{Register, lvt};

use super::base::Mode;
use super::timer::TimerMode;
use super::{ExtInts, LocalApic};
use crate::apic_message::DeliveryMode;
use crate::time::Now;

/// One of the two local interrupt pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPin {
    /// LINT0, where the 8259 pair's INTR output is.
    Lint0,
    /// LINT1, where NMIs of the board are.
    Lint1,
}

impl LocalPin {
    const ALL: [Self; 2] = [Self::Lint0, Self::Lint1];

    const fn register(self) -> Register {
        match self {
            Self::Lint0 => Register::LVT_LINT0,
            Self::Lint1 => Register::LVT_LINT1,
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// The state of a pin beside its entry in the table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pin {
    /// The level of the wire: true is high.
    high: bool,
    /// A level-triggered vector was accepted and not yet ended.
    remote_irr: bool,
}

impl Pin {
    /// Returns the pin with its level, and nothing in service.
    pub(super) const fn without_remote_irr(self) -> Self {
        Self {
            remote_irr: false,
            ..self
        }
    }
}

impl LocalApic {
    /// Drives a local interrupt pin high or low. With a fresh local vector table (all
    /// masked) this has no effect; with the APIC disabled in IA32_APIC_BASE the pins are
    /// INTR and NMI (SDM vol. 3A, 11.4.3).
    pub fn set_pin(&mut self, pin: LocalPin, high: bool) {
        let was_high = core::mem::replace(&mut self.pins[pin.index()].high, high);
        if was_high != high {
            self.pin_changed(pin);
        }
    }

    fn pin_changed(&mut self, pin: LocalPin) {
        self.update_ext_int();
        if self.mode == Mode::Disabled {
            if pin == LocalPin::Lint1 && self.pins[pin.index()].high {
                self.request_nmi();
            }
            return;
        }
        let Some(entry) = self.lvt_unmasked(pin.register()) else {
            return;
        };
        if !self.is_asserted(pin, entry) {
            return;
        }
        if is_level_triggered(entry) {
            self.raise_level_pin(pin);
        } else {
            self.raise_lvt(pin.register());
        }
    }

    /// Returns whether the wire is at the level that the entry calls active.
    fn is_asserted(&self, pin: LocalPin, entry: u32) -> bool {
        self.pins[pin.index()].high != (entry & lvt::ACTIVE_LOW != 0)
    }

    /// Interrupts if a level-triggered vector is asserted and not being handled already.
    fn raise_level_pin(&mut self, pin: LocalPin) {
        let Some(entry) = self.lvt_unmasked(pin.register()) else {
            return;
        };
        if is_level_triggered(entry)
            && self.is_asserted(pin, entry)
            && !self.pins[pin.index()].remote_irr
        {
            let vector = entry as u8;
            if vector < 16 {
                return self.receive_illegal_vector();
            }
            self.set_remote_irr(pin, true);
            self.request(vector, true);
        }
    }

    fn set_remote_irr(&mut self, pin: LocalPin, set: bool) {
        self.pins[pin.index()].remote_irr = set;
        let entry = self.page().read(pin.register());
        let flag = if set { lvt::REMOTE_IRR } else { 0 };
        self.page()
            .write(pin.register(), entry & !lvt::REMOTE_IRR | flag);
    }

    /// Takes the end of a level-triggered `vector`: a pin that raised it may do so again.
    pub(super) fn pins_end_of_interrupt(&mut self, vector: u8) {
        for pin in LocalPin::ALL {
            let entry = self.page().read(pin.register());
            if self.pins[pin.index()].remote_irr && entry as u8 == vector {
                self.set_remote_irr(pin, false);
                self.raise_level_pin(pin);
            }
        }
    }

    /// Recomputes whether a pin asks for an interrupt of the 8259 pair.
    pub(super) fn update_ext_int(&mut self) {
        let asks = if self.mode == Mode::Disabled {
            self.pins[LocalPin::Lint0.index()].high
        } else {
            LocalPin::ALL.into_iter().any(|pin| {
                self.lvt_unmasked(pin.register()).is_some_and(|entry| {
                    DeliveryMode::from_bits(entry >> 8) == Some(DeliveryMode::ExtInt)
                        && self.is_asserted(pin, entry)
                })
            })
        };
        self.ext_ints.set(ExtInts::PIN, asks);
    }

    /// Returns an entry of the table, unless it is masked.
    pub(super) fn lvt_unmasked(&self, register: Register) -> Option<u32> {
        let entry = self.page().read(register);
        (entry & lvt::MASKED == 0).then_some(entry)
    }

    /// Raises the event that an entry of the table stands for, unless it is masked. (The timer
    /// raises its own, by the entry that it knows.)
    pub(super) fn raise_lvt(&mut self, register: Register) {
        let Some(entry) = self.lvt_unmasked(register) else {
            return;
        };
        let vector = entry as u8;
        match register {
            Register::LVT_ERROR => self.deliver_vector(vector, false),
            _ => match DeliveryMode::from_bits(entry >> 8) {
                Some(DeliveryMode::Fixed) => self.deliver_vector(vector, false),
                Some(DeliveryMode::Nmi) => self.request_nmi(),
                Some(DeliveryMode::Init) => self.request_init(),
                // ExtINT follows the pin; there is no SMM; the rest is reserved here.
                _ => {}
            },
        }
    }

    /// Takes a write of an entry of the table.
    pub(super) fn write_lvt(&mut self, now: Now, register: Register, defined: u32, value: u32) {
        let mut entry = value & defined;
        if !self.software_enabled {
            entry |= lvt::MASKED;
        }
        if register == Register::LVT_TIMER {
            // What was due until now is raised by the old entry.
            self.expire(now);
            if self.timer.set_mode(now, TimerMode::of_lvt(entry)) {
                self.page().write(Register::INITIAL_COUNT, 0);
            }
            self.timer.set_entry(entry);
        }
        self.page().write(register, entry);
        if let Some(pin) = LocalPin::ALL
            .into_iter()
            .find(|pin| pin.register() == register)
        {
            // A level in service stays so; one that becomes an edge does not.
            let still = self.pins[pin.index()].remote_irr && entry & lvt::LEVEL != 0;
            self.set_remote_irr(pin, still);
            self.raise_level_pin(pin);
            self.update_ext_int();
        }
    }

    /// Masks all entries, as disabling by software does.
    pub(super) fn mask_lvt(&mut self) {
        for register in Register::LVT {
            let entry = self.page().read(register);
            self.page().write(register, entry | lvt::MASKED);
        }
        self.timer.mask();
        self.update_ext_int();
    }
}

/// Returns whether an entry is level-triggered. Only vectors can be level-triggered: NMI and INIT
/// are edges, ExtINT a level of its own.
fn is_level_triggered(entry: u32) -> bool {
    entry & lvt::LEVEL != 0 && DeliveryMode::from_bits(entry >> 8) == Some(DeliveryMode::Fixed)
}
