//! A VCPU's view of the time-stamp counter.
//!
//! The VM has one counter line; a VCPU's TSC is that line plus an offset of its own. The
//! offset is what IA32_TSC_ADJUST shows: both start at zero, and whatever a write adds to
//! one of IA32_TIME_STAMP_COUNTER and IA32_TSC_ADJUST is added to the other
//! (SDM vol. 3B, 18.17.3). An INIT leaves all of them alone.

use arch::GeneralProtection;

use crate::clock::TscScaling;
use crate::time::{Now, TimerTicks};

/// The TSC of one VCPU, with the MSRs that belong to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tsc {
    /// Modulo 2^64, as the TSC is.
    offset: u64,
    aux: u32,
}

impl Tsc {
    /// Returns the TSC after power-up: the counter line itself, with IA32_TSC_ADJUST and
    /// IA32_TSC_AUX zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { offset: 0, aux: 0 }
    }

    /// Returns what RDTSC, or RDMSR of IA32_TIME_STAMP_COUNTER, returns.
    #[inline]
    #[must_use]
    pub const fn read(&self, now: Now) -> u64 {
        now.counter.0.wrapping_add(self.offset)
    }

    /// Takes WRMSR to IA32_TIME_STAMP_COUNTER: the TSC goes on from `value`.
    ///
    /// A TSC deadline that is armed is to be placed anew by [`Tsc::deadline`], after this
    /// and after [`Tsc::set_adjust`].
    pub const fn write(&mut self, now: Now, value: u64) {
        self.offset = value.wrapping_sub(now.counter.0);
    }

    /// Returns IA32_TSC_ADJUST.
    #[must_use]
    pub const fn adjust(&self) -> u64 {
        self.offset
    }

    /// Takes WRMSR to IA32_TSC_ADJUST: what is added to it is added to the TSC.
    pub const fn set_adjust(&mut self, value: u64) {
        self.offset = value;
    }

    /// Returns IA32_TSC_AUX, which RDTSCP and RDPID return.
    #[must_use]
    pub const fn aux(&self) -> u32 {
        self.aux
    }

    /// Takes WRMSR to IA32_TSC_AUX.
    ///
    /// # Errors
    /// If a reserved bit (63:32) is set; then IA32_TSC_AUX stays as it is.
    pub const fn set_aux(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value > u32::MAX as u64 {
            return Err(GeneralProtection);
        }
        self.aux = value as u32;
        Ok(())
    }

    /// Returns the VMCS fields with which RDTSC shows this TSC, given those that show the VM's
    /// counter line.
    #[must_use]
    pub const fn scaling(&self, counter: TscScaling) -> TscScaling {
        TscScaling {
            multiplier: counter.multiplier,
            offset: counter.offset.wrapping_add(self.offset),
        }
    }

    /// Returns when the TSC reaches `value`, a value of IA32_TSC_DEADLINE; now, if it has.
    #[must_use]
    pub const fn deadline(&self, now: Now, value: u64) -> TimerTicks {
        now.timer
            .saturating_add(value.saturating_sub(self.read(now)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Rate, Rates, VirtualClock};
    use crate::time::{CounterTicks, HostTicks};

    fn at(ticks: u64) -> Now {
        Now {
            counter: CounterTicks(ticks),
            timer: TimerTicks(ticks),
        }
    }

    proptest! {
        #[test]
        fn what_a_write_adds_to_one_is_added_to_the_other(
            now: u64, start: u64, tsc: u64, adjust: u64,
        ) {
            let now = at(now);
            let mut vcpu = Tsc::new();
            vcpu.set_adjust(start);
            let before = (vcpu.read(now), vcpu.adjust());
            vcpu.write(now, tsc);
            prop_assert_eq!(vcpu.read(now), tsc);
            prop_assert_eq!(
                vcpu.adjust().wrapping_sub(before.1),
                vcpu.read(now).wrapping_sub(before.0)
            );
            let before = (vcpu.read(now), vcpu.adjust());
            vcpu.set_adjust(adjust);
            prop_assert_eq!(vcpu.adjust(), adjust);
            prop_assert_eq!(
                vcpu.read(now).wrapping_sub(before.0),
                vcpu.adjust().wrapping_sub(before.1)
            );
        }

        #[test]
        fn a_written_tsc_goes_on_from_its_value(now in 0..1u64 << 62, value: u64, later in 0..1u64 << 62) {
            let mut vcpu = Tsc::new();
            vcpu.write(at(now), value);
            prop_assert_eq!(vcpu.read(at(now + later)), value.wrapping_add(later));
        }

        #[test]
        fn a_deadline_is_reached_when_the_tsc_shows_it(
            now in 0..1u64 << 62, tsc in 0..1u64 << 62, ahead in 1..1u64 << 40,
        ) {
            let mut vcpu = Tsc::new();
            vcpu.write(at(now), tsc);
            let due = vcpu.deadline(at(now), tsc + ahead);
            prop_assert_eq!(vcpu.read(at(due.0)), tsc + ahead);
            prop_assert_eq!(vcpu.deadline(at(now), tsc), TimerTicks(now));
            prop_assert_eq!(vcpu.deadline(at(now), 0), TimerTicks(now));
        }
    }

    #[test]
    fn rdtsc_without_an_exit_shows_the_same_as_the_msr() {
        let mut clock = VirtualClock::new(HostTicks(1_000));
        let rate = Rate::times(10).unwrap();
        clock.set_rates(
            HostTicks(5_000),
            Rates {
                counter: rate,
                timer: rate,
            },
        );
        let mut vcpu = Tsc::new();
        vcpu.write(clock.now(HostTicks(6_000)), 3);
        let host = HostTicks(7_777);
        assert_eq!(
            vcpu.scaling(clock.tsc_scaling()).apply(host).0,
            vcpu.read(clock.now(host))
        );
        assert_eq!(vcpu.read(clock.now(host)), 3 + 17_770);
    }

    #[test]
    fn aux_holds_32_bits() {
        let mut vcpu = Tsc::new();
        assert_eq!(vcpu.set_aux(0xFFFF_FFFF), Ok(()));
        assert_eq!(vcpu.set_aux(0x1_0000_0000), Err(GeneralProtection));
        assert_eq!(vcpu.aux(), 0xFFFF_FFFF);
    }
}
