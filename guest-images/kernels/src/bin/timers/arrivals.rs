//! When interrupts came, and when they should have.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kernels::interrupts::{Frame, let_in};
use kernels::lapic::Lapic;
use kernels::{Report, multiboot, pic, println, tsc};

/// The most arrivals that are noted.
pub(crate) const MOST: usize = 32;

static TIMES: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn note() {
    if let Some(place) = TIMES.get(COUNT.fetch_add(1, Ordering::Relaxed)) {
        place.store(tsc::now(), Ordering::Relaxed);
    }
}

/// Handles an interrupt that the local APIC brings.
pub(crate) fn note_lapic(_: &mut Frame) {
    note();
    Lapic::current().end();
}

/// Handles an interrupt that the 8259s bring.
pub(crate) fn note_pic(frame: &mut Frame) {
    note();
    pic::end((frame.vector as u8).wrapping_sub(pic::BASE));
}

/// Forgets all arrivals.
pub(crate) fn forget() {
    COUNT.store(0, Ordering::Relaxed);
}

/// Lets in what has come while results were printed, and forgets it.
pub(crate) fn drain() {
    let_in();
    let_in();
    forget();
}

/// How many interrupts have come.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// The TSC as a measure of time.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    hertz: u64,
    /// The ticks by which an interrupt may be late.
    slack: u64,
}

impl Time {
    pub(crate) fn new(hertz: u64, slack_us: u64) -> Self {
        let mut time = Self { hertz, slack: 0 };
        time.slack = time.ticks(slack_us, 1_000_000);
        time
    }

    /// The TSC's ticks in `count` periods of `frequency` Hz.
    pub(crate) fn ticks(self, count: u64, frequency: u64) -> u64 {
        (u128::from(count) * u128::from(self.hertz) / u128::from(frequency.max(1))) as u64
    }

    /// How late an interrupt may be, in ticks.
    pub(crate) fn slack(self) -> u64 {
        self.slack
    }

    /// Starts something by `start`, lets interrupts in until `n` have come, and checks that the
    /// k-th came k periods after the start, a period being `count` ticks of `frequency` Hz.
    pub(crate) fn expect(
        self,
        report: &mut Report,
        name: &str,
        (count_per_period, frequency): (u64, u64),
        n: usize,
        start: impl FnOnce(),
    ) {
        drain();
        let before = tsc::now();
        start();
        let after = tsc::now();
        let due = |k: usize| self.ticks(count_per_period * (k as u64 + 1), frequency);
        let deadline = due(n) + due(0) + 4 * self.slack;
        let _ = tsc::wait_until(deadline, || {
            let_in();
            count() >= n
        });
        report.equal(format_args!("{name}: interrupts"), count().min(n), n);
        let (mut early, mut late) = (0, 0);
        for (k, arrival) in TIMES.iter().take(n.min(count())).enumerate() {
            let arrival = arrival.load(Ordering::Relaxed);
            early = early.max((before + due(k)).saturating_sub(arrival));
            late = late.max(arrival.saturating_sub(after + due(k)));
        }
        if multiboot::has_word("verbose") {
            for arrival in TIMES.iter().take(n.min(count())) {
                println!("  {}", arrival.load(Ordering::Relaxed).wrapping_sub(before));
            }
        }
        // A device tick for where the start fell, and the error of the measured frequency.
        let grain = self.ticks(2, frequency) + due(n) / 2000;
        report.within(format_args!("{name}: ticks early"), early, 0..=grain);
        report.within(
            format_args!("{name}: ticks late"),
            late,
            0..=grain + self.slack,
        );
    }

    /// Checks that nothing comes for `count` ticks of `frequency` Hz.
    pub(crate) fn expect_none(
        self,
        report: &mut Report,
        name: &str,
        (count_, frequency): (u64, u64),
    ) {
        drain();
        let _ = tsc::wait_until(self.ticks(count_, frequency) + self.slack, || {
            let_in();
            false
        });
        report.equal(name, count(), 0);
    }

    /// Checks a counter of `frequency` Hz against the TSC over about `1 / per_second` s.
    pub(crate) fn expect_rate(
        self,
        report: &mut Report,
        name: &str,
        frequency: u64,
        per_second: u64,
        mut counted: impl FnMut() -> u64,
    ) {
        let before = tsc::now();
        let first = counted();
        let middle = tsc::now();
        tsc::wait(self.hertz / per_second);
        let after = tsc::now();
        let last = counted();
        let end = tsc::now();
        let ticks = last.wrapping_sub(first);
        let counts =
            |tsc: u64| (u128::from(tsc) * u128::from(frequency) / u128::from(self.hertz)) as u64;
        let (least, most) = (counts(after - middle), counts(end - before));
        let error = most / 2000 + 2;
        report.within(name, ticks, least.saturating_sub(error)..=most + error);
    }
}
