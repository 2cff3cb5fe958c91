//! The paper's figure and experiment, in its own policy: a guest with a tick and time slices, whose
//! handlers and switches take no time.

use std::vec::Vec;

use devices::clock::VirtualClock;
use devices::time::{HostTicks, TimerTicks};
use proptest::prelude::*;

use super::machine::{MS, TSC};
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::handler::Context;
use crate::suppression::kernel_thread::Thread;
use crate::suppression::order::{Defaults, Follow, Order, Policy};
use crate::suppression::{Event, Factor, Factors, Observation, Suppression};
use crate::test_ram::TestRam;

const FORMAT: RootFormat = RootFormat::Long;

fn factors(n: u32) -> Factors {
    Factors::both(Factor::new(n).unwrap())
}

/// The measure by which the guest's scheduler finds out that a slice is over.
#[derive(Clone, Copy, PartialEq)]
enum SliceBy {
    /// A number of timer interrupts.
    Ticks(u64),
    /// An amount of readable time, looked at in each timer interrupt.
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
    ram: TestRam,
    clock: VirtualClock,
    suppression: Suppression,
    tick: u64,
    next_tick: u64,
    slice: SliceBy,
    /// Whether the process at this index halts (sleeps, with nothing else to run) after so much host
    /// time.
    halts_after: Vec<Option<u64>>,
    current: usize,
    now: u64,
}

impl Guest {
    fn new(processes: usize, slice: SliceBy) -> Self {
        let ram = TestRam::new(0x1000 * (processes + 1));
        for process in 0..processes {
            let root = Self::cr3(process);
            ram.write_u64(root, (0x10_0000 + root) | 0x67);
        }
        let mut guest = Self {
            ram,
            clock: VirtualClock::new(HostTicks(0)),
            suppression: Suppression::new(Defaults::default(), 1, TSC, HostTicks(0)),
            tick: 10 * MS,
            next_tick: 10 * MS,
            slice,
            halts_after: std::vec![None; processes],
            current: 0,
            now: 0,
        };
        guest.report(Event::OnCpu(guest.context(true)));
        guest
    }

    fn cr3(process: usize) -> u64 {
        0x1000 * process as u64
    }

    fn root(process: usize) -> Root {
        Root::new(Self::cr3(process), FORMAT)
    }

    fn report(&mut self, event: Event) {
        let now = HostTicks(self.now);
        let directive = self.suppression.report(&self.ram, 0, event, now);
        if directive.clock != self.clock.course() {
            self.clock.set_course(now, directive.clock);
            self.suppression.clock_changed(now, 0);
        }
    }

    fn see(&mut self, loaded: bool, halted: bool) {
        let observation = Observation {
            root: Some((Self::root(self.current), FORMAT)),
            loaded,
            halted,
            context: self.context(!halted),
            thread: Thread::Unknown,
            not_resumed: false,
        };
        self.report(Event::Seen(observation));
    }

    fn context(&self, user_mode: bool) -> Context {
        Context {
            user_mode,
            interruptible: true,
            rsp: 0x1000,
        }
    }

    fn suppress(&mut self, process: usize, factors: Factors) {
        let order = Order {
            policy: Policy::Paper,
            ..Order::new(factors, Defaults::default())
        };
        self.suppression
            .suppress(
                &self.ram,
                Self::root(process),
                FORMAT,
                order,
                &[],
                HostTicks(self.now),
            )
            .unwrap();
        self.see(true, false);
    }

    fn release(&mut self, process: usize) {
        assert!(self.suppression.release(Self::root(process)).is_some());
        self.see(true, false);
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
                self.see(false, true);
                continue;
            }
            self.now = tick_at;
            self.next_tick += self.tick;
            self.report(Event::Woke);
            self.report(Event::Interrupted(self.context(true), Thread::Unknown));
            ticks += 1;
            let over = match self.slice {
                SliceBy::Ticks(count) => ticks == count,
                SliceBy::Clock(length) => self.readable_time() - clock_start >= length,
            };
            if over {
                break;
            }
            // The handler takes no time here, and returns to the process.
            self.report(Event::Resumed(self.context(true)));
        }
        self.current = (process + 1) % self.halts_after.len();
        self.see(true, false);
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

    fn drift(&self) -> i64 {
        self.suppression.drift(HostTicks(self.now)).counter
    }
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
        assert_eq!(guest.drift(), 60 * MS as i64, "for good");
        assert_eq!(guest.suppression.lead(HostTicks(guest.now)).most(), 0);
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
    assert_eq!(guest.drift(), 9 * MS as i64 / 2);
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

/// What VCPUs may report.
fn events() -> impl Strategy<Value = (usize, Event)> {
    let context =
        (any::<bool>(), any::<bool>(), 0u64..0x8000).prop_map(|(user_mode, interruptible, rsp)| {
            Context {
                user_mode,
                interruptible,
                rsp,
            }
        });
    let thread = prop_oneof![
        Just(Thread::Unknown),
        Just(Thread::User),
        Just(Thread::Kernel)
    ];
    let seen = (
        0u64..4,
        any::<bool>(),
        any::<bool>(),
        context.clone(),
        thread.clone(),
    )
        .prop_map(|(process, loaded, halted, context, thread)| {
            Event::Seen(Observation {
                root: Some((Root::new(0x1000 * process, FORMAT), FORMAT)),
                loaded,
                halted,
                context,
                thread,
                not_resumed: false,
            })
        });
    let event = prop_oneof![
        4 => seen,
        1 => Just(Event::Woke),
        2 => (context.clone(), thread).prop_map(|(context, thread)| Event::Interrupted(context, thread)),
        1 => context.clone().prop_map(Event::Resumed),
        1 => context.prop_map(Event::OnCpu),
        1 => Just(Event::OffCpu),
        1 => Just(Event::Time),
    ];
    (0usize..8, event)
}

proptest! {
    /// After any history, lead and drift are what the clock shows beyond real time, and guest time has
    /// not gone back.
    #[test]
    fn lead_and_drift_are_exact(
        history in prop::collection::vec((0u64..1_000_000, events()), 1..200),
        paper: bool,
        n in 1u32..5000,
    ) {
        let mut guest = Guest::new(4, SliceBy::Ticks(1));
        guest.suppression = Suppression::new(Defaults::default(), 8, TSC, HostTicks(0));
        let mut order = Order::new(factors(n), Defaults::default());
        if paper {
            order.policy = Policy::Paper;
        }
        guest.suppression
            .suppress(&guest.ram, Guest::root(1), FORMAT, order, &[], HostTicks(0))
            .unwrap();
        let mut latest = 0;
        for (pause, (vcpu, event)) in history {
            guest.now += pause;
            let now = HostTicks(guest.now);
            let directive = guest.suppression.report(&guest.ram, vcpu, event, now);
            prop_assert!(guest.readable_time() >= latest);
            latest = guest.readable_time();
            if directive.clock != guest.clock.course() {
                guest.clock.set_course(now, directive.clock);
                guest.suppression.clock_changed(now, 10);
            }
            prop_assert_eq!(guest.readable_time(), latest);
        }
        let beyond = guest.readable_time() as i64 - guest.now as i64;
        let now = HostTicks(guest.now);
        let told = guest.suppression.lead(now).counter + guest.suppression.drift(now).counter;
        prop_assert!((0..=1).contains(&(beyond - told)));
    }

    /// Without a target in, nothing is fast, and no VCPU is kept from running, whatever else has
    /// happened.
    #[test]
    fn no_target_no_effect(
        history in prop::collection::vec(events(), 0..100), at in 0u64..1000,
    ) {
        let guest = Guest::new(4, SliceBy::Ticks(1));
        let mut suppression = Suppression::new(Defaults::default(), 8, TSC, HostTicks(0));
        // Else root 2 may be that of a new program of the target's, by the kernel's stack.
        let order = Order {
            follow: Follow::None,
            ..Order::new(factors(1000), Defaults::default())
        };
        let now = HostTicks(at);
        suppression
            .suppress(&guest.ram, Guest::root(1), FORMAT, order, &[], now)
            .unwrap();
        for (vcpu, event) in history {
            suppression.report(&guest.ram, vcpu, event, now);
            suppression.clock_changed(now, 0);
        }
        for vcpu in 0..8 {
            let directive = suppression.report(&guest.ram, vcpu, Event::Seen(Observation {
                root: Some((Guest::root(2), FORMAT)),
                loaded: true,
                halted: false,
                context: guest.context(true),
                thread: Thread::Unknown,
                not_resumed: false,
            }), now);
            prop_assert_eq!(directive.stay, crate::suppression::Stay::Run);
            prop_assert!(!directive.target_in);
        }
        let fastest = devices::clock::Rate::ONE.bits() / 8 * 9;
        prop_assert!(suppression.clock().rates.counter.bits() <= fastest);
        prop_assert!(suppression.clock().rates.timer.bits() <= fastest);
    }
}
