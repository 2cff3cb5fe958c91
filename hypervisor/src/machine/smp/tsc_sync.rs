//! Whether two CPUs' TSCs agree.
//!
//! Guests' time derives from the TSC of whichever CPU a VCPU is on, so the TSCs must show the
//! same at the same time. The two CPUs play ball: the new CPU reads its TSC, asks, gets the
//! reading of the boot CPU, and reads again. The boot CPU's reading was taken between the
//! new CPU's two, so each round bounds the skew from below and from above, and all rounds
//! together bound it by the intersection. If zero lies within, no message between the two
//! CPUs can ever show time going back, which is all that anyone can find out. If not, the new
//! CPU's TSC is adjusted by the middle of the bounds.

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::msr::IA32_TSC_ADJUST;
use vmx::msr;

/// Rounds of a comparison: the more, the surer is one without a delay.
const ROUNDS: u32 = 64;

/// The lead of a CPU's TSC over the boot CPU's, in ticks: between two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skew {
    least: i64,
    most: i64,
}

impl Skew {
    const UNKNOWN: Self = Self {
        least: i64::MIN,
        most: i64::MAX,
    };

    /// Takes in what one round tells: the boot CPU's TSC was `theirs` at some moment between our
    /// readings `before` and `after`.
    fn refine(&mut self, before: u64, theirs: u64, after: u64) {
        self.least = self.least.max(before.wrapping_sub(theirs) as i64);
        self.most = self.most.min(after.wrapping_sub(theirs) as i64);
    }

    /// Returns whether the two may well show the same.
    #[must_use]
    pub(crate) const fn is_none(self) -> bool {
        self.least <= 0 && self.most >= 0
    }

    /// Returns the most likely value.
    const fn middle(self) -> i64 {
        (self.least & self.most) + ((self.least ^ self.most) >> 1)
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} ticks", self.least, self.most)
    }
}

/// The meeting place of two CPUs that compare their TSCs.
#[derive(Debug)]
pub(crate) struct Comparison {
    joined: AtomicBool,
    asked: AtomicU32,
    answered: AtomicU32,
    answer: AtomicU64,
}

/// A question that means that there are no more.
const FINISHED: u32 = u32::MAX;

fn tsc() -> u64 {
    // SAFETY: reads a counter; the fences keep it where it stands.
    unsafe {
        _mm_lfence();
        let tsc = _rdtsc();
        _mm_lfence();
        tsc
    }
}

impl Comparison {
    pub(super) const fn new() -> Self {
        Self {
            joined: AtomicBool::new(false),
            asked: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            answer: AtomicU64::new(0),
        }
    }

    /// Makes ready for another CPU, when none is taking part.
    pub(super) fn reset(&self) {
        self.asked.store(0, Ordering::Relaxed);
        self.answered.store(0, Ordering::Relaxed);
        self.joined.store(false, Ordering::SeqCst);
    }

    /// Returns whether the other CPU has come.
    pub(super) fn has_joined(&self) -> bool {
        self.joined.load(Ordering::Acquire)
    }

    /// Answers, on the boot CPU, with its TSC until the other has finished.
    pub(super) fn answer(&self) {
        let mut done = 0;
        loop {
            let asked = self.asked.load(Ordering::Acquire);
            if asked == FINISHED {
                return;
            }
            if asked != done {
                self.answer.store(tsc(), Ordering::Relaxed);
                self.answered.store(asked, Ordering::Release);
                done = asked;
            }
            core::hint::spin_loop();
        }
    }

    /// Ends, on the new CPU, the boot CPU's answering, and joins for that if need be.
    pub(super) fn finish(&self) {
        self.asked.store(FINISHED, Ordering::Release);
        self.joined.store(true, Ordering::Release);
    }

    /// Measures, on the new CPU, how far its TSC is ahead.
    pub(super) fn measure(&self) -> Skew {
        self.joined.store(true, Ordering::Release);
        let mut skew = Skew::UNKNOWN;
        for round in 1..=ROUNDS {
            let before = tsc();
            self.asked.store(round, Ordering::Release);
            while self.answered.load(Ordering::Acquire) != round {
                core::hint::spin_loop();
            }
            let after = tsc();
            skew.refine(before, self.answer.load(Ordering::Relaxed), after);
        }
        self.finish();
        skew
    }
}

/// Moves this CPU's TSC by the opposite of `skew`. False if the CPU cannot do that exactly,
/// for want of IA32_TSC_ADJUST.
///
/// # Safety
/// Nothing on this CPU depends on its TSC yet.
pub(super) unsafe fn adjust(skew: Skew) -> bool {
    let has_adjust = raw_cpuid::CpuId::new()
        .get_extended_feature_info()
        .is_some_and(|features| features.has_tsc_adjust_msr());
    if has_adjust {
        // SAFETY: the MSR exists, and by the caller nobody minds.
        unsafe {
            let old = msr::read(IA32_TSC_ADJUST);
            msr::write(IA32_TSC_ADJUST, old.wrapping_sub(skew.middle() as u64));
        }
    }
    has_adjust
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_narrow_the_bounds_and_a_delayed_one_does_no_harm() {
        let mut skew = Skew::UNKNOWN;
        // Ours is 1000 ahead; the answer comes in the middle of a round trip of 40, then of
        // 10,000, then of 20.
        for (before, theirs, after) in [(5_000, 4_020, 5_040), (6_000, 10_000, 16_000)] {
            skew.refine(before, theirs, after);
        }
        assert_eq!(
            skew,
            Skew {
                least: 980,
                most: 1_020
            }
        );
        skew.refine(20_000, 19_010, 20_020);
        assert_eq!(
            skew,
            Skew {
                least: 990,
                most: 1_010
            }
        );
        assert_eq!(skew.middle(), 1_000);
        assert!(!skew.is_none());
    }

    #[test]
    fn synchronous_tscs_show_no_skew_even_where_they_do_not_move_within_a_round() {
        let mut skew = Skew::UNKNOWN;
        skew.refine(100, 100, 100);
        skew.refine(200, 210, 230);
        assert!(skew.is_none());
    }

    #[test]
    fn a_tsc_that_started_before_ours_is_behind_by_the_same() {
        let mut skew = Skew::UNKNOWN;
        skew.refine(10, u64::MAX - 89, 30);
        assert_eq!(
            skew,
            Skew {
                least: 100,
                most: 120
            }
        );
        let mut behind = Skew::UNKNOWN;
        behind.refine(0, 50, 10);
        assert_eq!(behind.middle(), -45);
    }

    #[test]
    fn two_threads_on_one_machine_agree() {
        let comparison = std::sync::Arc::new(Comparison::new());
        let other = comparison.clone();
        let new_cpu = std::thread::spawn(move || other.measure());
        while !comparison.has_joined() {
            std::thread::yield_now();
        }
        comparison.answer();
        assert!(new_cpu.join().unwrap().is_none());
    }
}
