//! Messages from other CPUs.

use super::*;

struct Machine {
    router: Router,
    cpus: Vec<Cpu>,
    ports: Vec<Arc<ApicPort>>,
}

impl Machine {
    /// `count` processors in xAPIC mode with logical IDs in the flat model.
    fn new(count: u32) -> Self {
        let mut cpus: Vec<_> = (0..count).map(Cpu::xapic).collect();
        for (index, cpu) in cpus.iter_mut().enumerate() {
            cpu.write(Register::LDR, 1 << (24 + index));
        }
        let ports = cpus.iter().map(|cpu| cpu.apic.port().clone()).collect();
        Self {
            router: Router::default(),
            cpus,
            ports,
        }
    }

    /// Sends and returns who was told to look.
    fn send(&self, delivery_mode: DeliveryMode, vector: u8, to: Destination) -> Vec<usize> {
        let message = ApicMessage {
            destination: to,
            ..message(delivery_mode, vector, Trigger::Edge)
        };
        let mut told = Vec::new();
        self.router
            .route(&self.ports, &message, |index| told.push(index));
        told
    }

    fn accept_and_handle(&mut self, index: usize) -> Option<u8> {
        self.cpus[index].apic.accept_incoming();
        self.cpus[index].handle()
    }
}

#[test]
fn a_posted_vector_arrives_when_accepted() {
    let mut machine = Machine::new(2);
    assert_eq!(
        machine.send(DeliveryMode::Fixed, 0x41, Destination::Physical(1)),
        [1]
    );
    assert_eq!(
        machine.send(DeliveryMode::Fixed, 0xf1, Destination::Physical(1)),
        [],
        "told already"
    );
    assert_eq!(machine.cpus[1].apic.pending(), None);
    assert_eq!(machine.accept_and_handle(1), Some(0xf1));
    assert_eq!(machine.accept_and_handle(1), Some(0x41));
    assert!(!machine.cpus[1].apic.accept_incoming());
    assert!(!machine.cpus[0].apic.accept_incoming());
}

#[test]
fn every_vector_can_be_posted_with_either_trigger() {
    for vector in 16..=255 {
        for level in [false, true] {
            let mut cpu = Cpu::xapic(0);
            // The other trigger before, so that the mode has to change.
            cpu.interrupt(vector, !level);
            assert_eq!(cpu.handle(), Some(vector));
            let trigger = if level { Trigger::Level } else { Trigger::Edge };
            let message = message(DeliveryMode::Fixed, vector, trigger);
            assert!(cpu.apic.port().post(&message));
            assert!(cpu.apic.accept_incoming());
            assert_eq!(
                cpu.apic.page().has_vector(VectorRegister::Tmr, vector),
                level
            );
            cpu.bus.ends.clear();
            assert_eq!(cpu.handle(), Some(vector));
            assert_eq!(cpu.bus.ends.contains(&vector), level);
        }
    }
}

#[test]
fn a_posted_illegal_vector_is_the_receivers_error() {
    let mut machine = Machine::new(1);
    assert_eq!(
        machine.send(DeliveryMode::Fixed, 0x0f, Destination::Physical(0)),
        [0]
    );
    assert_eq!(machine.accept_and_handle(0), None);
    assert_eq!(machine.cpus[0].esr(), 0x40);
}

#[test]
fn vectors_posted_before_a_software_disable_are_not_accepted_after_it() {
    let mut machine = Machine::new(1);
    machine.send(DeliveryMode::Fixed, 0x41, Destination::Physical(0));
    machine.cpus[0].write(Register::SVR, 0xff);
    assert_eq!(machine.accept_and_handle(0), None);
}

#[test]
fn init_and_start_up_arrive_in_order() {
    let mut machine = Machine::new(2);
    let to = Destination::Physical(1);
    assert_eq!(machine.send(DeliveryMode::StartUp, 1, to), [1]);
    assert_eq!(machine.send(DeliveryMode::Init, 0, to), []);
    assert_eq!(machine.send(DeliveryMode::StartUp, 0x9a, to), []);
    let apic = &mut machine.cpus[1].apic;
    assert!(apic.accept_incoming());
    assert!(apic.reset_pending());
    assert!(apic.take_init());
    apic.init_reset();
    assert_eq!(apic.take_start_up(), Some(0x9a));
    assert_eq!(apic.take_start_up(), None);
    assert!(!apic.reset_pending());
}

#[test]
fn nmis_from_two_sides_are_two_unless_one_is_being_handled() {
    let mut machine = Machine::new(1);
    for _ in 0..3 {
        machine.send(DeliveryMode::Nmi, 0, Destination::All);
    }
    let apic = &mut machine.cpus[0].apic;
    apic.accept_incoming();
    assert!(apic.take_nmi());
    assert!(apic.take_nmi());
    assert!(!apic.take_nmi());
    machine.send(DeliveryMode::Nmi, 0, Destination::All);
    machine.send(DeliveryMode::Nmi, 0, Destination::All);
    let apic = &mut machine.cpus[0].apic;
    apic.accept_incoming();
    apic.limit_nmis();
    assert!(apic.take_nmi());
    assert!(!apic.take_nmi());
}

#[test]
fn broadcasts_reach_all_or_all_others() {
    let machine = Machine::new(3);
    assert_eq!(
        machine.send(DeliveryMode::Fixed, 0x41, Destination::AllExcept(1)),
        [0, 2]
    );
    assert_eq!(
        machine.send(DeliveryMode::Nmi, 0, Destination::All),
        [0, 1, 2]
    );
    assert_eq!(
        machine.send(DeliveryMode::Fixed, 0x41, Destination::Logical(0b110)),
        [1],
        "2 has been told of the first already, 1 of the NMI in another way"
    );
}

#[test]
fn nobody_home_is_told_to_the_sender() {
    let machine = Machine::new(2);
    for delivery_mode in [DeliveryMode::Fixed, DeliveryMode::LowestPriority] {
        let message = ApicMessage {
            destination: Destination::Physical(9),
            ..message(delivery_mode, 0x41, Trigger::Edge)
        };
        assert!(!machine.router.route(&machine.ports, &message, |_| {}));
    }
}

#[test]
fn lowest_priority_goes_to_the_least_busy_and_equals_take_turns() {
    let mut machine = Machine::new(4);
    machine.cpus[0].write(Register::TPR, 0x80);
    machine.cpus[1].interrupt(0x95, false);
    let mut counts = [0; 4];
    for _ in 0..10 {
        machine.send(
            DeliveryMode::LowestPriority,
            0x41,
            Destination::Logical(0xf),
        );
        for (index, count) in counts.iter_mut().enumerate() {
            if machine.cpus[index].apic.accept_incoming() {
                *count += 1;
                assert_eq!(machine.cpus[index].handle(), Some(0x41));
            }
        }
    }
    assert_eq!(counts, [0, 0, 5, 5]);
    machine.send(
        DeliveryMode::LowestPriority,
        0x42,
        Destination::Logical(0b11),
    );
    assert!(machine.cpus[0].apic.port().has_incoming(), "0x80 < 0x90");
}

#[test]
fn posts_from_many_threads_are_all_accepted() {
    extern crate std;
    let mut cpu = Cpu::xapic(0);
    let port = cpu.apic.port().clone();
    let posters: Vec<_> = (0..4u8)
        .map(|thread| {
            let port = port.clone();
            std::thread::spawn(move || {
                for vector in (16 + thread..=251).step_by(4) {
                    let trigger = if vector & 4 == 0 {
                        Trigger::Edge
                    } else {
                        Trigger::Level
                    };
                    port.post(&message(DeliveryMode::Fixed, vector, trigger));
                }
            })
        })
        .collect();
    let mut handled = Vec::new();
    loop {
        let done = posters.iter().all(std::thread::JoinHandle::is_finished);
        cpu.apic.accept_incoming();
        while let Some(vector) = cpu.handle() {
            handled.push(vector);
        }
        if done {
            break;
        }
    }
    handled.sort_unstable();
    assert!(handled.into_iter().eq(16..=251));
    cpu.bus.ends.sort_unstable();
    assert!(
        cpu.bus
            .ends
            .into_iter()
            .eq((16..=251).filter(|v| v & 4 != 0))
    );
}
