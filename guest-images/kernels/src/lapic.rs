//! The local APIC, by memory (xAPIC) or by MSRs (x2APIC). SDM vol. 3A, chapter 11.

use core::arch::x86_64::__cpuid;

use arch::ApicBaseFlags;
use arch::apic::{DEFAULT_ADDRESS, Register, icr, svr};
use arch::cpuid::Leaf1Ecx;
use arch::msr::IA32_APIC_BASE;
use x86_64::registers::model_specific::Msr;

use crate::mmio;

/// IA32_APIC_BASE: the APIC is enabled.
pub const GLOBAL_ENABLE: u64 = ApicBaseFlags::LAPIC_ENABLE.bits();
/// IA32_APIC_BASE: x2APIC mode.
pub const X2APIC_ENABLE: u64 = ApicBaseFlags::X2APIC_ENABLE.bits();

/// The spurious vector that [`Lapic::enable`] sets.
pub const SPURIOUS: u8 = 0xff;

/// The way in which the registers are accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The xAPIC mode: by memory.
    XApic,
    /// The x2APIC mode: by MSRs.
    X2Apic,
}

/// The CPU's local APIC.
#[derive(Clone, Copy, Debug)]
pub struct Lapic {
    mode: Mode,
}

/// Returns IA32_APIC_BASE.
#[must_use]
pub fn base() -> u64 {
    // SAFETY: every CPU with an APIC has the MSR.
    unsafe { Msr::new(IA32_APIC_BASE).read() }
}

/// Writes IA32_APIC_BASE. An illegal value is #GP: see [`crate::interrupts::catch`].
pub fn set_base(value: u64) {
    // SAFETY: tests give the page a place where no memory in use is.
    unsafe { Msr::new(IA32_APIC_BASE).write(value) }
}

/// Returns whether the CPU has x2APIC mode.
#[must_use]
pub fn has_x2apic() -> bool {
    Leaf1Ecx::from_bits_retain(__cpuid(1).ecx).contains(Leaf1Ecx::X2APIC)
}

/// Returns whether the timer has TSC-deadline mode.
#[must_use]
pub fn has_tsc_deadline() -> bool {
    Leaf1Ecx::from_bits_retain(__cpuid(1).ecx).contains(Leaf1Ecx::TSC_DEADLINE)
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
        lapic.write(Register::SVR, svr::ENABLED | u32::from(SPURIOUS));
        lapic
    }

    /// Returns the APIC in the mode that it is in.
    #[must_use]
    pub fn current() -> Self {
        let mode = if base() & X2APIC_ENABLE == 0 {
            Mode::XApic
        } else {
            Mode::X2Apic
        };
        Self { mode }
    }

    /// Returns the mode it is in.
    #[must_use]
    pub fn mode(self) -> Mode {
        self.mode
    }

    /// Reads a register.
    #[must_use]
    pub fn read(self, register: Register) -> u32 {
        match self.mode {
            // SAFETY: the page is mapped, and reads touch no memory.
            Mode::XApic => unsafe { mmio::read32(DEFAULT_ADDRESS + u64::from(register.offset())) },
            // SAFETY: a register that is not there is #GP, which tests expect.
            Mode::X2Apic => unsafe { Msr::new(register.msr()).read() as u32 },
        }
    }

    /// Writes a register.
    pub fn write(self, register: Register, value: u32) {
        match self.mode {
            // SAFETY: the page is mapped, and the APIC touches no memory.
            Mode::XApic => unsafe {
                mmio::write32(DEFAULT_ADDRESS + u64::from(register.offset()), value)
            },
            // SAFETY: a register that is not there is #GP, which tests expect.
            Mode::X2Apic => unsafe {
                Msr::new(register.msr()).write(u64::from(value));
            },
        }
    }

    /// Writes the interrupt command register and waits until it is sent.
    pub fn send(self, destination: u32, command: u32) {
        match self.mode {
            Mode::XApic => {
                self.write(Register::ICR_HIGH, destination << 24);
                self.write(Register::ICR_LOW, command);
                while self.read(Register::ICR_LOW) & icr::DELIVERY_STATUS != 0 {}
            }
            // SAFETY: the destination is this CPU or none in all tests of one CPU.
            Mode::X2Apic => unsafe {
                Msr::new(Register::ICR_LOW.msr())
                    .write(u64::from(destination) << 32 | u64::from(command));
            },
        }
    }

    /// Sends oneself the interrupt `vector`.
    pub fn send_self(self, vector: u8) {
        self.send(0, icr::TO_SELF | icr::ASSERT | u32::from(vector));
    }

    /// Ends the interrupt with the highest priority.
    pub fn end(self) {
        self.write(Register::EOI, 0);
    }

    /// Returns the CPU's APIC ID.
    #[must_use]
    pub fn id(self) -> u32 {
        let id = self.read(Register::ID);
        if self.mode == Mode::XApic {
            id >> 24
        } else {
            id
        }
    }

    /// Returns whether `vector`'s bit is set in the 256-bit register at `first`: ISR, TMR or IRR.
    #[must_use]
    pub fn bit(self, first: Register, vector: u8) -> bool {
        self.read(first.holding(vector)) & 1 << (vector % 32) != 0
    }
}
