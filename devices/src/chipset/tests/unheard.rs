//! Timers that nobody hears: they cost nothing, however short their periods, and show what they
//! would show if they had been followed edge by edge.

use proptest::prelude::*;

use super::*;

impl Machine {
    /// Programs PIT channel 0 as a rate generator with this divisor.
    fn program_pit(&mut self, divisor: u16) {
        self.outb(port::PIT + 3, 0x34);
        self.outb(port::PIT, divisor as u8);
        self.outb(port::PIT, (divisor >> 8) as u8);
    }

    /// Lets time pass until `time`, and returns how often the chipset had to be called for it.
    fn calls_until(&mut self, time: u64) -> u32 {
        let mut calls = 0;
        while let Some(deadline) = self.chipset.next_deadline().filter(|at| at.0 <= time) {
            self.time = self.time.max(deadline.0);
            self.expire();
            calls += 1;
        }
        self.time = time;
        calls
    }
}

const SECOND: u64 = 1000 * MILLISECOND;

#[test]
fn a_masked_pit_of_the_shortest_period_costs_one_call() {
    let mut machine = Machine::new();
    machine.program_pit(2);
    assert!(machine.calls_until(SECOND) <= 1);
    // The one edge that it was called for is latched in the 8259A, as all others would be.
    machine.outb(port::PIC_MASTER, 0x0a);
    assert_eq!(machine.inb(port::PIC_MASTER) & 1, 1);
    // Unmasked, it interrupts at once, and from then on at its rate.
    machine.unmask_pic(irq::PIT);
    machine.program_pit(1193);
    assert!(!machine.board.intr, "initialization forgets edges");
    machine.run_until(SECOND + 2 * MILLISECOND);
    assert!(machine.board.intr);
}

#[test]
fn an_interrupt_that_waits_to_be_acknowledged_takes_in_all_that_follow() {
    let mut machine = Machine::new();
    machine.unmask_pic(irq::PIT);
    machine.program_pit(1193);
    assert_eq!(machine.calls_until(SECOND), 0, "the first edge is latched");
    assert!(machine.board.intr);
    assert_eq!(machine.acknowledge_pic(), 0x30);
    machine.outb(port::PIC_MASTER, 0x20);
    assert!(!machine.board.intr, "edges that were due are in the first");
    // The next edge is that of the rate generator, not one of the past.
    let next = machine.chipset.next_deadline().unwrap().0;
    assert!(next > SECOND && next <= SECOND + MILLISECOND, "{next}");
    assert_eq!(machine.calls_until(SECOND + MILLISECOND), 1);
    assert!(machine.board.intr);
}

#[test]
fn edges_at_a_masked_pin_of_the_ioapic_are_lost_and_none_comes_when_it_is_unmasked() {
    let mut machine = Machine::new();
    machine.program_pit(2);
    machine.calls_until(SECOND);
    machine.unmask_pin(gsi::PIT, 0x40, Trigger::Edge);
    assert_eq!(machine.take_vectors(), []);
    // Two cycles of 838 ns.
    machine.run_until(SECOND + 1_700);
    assert_eq!(machine.take_vectors(), [0x40]);
    // Masked again.
    machine.ioapic_write(0x10 + 2 * gsi::PIT as u8, 1 << 16 | 0x40);
    assert!(machine.calls_until(2 * SECOND) <= 1);
    assert_eq!(machine.take_vectors(), []);
}

#[test]
fn an_hpet_timer_without_a_route_or_with_a_masked_pin_costs_nothing() {
    for route in [0, 21u64] {
        let mut machine = Machine::new();
        // Interrupt on, periodic, set value: as the smallest of test kernels has it.
        machine.hpet_write(0x100, 0x4c | route << 9);
        machine.hpet_write(0x108, 2);
        machine.hpet_write(0x108, 2);
        machine.hpet_write(0x010, 1);
        assert_eq!(machine.calls_until(SECOND), 0, "route {route}");
        machine.unmask_pin(21, 0x55, Trigger::Edge);
        assert_eq!(machine.take_vectors(), [], "route {route}");
        machine.run_until(SECOND + 20);
        let expected: &[u8] = if route == 21 { &[0x55] } else { &[] };
        assert_eq!(machine.take_vectors(), expected, "route {route}");
    }
}

#[test]
fn in_legacy_replacement_nobody_hears_the_pit() {
    let mut machine = Machine::new();
    machine.unmask_pin(gsi::PIT, 0x40, Trigger::Edge);
    machine.program_pit(2);
    machine.hpet_write(0x010, 0b11);
    machine.take_vectors();
    assert!(machine.calls_until(SECOND) <= 1);
    assert_eq!(machine.take_vectors(), []);
    machine.hpet_write(0x010, 0b01);
    machine.take_vectors();
    machine.run_until(SECOND + 1_700);
    assert_eq!(machine.take_vectors(), [0x40]);
}

/// An action of a guest on its timers and interrupt controllers.
#[derive(Clone, Copy, Debug)]
enum Act {
    ProgramPit(u16),
    MaskPic(u8),
    MaskPin(bool),
    Legacy(bool),
    Hpet(u64),
    Acknowledge,
    EndOfInterrupt,
    ReadRequests,
    Wait(u64),
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (100..2000u16).prop_map(Act::ProgramPit),
        any::<u8>().prop_map(Act::MaskPic),
        any::<bool>().prop_map(Act::MaskPin),
        any::<bool>().prop_map(Act::Legacy),
        (1000..200_000u64).prop_map(Act::Hpet),
        Just(Act::Acknowledge),
        Just(Act::EndOfInterrupt),
        Just(Act::ReadRequests),
        (0..3 * MILLISECOND).prop_map(Act::Wait),
    ]
}

/// A machine with the PIC initialized, in which all timers are followed edge by edge, or not.
struct Followed {
    machine: Machine,
    edge_by_edge: bool,
}

impl Followed {
    fn new(edge_by_edge: bool) -> Self {
        let mut machine = Machine::new();
        machine.unmask_pic(irq::PIT);
        Self {
            machine,
            edge_by_edge,
        }
    }

    fn wait(&mut self, ticks: u64) {
        let until = self.machine.time + ticks;
        while self.edge_by_edge {
            let chipset = &mut self.machine.chipset;
            let pit = chipset.devices.pit.next_edge();
            let hpet = chipset.devices.hpet.next_deadline();
            let next = [pit, hpet].into_iter().flatten().min();
            let Some(next) = next.filter(|at| at.0 <= until) else {
                break;
            };
            self.machine.time = self.machine.time.max(next.0);
            let (chipset, mut env) = self.machine.parts();
            for id in [Id::pit, Id::hpet] {
                let mut cx = context(&mut chipset.interrupts, id, &mut env);
                chipset.devices.get(id).expire(&mut cx);
                chipset.update_deadline(id);
            }
        }
        self.machine.run_until(until);
    }

    /// Acts, and returns all that the guest can see of it.
    fn act(&mut self, act: Act) -> (u8, Vec<u8>, bool) {
        let machine = &mut self.machine;
        let mut seen = 0;
        match act {
            Act::ProgramPit(divisor) => machine.program_pit(divisor),
            Act::MaskPic(mask) => machine.outb(port::PIC_MASTER + 1, mask & !0x04),
            Act::MaskPin(masked) => {
                let mask = if masked { 1 << 16 } else { 0 };
                machine.ioapic_write(0x10 + 2 * gsi::PIT as u8, mask | 0x40);
            }
            Act::Legacy(on) => machine.hpet_write(0x010, 1 | u64::from(on) << 1),
            Act::Hpet(period) => {
                machine.hpet_write(0x100, 0x4c);
                machine.hpet_write(0x108, period);
                machine.hpet_write(0x108, period);
            }
            Act::Acknowledge if machine.board.intr => seen = machine.acknowledge_pic(),
            Act::Acknowledge => {}
            Act::EndOfInterrupt => machine.outb(port::PIC_MASTER, 0x20),
            Act::ReadRequests => {
                machine.outb(port::PIC_MASTER, 0x0a);
                seen = machine.inb(port::PIC_MASTER);
            }
            Act::Wait(ticks) => self.wait(ticks),
        }
        let machine = &mut self.machine;
        // Several messages of one vector in a row are one for the local APIC.
        let mut vectors = machine.take_vectors();
        vectors.dedup();
        (seen, vectors, machine.board.intr)
    }
}

proptest! {
    #[test]
    fn a_guest_cannot_tell_that_unheard_edges_are_left_out(
        acts in proptest::collection::vec(any_act(), 0..60)
    ) {
        let mut lazy = Followed::new(false);
        let mut exact = Followed::new(true);
        for act in acts {
            prop_assert_eq!(lazy.act(act), exact.act(act), "{:?}", act);
        }
    }
}
