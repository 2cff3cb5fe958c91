//! IRR, ISR, TMR and PPR against a model that is nothing but the manual's sentences.

use alloc::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Model {
    irr: BTreeSet<u8>,
    isr: BTreeSet<u8>,
    tmr: BTreeSet<u8>,
    tpr: u8,
}

impl Model {
    /// SDM vol. 3A, 11.8.3.1: PPR[7:4] is the maximum of TPR[7:4] and the class of the
    /// highest ISR bit; PPR[3:0] is TPR[3:0] if TPR[7:4] is the maximum, else zero.
    fn ppr(&self) -> u8 {
        let isrv = self.isr.last().copied().unwrap_or(0);
        if self.tpr >> 4 >= isrv >> 4 {
            self.tpr
        } else {
            isrv >> 4 << 4
        }
    }

    fn deliverable(&self) -> Option<u8> {
        let vector = *self.irr.last()?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    fn request(&mut self, vector: u8, level: bool) {
        self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(&vector);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Message(u8, bool),
    Post(u8, bool),
    Accept,
    SelfIpi(u8),
    TaskPriority(u8),
    Acknowledge,
    End,
    VirtualDelivery(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (16..=255u8, any::<bool>()).prop_map(|(v, level)| Step::Message(v, level)),
        (16..=255u8, any::<bool>()).prop_map(|(v, level)| Step::Post(v, level)),
        Just(Step::Accept),
        (16..=255u8).prop_map(Step::SelfIpi),
        any::<u8>().prop_map(Step::TaskPriority),
        Just(Step::Acknowledge),
        Just(Step::Acknowledge),
        Just(Step::End),
        Just(Step::End),
        any::<bool>().prop_map(Step::VirtualDelivery),
    ]
}

fn members(cpu: &Cpu, register: VectorRegister) -> BTreeSet<u8> {
    (0..=255)
        .filter(|&vector| cpu.apic.page().has_vector(register, vector))
        .collect()
}

proptest! {
    #[test]
    fn vectors_move_as_the_manual_says(steps in prop::collection::vec(step(), 1..200)) {
        let mut cpu = Cpu::xapic(0);
        let mut model = Model::default();
        let mut posted: Vec<(u8, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Message(vector, level) => {
                    cpu.interrupt(vector, level);
                    model.request(vector, level);
                }
                Step::Post(vector, level) => {
                    let trigger = if level { Trigger::Level } else { Trigger::Edge };
                    cpu.apic.port().post(&message(DeliveryMode::Fixed, vector, trigger));
                    posted.push((vector, level));
                }
                Step::Accept => {
                    prop_assert_eq!(cpu.apic.accept_incoming(), !posted.is_empty());
                    posted.sort_by_key(|&(_, level)| level);
                    for (vector, level) in posted.drain(..) {
                        model.request(vector, level);
                    }
                }
                Step::SelfIpi(vector) => {
                    cpu.write(Register::ICR_LOW, 1 << 18 | u32::from(vector));
                    model.request(vector, false);
                }
                Step::TaskPriority(priority) => {
                    cpu.write(Register::TPR, priority.into());
                    model.tpr = priority;
                }
                Step::Acknowledge => {
                    let expected = model.deliverable();
                    prop_assert_eq!(cpu.apic.pending(), expected.map(Pending::Vector));
                    prop_assert_eq!(cpu.apic.acknowledge(), expected.unwrap_or(0xff));
                    if let Some(vector) = expected {
                        model.irr.remove(&vector);
                        model.isr.insert(vector);
                    }
                }
                Step::End => {
                    let level = model.isr.pop_last().filter(|vector| model.tmr.contains(vector));
                    cpu.write(Register::EOI, 0);
                    prop_assert_eq!(cpu.bus.ends.pop(), level);
                }
                Step::VirtualDelivery(on) => cpu.apic.set_virtual_interrupt_delivery(on),
            }
            prop_assert_eq!(&members(&cpu, VectorRegister::Irr), &model.irr);
            prop_assert_eq!(&members(&cpu, VectorRegister::Isr), &model.isr);
            prop_assert_eq!(&members(&cpu, VectorRegister::Tmr), &model.tmr);
            prop_assert_eq!(cpu.apic.highest_irr(), model.irr.last().copied());
            prop_assert_eq!(cpu.apic.highest_isr(), model.isr.last().copied());
            prop_assert_eq!(cpu.apic.processor_priority(), model.ppr());
            prop_assert_eq!(cpu.apic.page().read(Register::PPR), u32::from(model.ppr()));
            prop_assert_eq!(cpu.apic.pending(), model.deliverable().map(Pending::Vector));
        }
    }
}

#[test]
fn a_vector_of_the_class_in_service_waits() {
    let mut cpu = Cpu::xapic(0);
    cpu.interrupt(0x51, false);
    assert_eq!(cpu.apic.acknowledge(), 0x51);
    cpu.interrupt(0x5f, false);
    assert_eq!(cpu.apic.pending(), None);
    cpu.interrupt(0x60, false);
    assert_eq!(cpu.apic.acknowledge(), 0x60, "nested");
    assert_eq!(cpu.read(Register::PPR), 0x60);
    cpu.write(Register::EOI, 0);
    assert_eq!(cpu.read(Register::PPR), 0x50);
    cpu.write(Register::EOI, 0);
    assert_eq!(cpu.handle(), Some(0x5f));
}

#[test]
fn one_request_is_kept_while_the_same_vector_is_in_service() {
    let mut cpu = Cpu::xapic(0);
    cpu.interrupt(0x51, false);
    assert_eq!(cpu.apic.acknowledge(), 0x51);
    cpu.interrupt(0x51, false);
    cpu.interrupt(0x51, false);
    cpu.write(Register::EOI, 0);
    assert_eq!(cpu.handle(), Some(0x51));
    assert_eq!(cpu.handle(), None);
}

#[test]
fn an_acknowledge_with_nothing_to_deliver_gets_the_spurious_vector() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::SVR, 0x1ef);
    cpu.interrupt(0x51, false);
    cpu.write(Register::TPR, 0xf0);
    assert_eq!(cpu.apic.acknowledge(), 0xef);
    assert_eq!(cpu.apic.highest_isr(), None, "not in service");
    assert_eq!(cpu.apic.highest_irr(), Some(0x51));
}

#[test]
fn an_end_with_nothing_in_service_is_harmless() {
    let mut cpu = Cpu::xapic(0);
    cpu.interrupt(0x51, true);
    cpu.write(Register::EOI, 0);
    assert_eq!(cpu.bus.ends, []);
    assert_eq!(cpu.handle(), Some(0x51));
}

#[test]
fn the_end_of_a_level_interrupt_is_broadcast_unless_suppressed() {
    let mut cpu = Cpu::xapic(0);
    cpu.interrupt(0x51, true);
    assert_eq!(cpu.handle(), Some(0x51));
    assert_eq!(cpu.bus.ends, [0x51]);
    cpu.write(Register::SVR, 0x11ff);
    cpu.interrupt(0x51, true);
    assert_eq!(cpu.handle(), Some(0x51));
    assert_eq!(cpu.bus.ends, [0x51]);
}

#[test]
fn arbitration_priority_is_the_manuals_formula() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::TPR, 0x47);
    assert_eq!(cpu.read(Register::APR), 0x47);
    cpu.interrupt(0x45, false);
    assert_eq!(cpu.read(Register::APR), 0x47);
    cpu.interrupt(0x6a, false);
    assert_eq!(cpu.read(Register::APR), 0x60);
    assert_eq!(cpu.apic.acknowledge(), 0x6a);
    assert_eq!(cpu.read(Register::APR), 0x60);
}
