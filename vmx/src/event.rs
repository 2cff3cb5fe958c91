//! Events delivered to the guest at VM entry, and events whose delivery a VM exit
//! interrupted: one format (SDM vol. 3C, 25.8.3 and 25.9.3).
#![forbid(unsafe_code)]

use arch::{ExceptionVector, GeneralProtection};

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// An external interrupt.
    ExternalInterrupt = 0,
    /// A non-maskable interrupt.
    Nmi = 2,
    /// A hardware exception (#PF, #GP, ...).
    HardwareException = 3,
    /// INT n.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
    /// Monitor trap flag, or nothing known.
    Other = 7,
}

/// An interruption-information field and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The vector.
    pub vector: u8,
    /// The kind.
    pub kind: EventKind,
    /// The error code, if the event pushes one.
    pub error_code: Option<u32>,
    /// The length of the instruction, in bytes, for software events.
    pub instruction_length: u32,
}

const VALID: u32 = 1 << 31;
const DELIVER_ERROR_CODE: u32 = 1 << 11;

impl Event {
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::exception(ExceptionVector::InvalidOpcode, None);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self =
        Self::exception(ExceptionVector::GeneralProtection, Some(0));
    /// An NMI.
    pub const NMI: Self = Self {
        vector: ExceptionVector::NonMaskableInterrupt as u8,
        kind: EventKind::Nmi,
        error_code: None,
        instruction_length: 0,
    };

    /// Makes a hardware exception.
    #[must_use]
    pub const fn exception(vector: ExceptionVector, error_code: Option<u32>) -> Self {
        Self {
            vector: vector as u8,
            kind: EventKind::HardwareException,
            error_code,
            instruction_length: 0,
        }
    }

    /// Makes an external interrupt.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            vector,
            kind: EventKind::ExternalInterrupt,
            error_code: None,
            instruction_length: 0,
        }
    }

    /// Returns the interruption-information field of this event. The processor pushes an error code
    /// in protected mode only: in real mode (`protected` false) none may be asked for.
    #[must_use]
    pub const fn information(self, protected: bool) -> u32 {
        let error = if self.error_code.is_some() && protected {
            DELIVER_ERROR_CODE
        } else {
            0
        };
        VALID | error | (self.kind as u32) << 8 | self.vector as u32
    }

    /// Decodes an interruption-information field; `None` if its valid bit is off.
    #[must_use]
    pub const fn from_information(
        information: u32,
        error_code: u32,
        instruction_length: u32,
    ) -> Option<Self> {
        if information & VALID == 0 {
            return None;
        }
        let kind = match information >> 8 & 7 {
            0 => EventKind::ExternalInterrupt,
            2 => EventKind::Nmi,
            3 => EventKind::HardwareException,
            4 => EventKind::SoftwareInterrupt,
            5 => EventKind::PrivilegedSoftwareException,
            6 => EventKind::SoftwareException,
            _ => EventKind::Other,
        };
        let software = matches!(
            kind,
            EventKind::SoftwareInterrupt
                | EventKind::PrivilegedSoftwareException
                | EventKind::SoftwareException
        );
        Some(Self {
            vector: information as u8,
            kind,
            error_code: if information & DELIVER_ERROR_CODE != 0 {
                Some(error_code)
            } else {
                None
            },
            instruction_length: if software { instruction_length } else { 0 },
        })
    }

    /// Returns whether this is the hardware exception `vector`.
    #[must_use]
    pub const fn is_exception(self, vector: ExceptionVector) -> bool {
        matches!(self.kind, EventKind::HardwareException) && self.vector == vector as u8
    }

    /// Returns whether this is an exception that is always a fault (SDM vol. 3A, table 6-1). #DB
    /// may be one or a trap; #DF and #MC are aborts; INT n and its like are traps.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(self.kind, EventKind::HardwareException)
            && !self.is_exception(ExceptionVector::Debug)
            && !self.is_exception(ExceptionVector::Double)
            && !self.is_exception(ExceptionVector::MachineCheck)
    }

    /// Returns how this exception combines with an exception raised while delivering `first`
    /// (SDM vol. 3A, table 6-5): `None` stands for a triple fault.
    #[must_use]
    pub const fn after(self, first: Event) -> Option<Self> {
        const DIVISION: u8 = ExceptionVector::Division as u8;
        const INVALID_TSS: u8 = ExceptionVector::InvalidTss as u8;
        const GENERAL_PROTECTION: u8 = ExceptionVector::GeneralProtection as u8;
        const PAGE: u8 = ExceptionVector::Page as u8;
        const fn contributory(vector: u8) -> bool {
            matches!(vector, DIVISION | INVALID_TSS..=GENERAL_PROTECTION)
        }
        if !matches!(first.kind, EventKind::HardwareException) {
            return Some(self);
        }
        if first.is_exception(ExceptionVector::Double) {
            return if contributory(self.vector) || self.vector == PAGE {
                None
            } else {
                Some(self)
            };
        }
        let double = (contributory(first.vector) && contributory(self.vector))
            || (first.vector == PAGE && (contributory(self.vector) || self.vector == PAGE));
        Some(if double {
            Self::exception(ExceptionVector::Double, Some(0))
        } else {
            self
        })
    }
}

impl From<GeneralProtection> for Event {
    fn from(_: GeneralProtection) -> Self {
        Self::GENERAL_PROTECTION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_its_encoding() {
        let fault = Event::exception(ExceptionVector::Page, Some(2));
        assert_eq!(
            Event::from_information(fault.information(true), 2, 3),
            Some(fault)
        );
        assert_eq!(Event::from_information(0, 0, 0), None);
    }

    #[test]
    fn no_error_code_is_pushed_in_real_mode() {
        assert_eq!(Event::GENERAL_PROTECTION.information(false), 0x8000_030d);
        assert_eq!(Event::GENERAL_PROTECTION.information(true), 0x8000_0b0d);
    }

    #[test]
    fn faults_are_told_from_traps_and_aborts() {
        assert!(Event::GENERAL_PROTECTION.is_fault());
        assert!(Event::INVALID_OPCODE.is_fault());
        for other in [
            Event::exception(ExceptionVector::Debug, None),
            Event::exception(ExceptionVector::Double, Some(0)),
            Event::interrupt(ExceptionVector::GeneralProtection as u8),
            Event::NMI,
        ] {
            assert!(!other.is_fault(), "{other:?}");
        }
    }

    #[test]
    fn faults_while_delivering_faults_become_double_and_triple_faults() {
        let page_fault = Event::exception(ExceptionVector::Page, Some(0));
        let double = Event::exception(ExceptionVector::Double, Some(0));
        let gp = Event::GENERAL_PROTECTION;
        assert_eq!(gp.after(gp), Some(double));
        assert_eq!(
            page_fault.after(gp),
            Some(page_fault),
            "#GP then #PF is handled serially"
        );
        assert_eq!(gp.after(page_fault), Some(double));
        assert_eq!(page_fault.after(double), None);
        assert_eq!(gp.after(Event::interrupt(0x20)), Some(gp));
    }
}
