//! The registers of the local APIC, and which bits of them software may write.
//!
//! SDM vol. 3A, table 11-1 (xAPIC) and table 11-6 (x2APIC); the offset of a register in the
//! xAPIC page is 16 times its index among the MSRs of x2APIC mode.

use crate::msr;

/// The address of the xAPIC page after reset (SDM vol. 3A, 11.4.1).
pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;

/// A local-APIC register, by its offset in the xAPIC page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u16);

#[allow(missing_docs, reason = "the names are the manual's")]
impl Register {
    pub const ID: Self = Self(0x020);
    pub const VERSION: Self = Self(0x030);
    pub const TPR: Self = Self(0x080);
    pub const APR: Self = Self(0x090);
    pub const PPR: Self = Self(0x0a0);
    pub const EOI: Self = Self(0x0b0);
    pub const RRD: Self = Self(0x0c0);
    pub const LDR: Self = Self(0x0d0);
    pub const DFR: Self = Self(0x0e0);
    pub const SVR: Self = Self(0x0f0);
    pub const ISR: Self = Self(0x100);
    pub const TMR: Self = Self(0x180);
    pub const IRR: Self = Self(0x200);
    pub const ESR: Self = Self(0x280);
    pub const LVT_CMCI: Self = Self(0x2f0);
    pub const ICR_LOW: Self = Self(0x300);
    /// Bits 32 to 63 of the 64-bit ICR of x2APIC mode, where VMX looks for them.
    pub const X2APIC_ICR_HIGH: Self = Self(0x304);
    pub const ICR_HIGH: Self = Self(0x310);
    pub const LVT_TIMER: Self = Self(0x320);
    pub const LVT_THERMAL: Self = Self(0x330);
    pub const LVT_PERFORMANCE: Self = Self(0x340);
    pub const LVT_LINT0: Self = Self(0x350);
    pub const LVT_LINT1: Self = Self(0x360);
    pub const LVT_ERROR: Self = Self(0x370);
    pub const INITIAL_COUNT: Self = Self(0x380);
    pub const CURRENT_COUNT: Self = Self(0x390);
    pub const DIVIDE: Self = Self(0x3e0);
    pub const SELF_IPI: Self = Self(0x3f0);

    const LAST_ISR: Self = Self(0x170);
    const LAST_TMR: Self = Self(0x1f0);
    const LAST_IRR: Self = Self(0x270);

    /// Returns the register at `offset` of the page, aligned down to 16 bytes.
    #[must_use]
    pub const fn at(offset: u16) -> Self {
        Self(offset & 0xff0)
    }

    /// Returns the register of the MSR `number`; `None` for one outside of [`msr::X2APIC`].
    #[must_use]
    pub const fn of_msr(number: u32) -> Option<Self> {
        match number {
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                Some(Self(((number - msr::X2APIC_FIRST) as u16) << 4))
            }
            _ => None,
        }
    }

    /// Returns the offset in the page.
    #[must_use]
    pub const fn offset(self) -> u16 {
        self.0
    }

    /// Returns the number of the MSR of x2APIC mode.
    #[must_use]
    pub const fn msr(self) -> u32 {
        msr::X2APIC_FIRST + (self.0 as u32 >> 4)
    }

    /// Returns the 32-bit register that holds the bits of `vector` in the 256-bit register that
    /// begins with this one: ISR, TMR or IRR.
    #[must_use]
    pub const fn holding(self, vector: u8) -> Self {
        Self(self.0 + 0x10 * (vector as u16 / 32))
    }

    /// Returns its index among the 32-bit words of the page.
    #[must_use]
    pub const fn word(self) -> usize {
        (self.0 as usize >> 2) & 0x3ff
    }

    /// Returns whether this is a part of ISR, TMR or IRR.
    #[must_use]
    pub const fn is_vector_register(self) -> bool {
        self.0 >= Self::ISR.0 && self.0 <= Self::LAST_IRR.0
    }

    /// Returns whether the register exists in xAPIC mode.
    #[must_use]
    pub const fn in_xapic(self, cmci: bool) -> bool {
        match self {
            Self::SELF_IPI => false,
            Self::APR | Self::RRD | Self::DFR | Self::ICR_HIGH => true,
            _ => self.in_x2apic(cmci),
        }
    }

    /// Returns whether the register exists in x2APIC mode.
    #[must_use]
    pub const fn in_x2apic(self, cmci: bool) -> bool {
        match self {
            Self::LVT_CMCI => cmci,
            Self::ID
            | Self::VERSION
            | Self::TPR
            | Self::PPR
            | Self::EOI
            | Self::LDR
            | Self::SVR
            | Self::ESR
            | Self::ICR_LOW
            | Self::LVT_TIMER
            | Self::LVT_THERMAL
            | Self::LVT_PERFORMANCE
            | Self::LVT_LINT0
            | Self::LVT_LINT1
            | Self::LVT_ERROR
            | Self::INITIAL_COUNT
            | Self::CURRENT_COUNT
            | Self::DIVIDE
            | Self::SELF_IPI => true,
            _ => self.is_vector_register(),
        }
    }

    /// Returns the bits of a write-only or read/write register that a write may set in x2APIC mode
    /// without a fault: the defined ones, with those that only the APIC changes. `None` for
    /// a register that cannot be written.
    #[must_use]
    pub const fn x2apic_writable(self, cmci: bool) -> Option<u32> {
        Some(match self {
            Self::TPR | Self::SELF_IPI => 0xff,
            // Both take zero only (SDM vol. 3A, 11.12.1.2).
            Self::EOI | Self::ESR => 0,
            Self::SVR => svr::DEFINED,
            Self::ICR_LOW => icr::DEFINED | icr::DELIVERY_STATUS,
            Self::INITIAL_COUNT => u32::MAX,
            Self::DIVIDE => divide::DEFINED,
            _ => match self.lvt_defined() {
                Some(defined) if self.in_x2apic(cmci) => {
                    defined | lvt::DELIVERY_STATUS | self.lvt_remote_irr()
                }
                _ => return None,
            },
        })
    }

    /// Returns the bits of a local-vector-table entry that software may set; `None` for a register
    /// that is none (SDM vol. 3A, figure 11-8).
    #[must_use]
    pub const fn lvt_defined(self) -> Option<u32> {
        Some(match self {
            Self::LVT_TIMER => lvt::VECTOR | lvt::MASKED | lvt::TIMER_MODE,
            Self::LVT_ERROR => lvt::VECTOR | lvt::MASKED,
            Self::LVT_CMCI | Self::LVT_THERMAL | Self::LVT_PERFORMANCE => {
                lvt::VECTOR | delivery_mode::MASK | lvt::MASKED
            }
            Self::LVT_LINT0 | Self::LVT_LINT1 => {
                lvt::VECTOR | delivery_mode::MASK | lvt::ACTIVE_LOW | lvt::LEVEL | lvt::MASKED
            }
            _ => return None,
        })
    }

    const fn lvt_remote_irr(self) -> u32 {
        match self {
            Self::LVT_LINT0 | Self::LVT_LINT1 => lvt::REMOTE_IRR,
            _ => 0,
        }
    }

    /// All entries of the local vector table.
    pub const LVT: [Self; 7] = [
        Self::LVT_CMCI,
        Self::LVT_TIMER,
        Self::LVT_THERMAL,
        Self::LVT_PERFORMANCE,
        Self::LVT_LINT0,
        Self::LVT_LINT1,
        Self::LVT_ERROR,
    ];
}

// The vector registers follow each other without a gap: `is_vector_register` relies on it.
const _: () = assert!(
    Register::LAST_ISR.0 + 0x10 == Register::TMR.0
        && Register::LAST_TMR.0 + 0x10 == Register::IRR.0
        && Register::LAST_IRR.0 + 0x10 == Register::ESR.0
);

/// Version register (SDM vol. 3A, 11.4.8).
pub mod version {
    /// An integrated APIC.
    pub const INTEGRATED: u32 = 0x14;
    /// EOI broadcasts can be suppressed.
    pub const EOI_BROADCAST_SUPPRESSION: u32 = 1 << 24;

    /// Returns the register's value for a local vector table of `entries` entries.
    #[must_use]
    pub const fn with_lvt_entries(entries: u32) -> u32 {
        INTEGRATED | (entries - 1) << 16 | EOI_BROADCAST_SUPPRESSION
    }
}

/// Spurious-interrupt vector register (SDM vol. 3A, 11.9).
pub mod svr {
    /// APIC software enable.
    pub const ENABLED: u32 = 1 << 8;
    /// EOI-broadcast suppression.
    pub const SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
    /// The bits that exist; bit 9 is the focus-processor check, kept and without effect.
    pub const DEFINED: u32 = 0x3ff | SUPPRESS_EOI_BROADCAST;
    /// The value after reset: vector 0xff, disabled.
    pub const RESET: u32 = 0xff;
}

/// Delivery modes, as the ICR, LVT entries and the redirection entries of I/O APICs hold them in
/// bits 8 to 10 (SDM vol. 3A, 11.6.1).
pub mod delivery_mode {
    /// The vector, at every destination.
    pub const FIXED: u32 = 0;
    /// The vector, at the one destination that runs at the lowest priority.
    pub const LOWEST_PRIORITY: u32 = 1 << 8;
    /// A system-management interrupt.
    pub const SMI: u32 = 2 << 8;
    /// A non-maskable interrupt.
    pub const NMI: u32 = 4 << 8;
    /// INIT.
    pub const INIT: u32 = 5 << 8;
    /// Start-up; not in an LVT entry.
    pub const START_UP: u32 = 6 << 8;
    /// An interrupt whose vector the 8259A tells; not in the ICR.
    pub const EXT_INT: u32 = 7 << 8;
    /// All bits of the mode.
    pub const MASK: u32 = 7 << 8;
}

/// Interrupt command register (SDM vol. 3A, 11.6.1).
pub mod icr {
    /// Logical destination mode.
    pub const LOGICAL: u32 = 1 << 11;
    /// Send pending: read-only, and never set here, since a message is sent at once.
    pub const DELIVERY_STATUS: u32 = 1 << 12;
    /// Assert (of INIT: as opposed to the level de-assert).
    pub const ASSERT: u32 = 1 << 14;
    /// Level trigger mode.
    pub const LEVEL: u32 = 1 << 15;
    /// The lowest bit of the destination shorthand.
    pub const SHORTHAND_SHIFT: u32 = 18;
    /// The destination shorthand for the sender itself.
    pub const TO_SELF: u32 = 1 << SHORTHAND_SHIFT;
    /// The destination shorthand for all processors.
    pub const TO_ALL: u32 = 2 << SHORTHAND_SHIFT;
    /// The destination shorthand for all processors but the sender.
    pub const TO_OTHERS: u32 = 3 << SHORTHAND_SHIFT;
    /// The bits that software may set.
    pub const DEFINED: u32 = 0x000c_cfff;
}

/// Local vector table (SDM vol. 3A, 11.5.1).
pub mod lvt {
    /// Interrupt vector.
    pub const VECTOR: u32 = 0xff;
    /// Send pending: read-only, never set here.
    pub const DELIVERY_STATUS: u32 = 1 << 12;
    /// Interrupt input pin polarity.
    pub const ACTIVE_LOW: u32 = 1 << 13;
    /// Level interrupt accepted and not yet ended: read-only.
    pub const REMOTE_IRR: u32 = 1 << 14;
    /// Level trigger mode.
    pub const LEVEL: u32 = 1 << 15;
    /// Mask.
    pub const MASKED: u32 = 1 << 16;
    /// Timer mode: all bits of it; one-shot is zero.
    pub const TIMER_MODE: u32 = 3 << 17;
    /// Timer mode: periodic.
    pub const TIMER_PERIODIC: u32 = 1 << 17;
    /// Timer mode: TSC-deadline.
    pub const TIMER_TSC_DEADLINE: u32 = 2 << 17;
}

/// Divide configuration register (SDM vol. 3A, 11.5.4).
pub mod divide {
    /// The bits of the divisor: 0, 1 and 3.
    pub const DEFINED: u32 = 0b1011;
    /// Divide by 1.
    pub const BY_1: u32 = 0b1011;
}

/// Destination format register (SDM vol. 3A, 11.6.2.2): all but the model reads as ones.
pub mod dfr {
    /// The bits of the model.
    pub const MODEL: u32 = 0xf << 28;
}

/// Error status register (SDM vol. 3A, 11.5.3).
pub mod esr {
    /// A vector below 16 in a message sent.
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    /// A vector below 16 in a message received or an interrupt raised here.
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    /// An access to a register that does not exist, in xAPIC mode.
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}
