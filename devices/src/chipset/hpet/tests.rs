//! The HPET as its specification and its users have it.

extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::time::CounterTicks;

const ROUTES: u32 = 0x00F0_0000;
const CONFIG: u64 = 0x010;
const STATUS: u64 = 0x020;
const MAIN: u64 = 0x0F0;

const fn config(timer: u64) -> u64 {
    0x100 + 0x20 * timer
}

const fn comparator(timer: u64) -> u64 {
    0x108 + 0x20 * timer
}

const LEVEL: u64 = 1 << 1;
const INT: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const SET_VALUE: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;

fn route(gsi: u64) -> u64 {
    gsi << 9
}

fn at(ticks: u64) -> Now {
    Now {
        counter: CounterTicks(ticks),
        timer: TimerTicks(ticks),
    }
}

/// An HPET with a log of its wires. The TSC is its input clock unless told otherwise.
struct Rig {
    hpet: Hpet,
    wires: Vec<(usize, Route, bool)>,
}

impl Rig {
    fn new() -> Self {
        Self::with_tsc(FREQUENCY)
    }

    fn with_tsc(tsc: Hertz) -> Self {
        Self {
            hpet: Hpet::new(tsc, ROUTES),
            wires: Vec::new(),
        }
    }

    fn write(&mut self, offset: u64, value: u64, now: Now) {
        self.write_sized(offset, 8, value, now);
    }

    fn write_sized(&mut self, offset: u64, size: usize, value: u64, now: Now) {
        let wires = &mut self.wires;
        let mut outputs = |timer, route, level| wires.push((timer, route, level));
        self.hpet.write(offset, size, value, now, &mut outputs);
    }

    fn read(&self, offset: u64, now: Now) -> u64 {
        self.hpet.read(offset, 8, now)
    }

    fn expire(&mut self, now: Now) {
        let wires = &mut self.wires;
        let mut outputs = |timer, route, level| wires.push((timer, route, level));
        self.hpet.expire(now, &mut outputs);
    }

    fn take_wires(&mut self) -> Vec<(usize, Route, bool)> {
        core::mem::take(&mut self.wires)
    }

    /// Runs as a VCPU does that sleeps until the next deadline; when edges came, of which
    /// timer.
    fn edges(&mut self, until: u64) -> Vec<(u64, usize)> {
        let mut edges = Vec::new();
        while let Some(due) = self.hpet.next_deadline().filter(|due| due.0 <= until) {
            self.expire(at(due.0));
            for (timer, _, level) in self.take_wires() {
                if level {
                    edges.push((due.0, timer));
                }
            }
        }
        edges
    }
}

#[test]
fn capabilities_describe_what_there_is() {
    let rig = Rig::new();
    assert_eq!(rig.read(0, at(0)), 0x0098_9680_8086_A201);
    assert_eq!(rig.hpet.read(4, 4, at(0)), 10_000_000);
    assert_eq!(rig.read(config(0), at(0)), 0x00F0_0000_0000_0030);
    assert_eq!(rig.read(comparator(2), at(0)), u64::MAX);
    assert_eq!(
        FREQUENCY.get() * u64::from(PERIOD_FS),
        1_000_000_000_000_000
    );
}

#[test]
fn the_main_counter_halts_goes_on_and_can_be_written_halted() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(MAIN, at(1_000)), 0);
    rig.write(CONFIG, 1, at(1_000));
    assert_eq!(rig.read(MAIN, at(1_500)), 500);
    rig.write(MAIN, 7, at(1_500));
    assert_eq!(rig.read(MAIN, at(1_600)), 600);
    rig.write(CONFIG, 0, at(1_700));
    assert_eq!(rig.read(MAIN, at(9_000)), 700);
    rig.write_sized(MAIN + 4, 4, 3, at(9_000));
    assert_eq!(rig.read(MAIN, at(9_000)), 3 << 32 | 700);
    rig.write(MAIN, u64::MAX - 1, at(9_000));
    rig.write(CONFIG, 1, at(9_000));
    assert_eq!(rig.read(MAIN, at(9_005)), 3);
    assert_eq!(rig.hpet.read(MAIN + 4, 4, at(9_005)), 0);
}

#[test]
fn accesses_of_other_sizes_or_places_are_ignored() {
    let mut rig = Rig::new();
    for (offset, size) in [
        (CONFIG, 1),
        (CONFIG, 2),
        (CONFIG + 2, 4),
        (CONFIG - 4, 8),
        (0x400, 8),
    ] {
        rig.write_sized(offset, size, u64::MAX, at(0));
        assert_eq!(rig.hpet.read(offset, size, at(0)), 0);
    }
    rig.write(!7, 1, at(0));
    rig.write(0x3F8, 1, at(0));
    assert_eq!(rig.read(CONFIG, at(0)), 0);
}

#[test]
fn a_one_shot_fires_once_when_the_counter_gets_there() {
    let mut rig = Rig::new();
    rig.write(CONFIG, 1, at(100));
    rig.write(config(2), INT | route(21), at(100));
    rig.write(comparator(2), 5_000, at(100));
    assert_eq!(rig.hpet.next_deadline(), Some(TimerTicks(5_100)));
    rig.expire(at(5_099));
    assert!(rig.take_wires().is_empty());
    rig.expire(at(5_100));
    let gsi = Route::Gsi(21);
    assert_eq!(rig.take_wires(), [(2, gsi, true), (2, gsi, false)]);
    assert_eq!(rig.hpet.next_deadline(), None);
    assert_eq!(rig.read(STATUS, at(6_000)), 0);
}

#[test]
fn a_value_in_the_past_waits_for_the_wrap_around() {
    let mut rig = Rig::new();
    rig.write(CONFIG, 1, at(0));
    rig.write(config(0), INT | route(20), at(0));
    rig.write(comparator(0), 999, at(1_000));
    assert_eq!(rig.edges(1 << 60), []);
    // In 32-bit mode that is after 43 s, and again each time.
    rig.write(config(0), INT | MODE_32 | route(20), at(1_000));
    let wrap = 1u64 << 32;
    assert_eq!(rig.edges(3 * wrap), [(wrap + 999, 0), (2 * wrap + 999, 0)]);
    assert_eq!(rig.read(comparator(0), at(3 * wrap)), 999);
}

/// As Linux sets a periodic tick (hpet_clkevt_set_state_periodic).
fn linux_periodic(rig: &mut Rig, delta: u64, now: Now) {
    rig.write(config(0), INT | PERIODIC | SET_VALUE | MODE_32, now);
    let value = rig.read(MAIN, now) + delta;
    rig.write_sized(comparator(0), 4, value & 0xFFFF_FFFF, now);
    rig.write_sized(comparator(0), 4, delta, now);
}

#[test]
fn a_periodic_tick_is_exact_over_hours() {
    let tsc = 2_494_138_337u64;
    let mut rig = Rig::with_tsc(Hertz::new(tsc));
    let start = 123_456_789;
    rig.write(CONFIG, 3, at(start));
    linux_periodic(&mut rig, 400_000, at(start));
    assert_eq!(rig.read(config(0), at(start)) & SET_VALUE, 0);
    let first = start as u128 * 100_000_000 / u128::from(tsc);
    let edges = rig.edges(start + 2 * 3600 * tsc);
    assert_eq!(edges.len(), 2 * 3600 * 250);
    for (k, &(edge, timer)) in edges.iter().enumerate() {
        let cycle = first + (k as u128 + 1) * 400_000;
        assert_eq!(
            u128::from(edge),
            (cycle * u128::from(tsc)).div_ceil(100_000_000)
        );
        assert_eq!(timer, 0);
    }
}

#[test]
fn the_first_write_after_val_set_sets_value_and_period_later_ones_the_period() {
    let mut rig = Rig::new();
    rig.write(CONFIG, 1, at(0));
    rig.write(config(1), INT | PERIODIC | SET_VALUE | route(22), at(0));
    rig.write(comparator(1), 1_000, at(0));
    assert_eq!(rig.edges(3_500), [(1_000, 1), (2_000, 1), (3_000, 1)]);
    assert_eq!(rig.read(comparator(1), at(3_500)), 4_000);
    rig.write(comparator(1), 300, at(3_500));
    assert_eq!(rig.edges(4_500), [(4_000, 1), (4_300, 1)]);
}

#[test]
fn a_one_shot_made_periodic_has_the_last_value_written_as_its_period() {
    let mut rig = Rig::new();
    rig.write(CONFIG, 1, at(0));
    rig.write(config(1), INT | route(22), at(0));
    rig.write_sized(comparator(1), 4, 1_000, at(0));
    rig.write_sized(comparator(1) + 4, 4, 0, at(0));
    rig.write(config(1), INT | PERIODIC | route(22), at(500));
    assert_eq!(rig.edges(3_500), [(1_000, 1), (2_000, 1), (3_000, 1)]);
}

#[test]
fn periods_that_are_late_are_one_interrupt_and_the_next_is_on_time() {
    let mut rig = Rig::new();
    rig.write(CONFIG, 1, at(0));
    rig.write(config(1), INT | PERIODIC | SET_VALUE | route(22), at(0));
    rig.write(comparator(1), 1_000, at(0));
    // Unserved, the comparator still goes on for those who look.
    assert_eq!(rig.read(comparator(1), at(7_400)), 8_000);
    rig.expire(at(7_400));
    assert_eq!(rig.take_wires().len(), 2);
    assert_eq!(rig.hpet.next_deadline(), Some(TimerTicks(8_000)));
}

#[test]
fn a_level_stays_until_its_status_bit_is_cleared() {
    let mut rig = Rig::new();
    let gsi = Route::Gsi(20);
    rig.write(CONFIG, 1, at(0));
    rig.write(
        config(0),
        INT | LEVEL | PERIODIC | SET_VALUE | route(20),
        at(0),
    );
    rig.write(comparator(0), 100, at(0));
    assert_eq!(rig.read(STATUS, at(99)), 0);
    assert_eq!(rig.read(STATUS, at(100)), 1);
    rig.expire(at(100));
    assert_eq!(rig.take_wires(), [(0, gsi, true)]);
    assert_eq!(rig.hpet.next_deadline(), None);
    rig.write(STATUS, 0, at(250));
    assert_eq!(rig.read(STATUS, at(250)), 1);
    rig.write(STATUS, 1, at(260));
    assert_eq!(rig.take_wires(), [(0, gsi, false)]);
    assert_eq!(rig.hpet.next_deadline(), Some(TimerTicks(300)));
}

#[test]
fn a_level_follows_its_route_and_enables() {
    let mut rig = Rig::new();
    let (old, new) = (Route::Gsi(20), Route::Gsi(23));
    let level = INT | LEVEL;
    rig.write(CONFIG, 1, at(0));
    rig.write(comparator(2), 100, at(0));
    // Disabled, it still has a status.
    rig.write(config(2), LEVEL | route(20), at(0));
    assert_eq!(rig.hpet.next_deadline(), None);
    assert_eq!(rig.read(STATUS, at(100)), 4);
    rig.write(config(2), level | route(20), at(150));
    rig.write(config(2), level | route(23), at(151));
    rig.write(config(2), LEVEL | route(23), at(152));
    rig.write(config(2), level | route(23), at(153));
    // Halting takes the interrupt away, but not the status.
    rig.write(CONFIG, 0, at(154));
    assert_eq!(rig.read(STATUS, at(155)), 4);
    assert_eq!(
        rig.take_wires(),
        [
            (2, old, true),
            (2, old, false),
            (2, new, true),
            (2, new, false),
            (2, new, true),
            (2, new, false)
        ]
    );
}

#[test]
fn legacy_replacement_takes_irq_0_and_irq_8() {
    let mut rig = Rig::new();
    assert!(!rig.hpet.legacy_replacement());
    rig.write(CONFIG, 3, at(0));
    assert!(rig.hpet.legacy_replacement());
    for timer in 0..3 {
        rig.write(config(timer), INT | route(22), at(0));
        rig.write(comparator(timer), 100, at(0));
    }
    rig.expire(at(100));
    let routes: Vec<_> = rig.take_wires().into_iter().filter(|wire| wire.2).collect();
    assert_eq!(
        routes,
        [
            (0, Route::LegacyIrq0, true),
            (1, Route::LegacyIrq8, true),
            (2, Route::Gsi(22), true)
        ]
    );
}

#[test]
fn a_route_that_does_not_exist_is_not_taken() {
    let mut rig = Rig::new();
    rig.write(config(0), route(21), at(0));
    rig.write(config(0), INT | route(5), at(0));
    assert_eq!(
        rig.read(config(0), at(0)) & 0xFFFF_FFFF,
        0x30 | INT | route(21)
    );
}

#[test]
fn interrupts_run_with_the_timer_line_and_the_counter_with_its_own() {
    let mut rig = Rig::new();
    rig.write(CONFIG, 1, at(0));
    rig.write(config(1), INT | PERIODIC | SET_VALUE | route(22), at(0));
    rig.write(comparator(1), 1_000, at(0));
    // The timer line has run at twice the rate since tick 500.
    let now = Now {
        counter: CounterTicks(1_600),
        timer: TimerTicks(2_700),
    };
    rig.expire(now);
    assert_eq!(rig.hpet.next_deadline(), Some(TimerTicks(3_000)));
    assert_eq!(rig.read(MAIN, now), 1_600);
    // What is set now counts from now.
    rig.write(config(0), INT | route(20), now);
    rig.write(comparator(0), 1_700, now);
    assert_eq!(rig.hpet.next_deadline(), Some(TimerTicks(2_800)));
}

proptest! {
    #[test]
    fn an_interrupt_comes_at_the_first_tick_that_shows_the_value(
        tsc in 50_000_000..6_000_000_000u64,
        start in 0..1u64 << 60,
        armed in 0..1u64 << 40,
        ahead in 1..1u64 << 36,
        wide: bool,
    ) {
        let mut rig = Rig::with_tsc(Hertz::new(tsc));
        rig.write(CONFIG, 1, at(start));
        let now = at(start + armed);
        let mode = if wide { 0 } else { MODE_32 };
        let ahead = if wide { ahead } else { ahead & 0x7FFF_FFFF | 1 };
        rig.write(config(0), INT | route(20) | mode, now);
        rig.write(comparator(0), rig.read(MAIN, now) + ahead, now);
        let due = rig.hpet.next_deadline().unwrap().0;
        let target = rig.read(MAIN, now) + ahead;
        prop_assert!(rig.read(MAIN, at(due)) >= target);
        prop_assert!(rig.read(MAIN, at(due - 1)) < target);
    }

    #[test]
    fn nothing_that_a_guest_writes_panics(
        tsc in 1..1u64 << 40,
        accesses in prop::collection::vec(
            (0..0x180u64, prop_oneof![Just(4usize), Just(8)], any::<u64>(), 0..1u64 << 40),
            0..80,
        ),
    ) {
        let mut rig = Rig::with_tsc(Hertz::new(tsc));
        let mut now = Now::default();
        for (offset, size, value, ticks) in accesses {
            now.counter = now.counter.saturating_add(ticks);
            now.timer = now.timer.saturating_add(ticks / 3);
            let offset = offset & !3;
            rig.write_sized(offset, size, value, now);
            let _ = rig.hpet.read(offset, size, now);
            rig.expire(now);
            if let Some(due) = rig.hpet.next_deadline() {
                prop_assert!(due > now.timer);
            }
        }
    }
}
