//! Whole schedules: a guest with a tick and time slices, on the virtual clock, under the
//! policy. What the paper measures on Xen is measured here in no time.

use std::vec::Vec;

use devices::clock::{Rates, VirtualClock};
use devices::time::{HostTicks, TimerTicks};
use proptest::prelude::*;

use super::policy::{Event, Paper, Suppression};
use super::{Factor, Factors};

/// Ticks of the TSC in a millisecond, at 1 GHz.
const MS: u64 = 1_000_000;

fn factors(n: u32) -> Factors {
    Factors::both(Factor::new(n).unwrap())
}

/// How the guest's scheduler finds out that a slice is over.
#[derive(Clone, Copy, PartialEq)]
enum SliceBy {
    /// So many timer interrupts.
    Ticks(u64),
    /// So much readable time, looked at in each timer interrupt.
    Clock(u64),
}

/// A turn of a process: who, from when to when in host ticks, and how often the tick came.
#[derive(Clone, Debug, PartialEq)]
struct Turn {
    process: usize,
    start: u64,
    end: u64,
    ticks: u64,
}

impl Turn {
    fn length(&self) -> u64 {
        self.end - self.start
    }
}

/// A guest with one VCPU, a periodic tick and processes that take turns.
struct Guest {
    clock: VirtualClock,
    suppression: Suppression<Paper>,
    tick: u64,
    next_tick: u64,
    slice: SliceBy,
    /// Whether the process at this index is a target.
    targets: Vec<Option<Factors>>,
    /// Whether the process halts (sleeps, with nothing else to run) after so much host time.
    halts_after: Vec<Option<u64>>,
    current: usize,
    now: u64,
}

impl Guest {
    fn new(processes: usize, slice: SliceBy) -> Self {
        Self {
            clock: VirtualClock::new(HostTicks(0)),
            suppression: Suppression::new(Paper, 1, HostTicks(0)),
            tick: 10 * MS,
            next_tick: 10 * MS,
            slice,
            targets: std::vec![None; processes],
            halts_after: std::vec![None; processes],
            current: 0,
            now: 0,
        }
    }

    fn event(&mut self, event: Event) {
        let now = HostTicks(self.now);
        let rates = self.suppression.handle(now, 0, event).rates;
        if rates != self.clock.rates() {
            self.clock.set_rates(now, rates);
        }
    }

    fn switch_in(&mut self) {
        match self.targets[self.current] {
            Some(factors) => self.event(Event::TargetIn(factors)),
            None => self.event(Event::TargetOut),
        }
    }

    fn suppress(&mut self, process: usize, factors: Factors) {
        self.targets[process] = Some(factors);
        self.switch_in();
    }

    fn release(&mut self, process: usize) {
        self.targets[process] = None;
        self.switch_in();
    }

    fn readable_time(&self) -> u64 {
        self.clock.now(HostTicks(self.now)).counter.0
    }

    /// Runs the current process until its slice is over, and switches to the next.
    fn turn(&mut self) -> Turn {
        let start = self.now;
        let clock_start = self.readable_time();
        let process = self.current;
        let mut ticks = 0;
        loop {
            let tick_at = self.clock.host_deadline(TimerTicks(self.next_tick)).0;
            if let Some(after) = self.halts_after[process]
                && start + after < tick_at
                && self.now < start + after
            {
                self.now = start + after;
                self.event(Event::Halt);
                continue;
            }
            self.now = tick_at;
            self.next_tick += self.tick;
            self.event(Event::Wake);
            self.event(Event::InterruptInjected);
            ticks += 1;
            let over = match self.slice {
                SliceBy::Ticks(count) => ticks == count,
                SliceBy::Clock(length) => self.readable_time() - clock_start >= length,
            };
            if over {
                break;
            }
            // The handler takes no time here, and returns to the process.
            self.event(Event::UserMode);
        }
        self.current = (process + 1) % self.targets.len();
        self.switch_in();
        Turn {
            process,
            start,
            end: self.now,
            ticks,
        }
    }

    fn turns(&mut self, count: usize) -> Vec<Turn> {
        (0..count).map(|_| self.turn()).collect()
    }

    /// The share of host time that `process` gets over `count` turns.
    fn share(&mut self, process: usize, count: usize) -> f64 {
        let turns = self.turns(count);
        let all: u64 = turns.iter().map(Turn::length).sum();
        let own: u64 = turns
            .iter()
            .filter(|turn| turn.process == process)
            .map(Turn::length)
            .sum();
        own as f64 / all as f64
    }
}

/// While the guest's kernel handles an interrupt, time is real; a handler that does not return
/// to user mode is given up waiting for.
#[test]
fn the_handler_of_an_interrupt_runs_in_real_time() {
    let mut suppression = Suppression::new(Paper, 1, HostTicks(0));
    let factors = Factors::both(Factor::new(1000).unwrap());
    let mut at = |now, event| suppression.handle(HostTicks(now), 0, event);
    assert_eq!(at(10, Event::TargetIn(factors)).rates, factors.rates());
    let handler = at(20, Event::InterruptInjected);
    assert_eq!(handler.rates, Rates::REAL_TIME);
    let look = handler
        .reconsider_at
        .expect("the end of the handler is looked for");
    assert_eq!(at(look.0, Event::Time).rates, Rates::REAL_TIME);
    assert_eq!(at(look.0 + 1, Event::UserMode).rates, factors.rates());
    at(2_000, Event::InterruptInjected);
    let late = at(1_000_000, Event::Time);
    assert_eq!((late.rates, late.reconsider_at), (factors.rates(), None));
}

/// On a machine with slow exits a handler lasts longer, and is waited for.
#[test]
fn a_handler_has_as_long_as_the_machine_needs() {
    let mut suppression = Suppression::new(Paper, 1, HostTicks(0));
    suppression.set_longest_handler(500_000);
    suppression.handle(HostTicks(0), 0, Event::TargetIn(factors(1000)));
    suppression.handle(HostTicks(10), 0, Event::InterruptInjected);
    let mut rates = |at| suppression.handle(HostTicks(at), 0, Event::Time).rates;
    assert_eq!(rates(400_000), Rates::REAL_TIME);
    assert_eq!(rates(500_010), factors(1000).rates());
}

/// Two processes, a tick of 10 ms, slices of 40 ms, N = 2.
#[test]
fn figure_1() {
    for slice in [SliceBy::Ticks(4), SliceBy::Clock(40 * MS)] {
        let mut guest = Guest::new(2, slice);
        guest.suppress(0, factors(2));
        let turns = guest.turns(6);
        let lengths: Vec<u64> = turns.iter().map(|turn| turn.length() / MS).collect();
        assert_eq!(lengths, [20, 40, 20, 40, 20, 40]);
        assert!(turns.iter().all(|turn| turn.ticks == 4));
        // The guest believes in 40 ms for each.
        assert_eq!(guest.readable_time(), 240 * MS);
        assert_eq!(guest.now, 180 * MS);
        assert_eq!(guest.suppression.lead(HostTicks(guest.now)), 60 * MS as i64);
    }
}

#[test]
fn section_5_at_n_1000() {
    let mut guest = Guest::new(3, SliceBy::Clock(40 * MS));
    guest.suppress(1, factors(1000));
    let turns = guest.turns(9);
    for turn in &turns {
        let expected = if turn.process == 1 {
            40 * MS / 1000
        } else {
            40 * MS
        };
        assert_eq!(turn.length(), expected);
    }
    assert!(guest.share(1, 9) < 0.001);
}

#[test]
fn the_others_get_what_the_target_loses() {
    let mut guest = Guest::new(3, SliceBy::Ticks(4));
    let before = guest.share(0, 9);
    guest.suppress(1, factors(1000));
    let during = guest.share(0, 9);
    guest.release(1);
    let after = guest.share(0, 9);
    assert!((before - 1.0 / 3.0).abs() < 1e-9);
    assert!((during / before - 1.5).abs() < 0.002);
    assert!((after - before).abs() < 1e-9);
}

#[test]
fn release_in_the_middle_of_a_slice() {
    let mut guest = Guest::new(2, SliceBy::Ticks(4));
    guest.suppress(0, factors(2));
    guest.now = 10 * MS;
    guest.release(0);
    // Half of its guest slice is over by then; the other half is in real time.
    assert_eq!(guest.turn().end, 10 * MS + 20 * MS);
}

/// A target that sleeps is no target: its address space stays loaded while the VCPU idles.
#[test]
fn the_clock_of_a_halted_target_runs_in_real_time() {
    let mut guest = Guest::new(2, SliceBy::Ticks(1));
    guest.suppress(0, factors(10));
    // Half a millisecond of its own is 5 ms of guest time; the rest to the tick is idle.
    guest.halts_after[0] = Some(MS / 2);
    let turn = guest.turn();
    assert_eq!(turn.length(), MS / 2 + 5 * MS);
    assert_eq!(
        guest.suppression.lead(HostTicks(guest.now)),
        9 * MS as i64 / 2
    );
}

/// The interval alone is no use against a scheduler that looks at the clock, and the clock
/// alone none against one that counts ticks.
#[test]
fn each_knob_alone_deceives_only_those_who_trust_it() {
    let one = Factor::new(1).unwrap();
    let ten = Factor::new(10).unwrap();
    let interval = Factors {
        interval: ten,
        clock: one,
    };
    let clock = Factors {
        interval: one,
        clock: ten,
    };
    for (factors, slice, expected) in [
        (interval, SliceBy::Ticks(4), 4 * MS),
        (interval, SliceBy::Clock(40 * MS), 40 * MS),
        (clock, SliceBy::Ticks(4), 40 * MS),
        // The clock says 40 ms after 4, but the scheduler looks just at the next tick.
        (clock, SliceBy::Clock(40 * MS), 10 * MS),
    ] {
        let mut guest = Guest::new(2, slice);
        guest.suppress(0, factors);
        assert_eq!(guest.turn().length(), expected);
    }
}

#[test]
fn of_several_vcpus_one_with_a_target_is_enough() {
    let mut suppression = Suppression::new(Paper, 2, HostTicks(0));
    let mut rates = |at, vcpu, event| suppression.handle(HostTicks(at), vcpu, event).rates;
    assert_eq!(rates(0, 1, Event::TargetIn(factors(5))), factors(5).rates());
    assert_eq!(rates(1, 0, Event::TargetIn(factors(7))), factors(7).rates());
    assert_eq!(rates(2, 0, Event::Halt), factors(5).rates());
    assert_eq!(rates(3, 1, Event::TargetOut), Rates::REAL_TIME);
    assert_eq!(rates(4, 0, Event::Wake), factors(7).rates());
    assert_eq!(
        rates(5, 99, Event::TargetIn(factors(9))),
        factors(7).rates()
    );
}

/// A policy to come: it gives the lead back, while innocents run, at half speed.
struct GiveBack;

impl super::policy::Policy for GiveBack {
    fn decide(
        &mut self,
        now: HostTicks,
        situation: &super::policy::Situation,
    ) -> super::policy::Decision {
        let half = devices::clock::Rate::from_bits(devices::clock::Rate::ONE.bits() / 2).unwrap();
        match situation.running_targets {
            Some(factors) => super::policy::Decision::run(factors.rates()),
            None if situation.lead > 0 => super::policy::Decision {
                rates: Rates {
                    counter: half,
                    timer: half,
                },
                pause_until: None,
                reconsider_at: Some(now.saturating_add(2 * situation.lead as u64)),
            },
            None => super::policy::Decision::run(Rates::REAL_TIME),
        }
    }
}

#[test]
fn a_policy_can_give_the_lead_back() {
    let mut suppression = Suppression::new(GiveBack, 1, HostTicks(0));
    suppression.handle(HostTicks(0), 0, Event::TargetIn(factors(11)));
    let decision = suppression.handle(HostTicks(100), 0, Event::TargetOut);
    assert_eq!(decision.reconsider_at, Some(HostTicks(100 + 2000)));
    let decision = suppression.handle(HostTicks(2100), 0, Event::Time);
    assert_eq!(decision.rates, Rates::REAL_TIME);
    assert_eq!(suppression.lead(HostTicks(5000)), 0);
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1u32..65_536, 1u32..65_536).prop_map(|(interval, clock)| Event::TargetIn(Factors {
            interval: Factor::new(interval).unwrap(),
            clock: Factor::new(clock).unwrap(),
        })),
        Just(Event::TargetOut),
        Just(Event::Halt),
        Just(Event::Wake),
        Just(Event::UserMode),
        Just(Event::KernelMode),
        Just(Event::InterruptInjected),
        Just(Event::Time),
    ]
}

proptest! {
    /// After any history, the lead is what the clock shows beyond real time.
    #[test]
    fn the_lead_is_exact(history in prop::collection::vec((0u64..1_000_000, events()), 1..200)) {
        let mut guest = Guest::new(1, SliceBy::Ticks(1));
        for (pause, event) in history {
            guest.now += pause;
            guest.event(event);
        }
        let lead = guest.readable_time() as i64 - guest.now as i64;
        prop_assert_eq!(guest.suppression.lead(HostTicks(guest.now)), lead);
    }

    /// Without a target in, time is real, whatever else has happened.
    #[test]
    fn no_target_no_effect(
        history in prop::collection::vec((0usize..8, events()), 0..100), at in 0u64..1000,
    ) {
        let mut suppression = Suppression::new(Paper, 8, HostTicks(0));
        for (vcpu, event) in history {
            suppression.handle(HostTicks(at), vcpu, event);
        }
        for vcpu in 0..8 {
            suppression.handle(HostTicks(at), vcpu, Event::TargetOut);
        }
        prop_assert_eq!(suppression.decision().rates, Rates::REAL_TIME);
    }
}
