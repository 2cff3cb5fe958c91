//! The 8254 against a model that steps through every cycle as the datasheet tells it, and
//! the PC's use of it.

extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::time::CounterTicks;

/// A counter as the datasheet describes it, one clock pulse after the other.
#[derive(Clone, Debug)]
struct Stepped {
    mode: u8,
    modulus: u32,
    gate: bool,
    register: Option<u32>,
    low_byte: Option<u8>,
    null_count: bool,
    load_on_next: bool,
    loaded: bool,
    length: u32,
    ce: u32,
    /// The value shown before the first load. (The datasheet leaves that undefined.)
    before: u16,
    done: bool,
    out: bool,
}

impl Stepped {
    fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            modulus: 0x1_0000,
            gate,
            register: None,
            low_byte: None,
            null_count: true,
            load_on_next: false,
            loaded: false,
            length: 0,
            ce: 0,
            before: 0,
            done: false,
            out: false,
        }
    }

    fn program(&mut self, mode: u8, bcd: bool) {
        *self = Self {
            mode,
            modulus: if bcd { 10_000 } else { 0x1_0000 },
            before: self.shown(),
            out: mode != 0,
            ..Self::new(self.gate)
        };
    }

    fn write(&mut self, byte: u8) {
        let Some(low) = self.low_byte.take() else {
            self.low_byte = Some(byte);
            if self.mode == 0 {
                self.before = self.shown();
                self.loaded = false;
                self.load_on_next = false;
                self.out = false;
            }
            return;
        };
        let raw = u32::from(byte) << 8 | u32::from(low);
        let count = if self.modulus == 10_000 {
            (raw >> 12) * 1000 + (raw >> 8 & 15) * 100 + (raw >> 4 & 15) * 10 + (raw & 15)
        } else {
            raw
        };
        self.register = Some(if count == 0 { self.modulus } else { count });
        self.null_count = true;
        match self.mode {
            0 | 4 => self.load_on_next = true,
            2 | 3 if !self.loaded => self.load_on_next = true,
            _ => {}
        }
    }

    fn set_gate(&mut self, gate: bool) {
        let rises = gate && !self.gate;
        self.gate = gate;
        match self.mode {
            1 | 2 | 3 | 5 if rises && self.register.is_some() => self.load_on_next = true,
            2 | 3 if !gate => self.out = true,
            _ => {}
        }
    }

    fn load(&mut self) {
        self.length = self.register.unwrap();
        self.ce = self.length;
        if self.mode == 3 {
            self.ce &= !1;
        }
        self.null_count = false;
        self.loaded = true;
    }

    /// A clock pulse.
    fn step(&mut self) {
        if self.load_on_next {
            self.load_on_next = false;
            self.load();
            self.done = false;
            self.out = self.mode >= 2;
            return;
        }
        if !self.loaded || (!self.gate && self.mode != 1 && self.mode != 5) {
            return;
        }
        match self.mode {
            2 if self.ce == 1 => {
                self.load();
                self.out = true;
            }
            2 => {
                self.ce -= 1;
                self.out = self.ce != 1;
            }
            3 if self.length % 2 == 1 && self.out => {
                if self.ce == 0 {
                    self.load();
                    self.out = false;
                } else {
                    self.ce -= 2;
                }
            }
            3 => {
                self.ce -= 2;
                if self.ce == 0 {
                    self.load();
                    self.out = !self.out;
                }
            }
            _ => {
                self.ce = if self.ce == 0 { self.modulus } else { self.ce } - 1;
                let now_done = self.ce == 0;
                match self.mode {
                    0 | 1 => self.out |= now_done,
                    _ => self.out = !now_done || self.done,
                }
                self.done |= now_done;
            }
        }
    }

    fn shown(&self) -> u16 {
        if !self.loaded {
            return self.before;
        }
        let count = self.ce % self.modulus;
        if self.modulus == 10_000 {
            let digit = |n: u32| count / 10u32.pow(n) % 10;
            (0..4).map(|n| (digit(n) << (4 * n)) as u16).sum()
        } else {
            count as u16
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Wait(u8),
    Program { mode: u8, bcd: bool },
    Count(u16),
    FirstByte(u8),
    Gate(bool),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let count = prop_oneof![
        8 => (2..40u16).prop_map(|n| (n % 10) | ((n / 10) << 4)),
        1 => Just(0),
        1 => (1..100u16).prop_map(|n| n << 8),
    ];
    let operation = prop_oneof![
        10 => any::<u8>().prop_map(|n| Operation::Wait(n % 90)),
        2 => (0..8u8, any::<bool>()).prop_map(|(mode, bcd)| Operation::Program { mode, bcd }),
        5 => count.prop_map(Operation::Count),
        1 => any::<u8>().prop_map(Operation::FirstByte),
        3 => any::<bool>().prop_map(Operation::Gate),
    ];
    prop::collection::vec(operation, 1..60)
}

/// What both models show: count, output, null count.
fn shown(counter: &Counter, cycle: u64) -> (u16, bool, bool) {
    let mut probe = *counter;
    probe.latch_status(cycle);
    let null_count = probe.read(cycle) & 0x40 != 0;
    (counter.count(cycle), counter.output(cycle), null_count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_mode_does_cycle_by_cycle_what_the_datasheet_says(
        operations in operations(),
        gate: bool,
        start in 0..1u64 << 50,
    ) {
        let mut cycle = start;
        let mut counter = Counter::new(gate);
        let mut stepped = Stepped::new(gate);
        counter.program(0x30, cycle);
        stepped.program(0, false);
        let mut first_byte = false;
        for operation in operations {
            match operation {
                Operation::Wait(cycles) => for _ in 0..cycles {
                    cycle += 1;
                    let was = stepped.out;
                    stepped.step();
                    prop_assert_eq!(
                        shown(&counter, cycle),
                        (stepped.shown(), stepped.out, stepped.null_count)
                    );
                    // The wake-up for each rising edge, and for nothing else.
                    let rises = counter.next_rise(cycle - 1) == Some(cycle);
                    prop_assert_eq!(rises, !was && stepped.out);
                },
                Operation::Program { mode, bcd } => {
                    counter.program(0x30 | mode << 1 | u8::from(bcd), cycle);
                    stepped.program(if mode >= 6 { mode - 4 } else { mode }, bcd);
                    first_byte = false;
                }
                Operation::Count(raw) => {
                    if !first_byte {
                        counter.write(raw as u8, cycle);
                        stepped.write(raw as u8);
                    }
                    // A length of 1 is illegal in modes 2 and 3.
                    let high = if first_byte { 2 } else { (raw >> 8) as u8 };
                    counter.write(high, cycle);
                    stepped.write(high);
                    first_byte = false;
                }
                Operation::FirstByte(byte) => if !first_byte {
                    counter.write(byte, cycle);
                    stepped.write(byte);
                    first_byte = true;
                },
                Operation::Gate(level) => {
                    counter.set_gate(level, cycle);
                    stepped.set_gate(level);
                }
            }
            prop_assert_eq!(
                shown(&counter, cycle),
                (stepped.shown(), stepped.out, stepped.null_count)
            );
        }
    }

    #[test]
    fn nothing_that_a_guest_writes_panics(
        accesses in prop::collection::vec((any::<u16>(), any::<u8>(), any::<bool>(), 0..1u64 << 40), 0..60),
        tsc in 1..1u64 << 40,
    ) {
        let mut pit = Pit::new(Hertz::new(tsc));
        let mut now = Now::default();
        for (port, value, write, ticks) in accesses {
            now.counter = now.counter.saturating_add(ticks);
            now.timer = now.timer.saturating_add(ticks / 3);
            if write {
                pit.write(port, value, now, &mut |_: bool| {});
            } else {
                pit.read(port, now);
            }
            pit.set_gate2(value & 1 != 0, now);
            pit.expire(now, &mut |_: bool| {});
        }
    }
}

/// A guest whose TSC is the PIT's clock: a tick is a cycle.
fn at(cycle: u64) -> Now {
    Now {
        counter: CounterTicks(cycle),
        timer: TimerTicks(cycle),
    }
}

fn pit() -> Pit {
    Pit::new(FREQUENCY)
}

fn no_irq(_: bool) {}

fn set(pit: &mut Pit, counter: u16, mode: u8, count: u16, now: Now) {
    let [low, high] = count.to_le_bytes();
    pit.write(3, (counter as u8) << 6 | 0x30 | mode << 1, now, &mut no_irq);
    pit.write(counter, low, now, &mut no_irq);
    pit.write(counter, high, now, &mut no_irq);
}

fn read_16(pit: &mut Pit, counter: u16, now: Now) -> u16 {
    let low = pit.read(counter, now);
    u16::from_le_bytes([low, pit.read(counter, now)])
}

/// Runs as a VCPU does that sleeps until the next deadline; the times of IRQ 0's edges.
fn irq0_edges(pit: &mut Pit, until: u64) -> Vec<u64> {
    let mut edges = Vec::new();
    while let Some(deadline) = pit.next_deadline().filter(|deadline| deadline.0 <= until) {
        let mut level = false;
        pit.expire(at(deadline.0), &mut |asserted: bool| {
            if asserted && !level {
                edges.push(deadline.0);
            }
            level = asserted;
        });
    }
    edges
}

#[test]
fn a_100_hz_tick_keeps_its_rate_for_hours() {
    let tsc = 2_494_140_000;
    for mode in [2, 3] {
        let mut pit = Pit::new(Hertz::new(tsc));
        set(&mut pit, 0, mode, 11_932, at(0));
        let hours = 3 * 3600 * tsc;
        let edges = irq0_edges(&mut pit, hours);
        for (k, &edge) in edges.iter().enumerate() {
            let cycles = 1 + (k as u128 + 1) * 11_932;
            assert_eq!(
                u128::from(edge),
                (cycles * u128::from(tsc)).div_ceil(1_193_182)
            );
        }
        assert_eq!(edges.len() as u64, (3 * 3600 * 1_193_182 - 1) / 11_932);
    }
}

#[test]
fn one_shot_modes_interrupt_once() {
    for (mode, delay) in [(0, 1_000), (4, 1_001)] {
        let mut pit = pit();
        set(&mut pit, 0, mode, 1_000, at(50));
        assert_eq!(irq0_edges(&mut pit, 1 << 40), [50 + 1 + delay]);
    }
}

#[test]
fn ticks_that_are_late_are_one_tick_and_the_next_is_on_time() {
    let mut pit = pit();
    set(&mut pit, 0, 2, 100, at(0));
    let mut edges = 0;
    pit.expire(at(1_050), &mut |level: bool| edges += u32::from(level));
    assert_eq!(edges, 1);
    assert_eq!(pit.next_deadline(), Some(TimerTicks(1_101)));
}

#[test]
fn a_new_rate_begins_at_the_end_of_the_period() {
    let mut pit = pit();
    set(&mut pit, 0, 2, 100, at(0));
    assert_eq!(irq0_edges(&mut pit, 150), [101]);
    pit.write(0, 50, at(150), &mut no_irq);
    pit.write(0, 0, at(150), &mut no_irq);
    assert_eq!(irq0_edges(&mut pit, 310), [201, 251, 301]);
}

#[test]
fn the_tick_is_shortened_by_the_rate_of_the_timer_line_alone() {
    let mut pit = pit();
    set(&mut pit, 0, 2, 100, at(0));
    // From cycle 1,000 on the timer line runs twice as fast as the counters.
    let now = Now {
        counter: CounterTicks(2_000),
        timer: TimerTicks(3_000),
    };
    pit.expire(now, &mut no_irq);
    assert_eq!(pit.next_deadline(), Some(TimerTicks(3_001)));
    assert_eq!(read_16(&mut pit, 0, now), 100 - (2_000 - 1) % 100);
    // A timer that is set now counts from now.
    set(&mut pit, 0, 0, 500, now);
    assert_eq!(pit.next_deadline(), Some(TimerTicks(3_501)));
}

#[test]
fn linux_stops_the_pit_by_mode_0() {
    let mut pit = pit();
    set(&mut pit, 0, 2, 100, at(0));
    let mut level = true;
    pit.write(3, 0x30, at(10), &mut |asserted| level = asserted);
    assert!(!level);
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn a_latched_count_stands_until_it_is_read() {
    let mut pit = pit();
    set(&mut pit, 0, 2, 1_000, at(0));
    pit.write(3, 0x00, at(101), &mut no_irq);
    pit.write(3, 0x00, at(300), &mut no_irq);
    assert_eq!(read_16(&mut pit, 0, at(400)), 900);
    assert_eq!(read_16(&mut pit, 0, at(401)), 600);
}

#[test]
fn read_back_latches_status_before_count_of_each_selected_counter() {
    let mut pit = pit();
    set(&mut pit, 0, 3, 1_000, at(0));
    set(&mut pit, 2, 0, 77, at(0));
    // Both latches of counters 0 and 2, after the load: counter 2's gate is closed.
    pit.write(3, 0xC0 | 0b1010, at(101), &mut no_irq);
    assert_eq!(pit.read(0, at(200)), 0x80 | 0x36);
    assert_eq!(read_16(&mut pit, 0, at(200)), 800);
    assert_eq!(pit.read(2, at(200)), 0x30);
    assert_eq!(read_16(&mut pit, 2, at(200)), 77);
    // Status alone; the null count is set until the count is loaded.
    pit.write(2, 5, at(300), &mut no_irq);
    pit.write(2, 0, at(300), &mut no_irq);
    pit.write(3, 0xE0 | 0b1000, at(300), &mut no_irq);
    assert_eq!(pit.read(2, at(300)), 0x40 | 0x30);
    pit.write(3, 0xE0 | 0b1000, at(301), &mut no_irq);
    assert_eq!(pit.read(2, at(301)), 0x30);
}

#[test]
fn bytes_are_accessed_as_the_control_word_says() {
    let mut pit = pit();
    pit.write(3, 0x10 | 2 << 1, at(0), &mut no_irq);
    pit.write(0, 200, at(0), &mut no_irq);
    assert_eq!((pit.read(0, at(1)), pit.read(0, at(11))), (200, 190));
    pit.write(3, 0x20 | 2 << 1, at(20), &mut no_irq);
    pit.write(0, 0x12, at(20), &mut no_irq);
    assert_eq!((pit.read(0, at(21)), pit.read(0, at(22))), (0x12, 0x11));
    // BCD: 1234 decimal.
    pit.write(3, 0x31 | 2 << 1, at(30), &mut no_irq);
    pit.write(0, 0x34, at(30), &mut no_irq);
    pit.write(0, 0x12, at(30), &mut no_irq);
    assert_eq!(read_16(&mut pit, 0, at(31)), 0x1234);
    assert_eq!(read_16(&mut pit, 0, at(31 + 235)), 0x0999);
    assert_eq!(pit.next_deadline(), Some(TimerTicks(31 + 1_234)));
}

#[test]
fn the_control_word_register_is_not_readable() {
    assert_eq!(pit().read(3, at(0)), 0xFF);
}
