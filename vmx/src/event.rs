//! Events delivered to the guest at VM entry, and events whose delivery a VM exit
//! interrupted: one format (SDM vol. 3C, 25.8.3 and 25.9.3).

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
    /// For software events: the length of the instruction, in bytes.
    pub instruction_length: u32,
}

const VALID: u32 = 1 << 31;
const DELIVER_ERROR_CODE: u32 = 1 << 11;

/// Exception vectors (SDM vol. 3A, table 6-1).
pub mod vector {
    /// #DB
    pub const DEBUG: u8 = 1;
    /// NMI
    pub const NMI: u8 = 2;
    /// #UD
    pub const INVALID_OPCODE: u8 = 6;
    /// #DF
    pub const DOUBLE_FAULT: u8 = 8;
    /// #TS
    pub const INVALID_TSS: u8 = 10;
    /// #NP
    pub const SEGMENT_NOT_PRESENT: u8 = 11;
    /// #SS
    pub const STACK_FAULT: u8 = 12;
    /// #GP
    pub const GENERAL_PROTECTION: u8 = 13;
    /// #PF
    pub const PAGE_FAULT: u8 = 14;
    /// #AC
    pub const ALIGNMENT_CHECK: u8 = 17;
}

impl Event {
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::exception(vector::INVALID_OPCODE, None);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::exception(vector::GENERAL_PROTECTION, Some(0));
    /// An NMI.
    pub const NMI: Self = Self {
        vector: vector::NMI,
        kind: EventKind::Nmi,
        error_code: None,
        instruction_length: 0,
    };

    /// A hardware exception.
    #[must_use]
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        Self {
            vector,
            kind: EventKind::HardwareException,
            error_code,
            instruction_length: 0,
        }
    }

    /// An external interrupt.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            vector,
            kind: EventKind::ExternalInterrupt,
            error_code: None,
            instruction_length: 0,
        }
    }

    /// The interruption-information field of this event. The processor pushes an error code
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

    /// Whether this is an exception that is always a fault (SDM vol. 3A, table 6-1). #DB may be
    /// one or a trap; #DF and #MC are aborts; INT n and its like are traps.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        const MACHINE_CHECK: u8 = 18;
        matches!(self.kind, EventKind::HardwareException)
            && !matches!(
                self.vector,
                vector::DEBUG | vector::DOUBLE_FAULT | MACHINE_CHECK
            )
    }

    /// How this exception combines with an exception raised while delivering `first` (SDM
    /// vol. 3A, table 6-5): `None` stands for a triple fault.
    #[must_use]
    pub const fn after(self, first: Event) -> Option<Self> {
        const fn contributory(vector: u8) -> bool {
            matches!(vector, 0 | 10..=13)
        }
        if !matches!(first.kind, EventKind::HardwareException) {
            return Some(self);
        }
        if first.vector == vector::DOUBLE_FAULT {
            return if contributory(self.vector) || self.vector == vector::PAGE_FAULT {
                None
            } else {
                Some(self)
            };
        }
        let double = (contributory(first.vector) && contributory(self.vector))
            || (first.vector == vector::PAGE_FAULT
                && (contributory(self.vector) || self.vector == vector::PAGE_FAULT));
        Some(if double {
            Self::exception(vector::DOUBLE_FAULT, Some(0))
        } else {
            self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_its_encoding() {
        let fault = Event::exception(vector::PAGE_FAULT, Some(2));
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
            Event::exception(vector::DEBUG, None),
            Event::exception(vector::DOUBLE_FAULT, Some(0)),
            Event::interrupt(vector::GENERAL_PROTECTION),
            Event::NMI,
        ] {
            assert!(!other.is_fault(), "{other:?}");
        }
    }

    #[test]
    fn faults_while_delivering_faults_become_double_and_triple_faults() {
        let page_fault = Event::exception(vector::PAGE_FAULT, Some(0));
        let double = Event::exception(vector::DOUBLE_FAULT, Some(0));
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
