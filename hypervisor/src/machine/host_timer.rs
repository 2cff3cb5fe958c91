//! The CPU's own LAPIC timer: ends the sleep of an idle CPU (SDM vol. 3A, 11.5.4).

use arch::apic::{Register, divide, lvt};
use arch::msr::IA32_TSC_DEADLINE;
use devices::time::{Hertz, HostTicks};
use vmx::msr;

use super::cpu::trap::{self, TrapFrame};
use super::local_apic::LocalApic;
use super::{cpu, smp::kick};
use crate::machine::host_time::host_now;

/// The vector of the timer's interrupt, which does nothing but end a HLT.
const TIMER_VECTOR: u8 = 0xf0;

/// The mode of the LAPIC's timer, in which deadlines are set.
#[derive(Clone, Copy, Debug)]
enum Mode {
    TscDeadline,
    /// One-shot, at this frequency.
    OneShot(Hertz),
}

/// The timer of this CPU.
#[derive(Debug)]
pub(crate) struct HostTimer {
    apic: LocalApic,
    mode: Mode,
    tsc: Hertz,
}

fn on_timer(_: &mut TrapFrame) {
    LocalApic::current().end_interrupt();
}

impl HostTimer {
    /// Sets up the timer of this CPU, whose TSC counts `tsc` ticks a second. `deadline_works` says that
    /// the TSC-deadline mode can be relied on, if there is one.
    ///
    /// # Safety
    /// Interrupts are off; nothing else uses this CPU's LAPIC timer.
    #[must_use]
    pub(crate) unsafe fn new(apic: LocalApic, tsc: Hertz, deadline_works: bool) -> Self {
        trap::set_hook(TIMER_VECTOR, Some(on_timer));
        apic.write(Register::DIVIDE, divide::BY_1);
        let has_deadline = raw_cpuid::CpuId::new()
            .get_feature_info()
            .is_some_and(|features| features.has_tsc_deadline());
        let mode = if has_deadline && deadline_works {
            apic.write(
                Register::LVT_TIMER,
                lvt::TIMER_TSC_DEADLINE | u32::from(TIMER_VECTOR),
            );
            // A write of the deadline must not overtake that of the register in memory (SDM vol. 3A,
            // 11.5.4.1).
            // SAFETY: a fence has no other effect.
            unsafe { core::arch::x86_64::_mm_mfence() };
            Mode::TscDeadline
        } else {
            let frequency = measure(apic, tsc);
            apic.write(Register::LVT_TIMER, TIMER_VECTOR.into());
            Mode::OneShot(frequency)
        };
        Self { apic, mode, tsc }
    }

    /// Returns the frequency of the TSC.
    #[must_use]
    pub(crate) const fn tsc(&self) -> Hertz {
        self.tsc
    }

    /// Sleeps until host time `until`, or until it is [kicked](kick): not at all if it has been since it
    /// [began to look](kick::begin_to_look) for work.
    pub(crate) fn sleep_until(&self, until: HostTicks) {
        let now = host_now();
        if until <= now {
            return;
        }
        match self.mode {
            // SAFETY: the CPU has the MSR.
            Mode::TscDeadline => unsafe { msr::write(IA32_TSC_DEADLINE, until.0) },
            Mode::OneShot(frequency) => {
                let count = frequency.periods_in(until.since(now), self.tsc);
                let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
                self.apic.write(Register::INITIAL_COUNT, count);
            }
        }
        kick::halt();
        if host_now() < until {
            self.disarm();
        }
    }

    /// Has the timer not strike in a guest that is run now: it is for sleep alone.
    fn disarm(&self) {
        match self.mode {
            // SAFETY: the CPU has the MSR.
            Mode::TscDeadline => unsafe { msr::write(IA32_TSC_DEADLINE, 0) },
            Mode::OneShot(_) => self.apic.write(Register::INITIAL_COUNT, 0),
        }
        // It may have struck right before.
        cpu::take_pending_interrupts();
    }
}

/// Returns the frequency of the timer's input, by the TSC, over a millisecond.
fn measure(apic: LocalApic, tsc: Hertz) -> Hertz {
    apic.write(Register::LVT_TIMER, lvt::MASKED);
    apic.write(Register::INITIAL_COUNT, u32::MAX);
    let start = host_now();
    let length = tsc.get() / 1000;
    while host_now().since(start) < length {
        core::hint::spin_loop();
    }
    let counted = u64::from(u32::MAX - apic.read(Register::CURRENT_COUNT));
    let elapsed = host_now().since(start).max(1);
    apic.write(Register::INITIAL_COUNT, 0);
    let hz = u128::from(counted) * u128::from(tsc.get()) / u128::from(elapsed);
    Hertz::try_new(hz as u64).unwrap_or(tsc)
}
