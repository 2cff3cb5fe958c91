//! The local APIC, by memory (xAPIC) or by MSRs (x2APIC). Intel SDM vol. 3, chapter 11.

use core::arch::x86_64::__cpuid;

use x86_64::registers::model_specific::Msr;

use crate::mmio;

/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_APIC_BASE: the APIC is enabled.
pub const GLOBAL_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE: x2APIC mode.
pub const X2APIC_ENABLE: u64 = 1 << 10;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// Where the registers are after reset.
pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;

/// The spurious vector that [`Lapic::enable`] sets.
pub const SPURIOUS: u8 = 0xff;

/// A register's offset in the xAPIC page.
pub type Register = u32;

#[allow(missing_docs, reason = "the names are the manual's")]
pub mod register {
    use super::Register;

    pub const ID: Register = 0x020;
    pub const VERSION: Register = 0x030;
    pub const TPR: Register = 0x080;
    pub const PPR: Register = 0x0a0;
    pub const EOI: Register = 0x0b0;
    pub const LDR: Register = 0x0d0;
    pub const DFR: Register = 0x0e0;
    pub const SVR: Register = 0x0f0;
    pub const ISR: Register = 0x100;
    pub const TMR: Register = 0x180;
    pub const IRR: Register = 0x200;
    pub const ESR: Register = 0x280;
    pub const ICR_LOW: Register = 0x300;
    pub const ICR_HIGH: Register = 0x310;
    pub const LVT_TIMER: Register = 0x320;
    pub const LVT_THERMAL: Register = 0x330;
    pub const LVT_PERFORMANCE: Register = 0x340;
    pub const LVT_LINT0: Register = 0x350;
    pub const LVT_LINT1: Register = 0x360;
    pub const LVT_ERROR: Register = 0x370;
    pub const INITIAL_COUNT: Register = 0x380;
    pub const CURRENT_COUNT: Register = 0x390;
    pub const DIVIDE: Register = 0x3e0;
    pub const SELF_IPI: Register = 0x3f0;
}

/// LVT: masked.
pub const MASKED: u32 = 1 << 16;
/// LVT timer: periodic.
pub const PERIODIC: u32 = 1 << 17;
/// LVT timer: TSC-deadline.
pub const DEADLINE: u32 = 2 << 17;
/// SVR: software-enabled.
pub const SOFTWARE_ENABLE: u32 = 1 << 8;
/// ICR: to oneself.
pub const TO_SELF: u32 = 1 << 18;
/// ICR: the level bit, which all but one kind of IPI have set.
pub const ASSERT: u32 = 1 << 14;

/// How the registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By memory.
    XApic,
    /// By MSRs.
    X2Apic,
}

/// The CPU's local APIC.
#[derive(Clone, Copy, Debug)]
pub struct Lapic {
    mode: Mode,
}

/// IA32_APIC_BASE.
#[must_use]
pub fn base() -> u64 {
    // SAFETY: every CPU with an APIC has the MSR.
    unsafe { Msr::new(APIC_BASE).read() }
}

/// Writes IA32_APIC_BASE. An illegal value is #GP: see [`crate::interrupts::catch`].
pub fn set_base(value: u64) {
    // SAFETY: tests give the page a place where no memory in use is.
    unsafe { Msr::new(APIC_BASE).write(value) }
}

/// Whether the CPU has x2APIC mode.
#[must_use]
pub fn has_x2apic() -> bool {
    __cpuid(1).ecx & 1 << 21 != 0
}

/// Whether the timer has TSC-deadline mode.
#[must_use]
pub fn has_tsc_deadline() -> bool {
    __cpuid(1).ecx & 1 << 24 != 0
}

impl Lapic {
    /// Brings the APIC into `mode` by legal steps, software-enabled with spurious vector 0xff.
    #[must_use]
    pub fn enable(mode: Mode) -> Self {
        let plain = base() & !(GLOBAL_ENABLE | X2APIC_ENABLE);
        let is_x2apic = base() & X2APIC_ENABLE != 0;
        match mode {
            Mode::XApic => {
                if is_x2apic {
                    set_base(plain);
                }
                set_base(plain | GLOBAL_ENABLE);
            }
            Mode::X2Apic => {
                if !is_x2apic {
                    set_base(plain | GLOBAL_ENABLE);
                }
                set_base(plain | GLOBAL_ENABLE | X2APIC_ENABLE);
            }
        }
        let lapic = Self { mode };
        lapic.write(register::SVR, SOFTWARE_ENABLE | u32::from(SPURIOUS));
        lapic
    }

    /// The APIC in the mode that it is in.
    #[must_use]
    pub fn current() -> Self {
        let mode = if base() & X2APIC_ENABLE == 0 {
            Mode::XApic
        } else {
            Mode::X2Apic
        };
        Self { mode }
    }

    /// The mode it is in.
    #[must_use]
    pub fn mode(self) -> Mode {
        self.mode
    }

    /// Reads a register.
    #[must_use]
    pub fn read(self, register: Register) -> u32 {
        match self.mode {
            // SAFETY: the page is mapped, and reads touch no memory.
            Mode::XApic => unsafe { mmio::read32(DEFAULT_ADDRESS + u64::from(register)) },
            // SAFETY: a register that is not there is #GP, which tests expect.
            Mode::X2Apic => unsafe { Msr::new(0x800 + (register >> 4)).read() as u32 },
        }
    }

    /// Writes a register.
    pub fn write(self, register: Register, value: u32) {
        match self.mode {
            // SAFETY: the page is mapped, and the APIC touches no memory.
            Mode::XApic => unsafe { mmio::write32(DEFAULT_ADDRESS + u64::from(register), value) },
            // SAFETY: a register that is not there is #GP, which tests expect.
            Mode::X2Apic => unsafe {
                Msr::new(0x800 + (register >> 4)).write(u64::from(value));
            },
        }
    }

    /// Writes the interrupt command register and waits until it is sent.
    pub fn send(self, destination: u32, command: u32) {
        match self.mode {
            Mode::XApic => {
                self.write(register::ICR_HIGH, destination << 24);
                self.write(register::ICR_LOW, command);
                while self.read(register::ICR_LOW) & 1 << 12 != 0 {}
            }
            // SAFETY: the destination is this CPU or none in all tests of one CPU.
            Mode::X2Apic => unsafe {
                Msr::new(0x830).write(u64::from(destination) << 32 | u64::from(command));
            },
        }
    }

    /// Sends oneself the interrupt `vector`.
    pub fn send_self(self, vector: u8) {
        self.send(0, TO_SELF | ASSERT | u32::from(vector));
    }

    /// Ends the interrupt with the highest priority.
    pub fn end(self) {
        self.write(register::EOI, 0);
    }

    /// The CPU's APIC ID.
    #[must_use]
    pub fn id(self) -> u32 {
        let id = self.read(register::ID);
        if self.mode == Mode::XApic {
            id >> 24
        } else {
            id
        }
    }

    /// Whether `vector`'s bit is set in the 256-bit register at `first`: ISR, TMR or IRR.
    #[must_use]
    pub fn bit(self, first: Register, vector: u8) -> bool {
        self.read(first + 0x10 * u32::from(vector / 32)) & 1 << (vector % 32) != 0
    }
}
