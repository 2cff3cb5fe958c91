//! The CPU's own LAPIC timer: ends the sleep of an idle CPU (SDM vol. 3A, 12.5.4).

use core::arch::asm;

use devices::time::{Hertz, HostTicks};
use vmx::msr;

use super::cpu::trap::{self, TrapFrame};
use crate::host_time::host_now;

/// The vector of the timer's interrupt, which does nothing but end a HLT.
const TIMER_VECTOR: u8 = 0xf0;
/// The vector of spurious interrupts, which need no EOI.
const SPURIOUS_VECTOR: u8 = 0xff;

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const TSC_DEADLINE: u32 = 0x6e0;

const EOI: u32 = 0x0b;
const SVR: u32 = 0x0f;
const SVR_ENABLED: u32 = 1 << 8;
const LVT_TIMER: u32 = 0x32;
const LVT_MODE_TSC_DEADLINE: u32 = 0b10 << 17;
const LVT_MASKED: u32 = 1 << 16;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
const DIVIDE_BY_1: u32 = 0b1011;

/// How the registers are reached. The index is the MSR's distance from 0x800, which is a
/// sixteenth of the offset in the page.
#[derive(Clone, Copy, Debug)]
enum Access {
    Page(u64),
    Msrs,
}

/// How a deadline is set.
#[derive(Clone, Copy, Debug)]
enum Mode {
    TscDeadline,
    /// One-shot, at this frequency.
    OneShot(Hertz),
}

/// The timer of this CPU.
#[derive(Debug)]
pub struct HostTimer {
    access: Access,
    mode: Mode,
    tsc: Hertz,
}

impl Access {
    fn write(self, index: u32, value: u32) {
        // SAFETY: the registers used here exist on every LAPIC, and none of them touches
        // memory that Rust knows of. The page is mapped one to one.
        unsafe {
            match self {
                Self::Page(base) => {
                    ((base + u64::from(index) * 16) as *mut u32).write_volatile(value);
                }
                Self::Msrs => msr::write(0x800 + index, value.into()),
            }
        }
    }

    fn read(self, index: u32) -> u32 {
        // SAFETY: as for writing.
        unsafe {
            match self {
                Self::Page(base) => ((base + u64::from(index) * 16) as *const u32).read_volatile(),
                Self::Msrs => msr::read(0x800 + index) as u32,
            }
        }
    }

    fn current() -> Self {
        // SAFETY: every 64-bit CPU has IA32_APIC_BASE.
        let base = unsafe { msr::read(APIC_BASE) };
        if base & APIC_BASE_X2APIC != 0 {
            Self::Msrs
        } else {
            Self::Page(base & 0x000f_ffff_ffff_f000)
        }
    }
}

fn on_timer(_: &mut TrapFrame) {
    Access::current().write(EOI, 0);
}

fn on_spurious(_: &mut TrapFrame) {}

impl HostTimer {
    /// Sets up the LAPIC of this CPU, whose TSC counts `tsc` ticks a second.
    ///
    /// # Safety
    /// Ring 0, interrupts off; nothing else uses this CPU's LAPIC; its page is mapped one to
    /// one.
    #[must_use]
    pub unsafe fn new(tsc: Hertz) -> Self {
        trap::set_hook(TIMER_VECTOR, Some(on_timer));
        trap::set_hook(SPURIOUS_VECTOR, Some(on_spurious));
        // SAFETY: every 64-bit CPU has IA32_APIC_BASE; enabling the APIC where it is changes
        // nothing else.
        unsafe { msr::write(APIC_BASE, msr::read(APIC_BASE) | APIC_BASE_ENABLED) };
        let access = Access::current();
        access.write(SVR, SVR_ENABLED | u32::from(SPURIOUS_VECTOR));
        access.write(DIVIDE, DIVIDE_BY_1);
        let has_deadline = raw_cpuid::CpuId::new()
            .get_feature_info()
            .is_some_and(|features| features.has_tsc_deadline());
        let mode = if has_deadline {
            access.write(LVT_TIMER, LVT_MODE_TSC_DEADLINE | u32::from(TIMER_VECTOR));
            Mode::TscDeadline
        } else {
            let frequency = measure(access, tsc);
            access.write(LVT_TIMER, TIMER_VECTOR.into());
            Mode::OneShot(frequency)
        };
        Self { access, mode, tsc }
    }

    /// Sleeps until host time `until`, or until another interrupt.
    pub fn sleep_until(&self, until: HostTicks) {
        let now = host_now();
        if until <= now {
            return;
        }
        match self.mode {
            // SAFETY: the CPU has the MSR.
            Mode::TscDeadline => unsafe { msr::write(TSC_DEADLINE, until.0) },
            Mode::OneShot(frequency) => {
                let count = frequency.periods_in(until.since(now), self.tsc);
                let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
                self.access.write(INITIAL_COUNT, count);
            }
        }
        // SAFETY: interrupts are let in for the HLT alone; their handlers return, and change
        // nothing but the LAPIC. STI takes effect after HLT has begun, so that none is lost.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
    }
}

/// The frequency of the timer's input, by the TSC, over a millisecond.
fn measure(access: Access, tsc: Hertz) -> Hertz {
    access.write(LVT_TIMER, LVT_MASKED);
    access.write(INITIAL_COUNT, u32::MAX);
    let start = host_now();
    let length = tsc.get() / 1000;
    while host_now().since(start) < length {
        core::hint::spin_loop();
    }
    let counted = u64::from(u32::MAX - access.read(CURRENT_COUNT));
    let elapsed = host_now().since(start).max(1);
    access.write(INITIAL_COUNT, 0);
    let hz = u128::from(counted) * u128::from(tsc.get()) / u128::from(elapsed);
    Hertz::try_new(hz as u64).unwrap_or(tsc)
}
