//! Interprocessor interrupts as their sender sees them.

use arch::apic::delivery_mode::{INIT, NMI, START_UP};
use arch::apic::icr::{ASSERT, LEVEL, LOGICAL, TO_ALL, TO_OTHERS, TO_SELF};

use super::*;

fn sent(command: u32, high: u32) -> Vec<ApicMessage> {
    let mut cpu = Cpu::xapic(7);
    cpu.write(Register::ICR_HIGH, high);
    cpu.write(Register::ICR_LOW, command);
    assert_eq!(cpu.read(Register::ICR_LOW), command, "and idle");
    cpu.bus.messages
}

fn x2apic_sent(command: u64) -> Vec<ApicMessage> {
    let mut cpu = Cpu::x2apic(7);
    cpu.wrmsr(0x830, command).unwrap();
    cpu.bus.messages
}

fn edge(destination: Destination, delivery_mode: DeliveryMode, vector: u8) -> ApicMessage {
    ApicMessage {
        destination,
        delivery_mode,
        vector,
        trigger: Trigger::Edge,
    }
}

#[test]
fn destinations_of_xapic_ipis() {
    use Destination::{All, AllExcept, Logical, Physical};
    for (command, high, destination) in [
        (0x31, 0x0200_0000, Physical(2)),
        (0x31, 0xff00_0000, All),
        (LOGICAL | 0x31, 0x0300_0000, Logical(3)),
        (LOGICAL | 0x31, 0xff00_0000, All),
        (TO_ALL | 0x31, 0x0200_0000, All),
        (TO_OTHERS | 0x31, 0x0700_0000, AllExcept(7)),
    ] {
        assert_eq!(
            sent(command, high),
            [edge(destination, DeliveryMode::Fixed, 0x31)]
        );
    }
}

#[test]
fn destinations_of_x2apic_ipis() {
    use Destination::{All, AllExcept, Logical, Physical};
    for (command, destination) in [
        (0x0000_00ff_0000_0031, Physical(0xff)),
        (0x0001_0007_0000_0031, Physical(0x1_0007)),
        (0xffff_ffff_0000_0031, All),
        (0x0001_0003_0000_0831, Logical(0x1_0003)),
        (0xffff_ffff_0000_0831, All),
        (0x0000_0000_0008_0031, All),
        (0x0000_0000_000c_0031, AllExcept(7)),
    ] {
        assert_eq!(
            x2apic_sent(command),
            [edge(destination, DeliveryMode::Fixed, 0x31)],
            "{command:#x}"
        );
    }
}

#[test]
fn delivery_modes() {
    let to = Destination::Physical(2);
    let high = 0x0200_0000;
    assert_eq!(
        sent(1 << 8 | 0x31, high),
        [edge(to, DeliveryMode::LowestPriority, 0x31)]
    );
    assert_eq!(sent(NMI, high), [edge(to, DeliveryMode::Nmi, 0)]);
    assert_eq!(
        sent(START_UP | 9, high),
        [edge(to, DeliveryMode::StartUp, 9)]
    );
    assert_eq!(
        sent(INIT | ASSERT | LEVEL, high),
        [edge(to, DeliveryMode::Init, 0)]
    );
    assert_eq!(sent(INIT | ASSERT, high), [edge(to, DeliveryMode::Init, 0)]);
    assert_eq!(sent(INIT | LEVEL, high), [], "level de-assert");
    assert_eq!(sent(3 << 8 | 0x31, high), [], "reserved");
    assert_eq!(sent(7 << 8, high), [], "reserved");
}

#[test]
fn every_ipi_is_an_edge() {
    assert_eq!(
        sent(LEVEL | ASSERT | 0x31, 0x0200_0000)[0].trigger,
        Trigger::Edge
    );
    let mut cpu = Cpu::xapic(7);
    cpu.write(Register::ICR_LOW, TO_SELF | LEVEL | ASSERT | 0x31);
    assert!(!cpu.apic.page().has_vector(VectorRegister::Tmr, 0x31));
}

#[test]
fn interrupts_to_oneself_need_no_bus() {
    let mut cpu = Cpu::xapic(7);
    cpu.write(Register::ICR_LOW, TO_SELF | 0x31);
    assert_eq!(cpu.handle(), Some(0x31));
    cpu.write(Register::ICR_HIGH, 0x0700_0000);
    cpu.write(Register::ICR_LOW, 0x32);
    assert_eq!(cpu.handle(), Some(0x32));
    cpu.write(Register::ICR_LOW, NMI);
    assert!(cpu.apic.take_nmi());
    cpu.write(Register::ICR_LOW, INIT | ASSERT);
    assert!(cpu.apic.take_init());
    assert!(cpu.bus.messages.is_empty());

    let mut cpu = Cpu::x2apic(0x1_0007);
    cpu.wrmsr(0x83f, 0x31).unwrap();
    assert_eq!(cpu.handle(), Some(0x31));
    cpu.wrmsr(0x830, 0x0001_0007_0000_0032).unwrap();
    assert_eq!(cpu.handle(), Some(0x32));
    cpu.wrmsr(0x830, 0x4_0033).unwrap();
    assert_eq!(cpu.handle(), Some(0x33));
    assert!(cpu.bus.messages.is_empty());
}

#[test]
fn an_id_of_all_ones_is_a_broadcast_even_from_its_owner() {
    let mut cpu = Cpu::xapic(0xff);
    cpu.write(Register::ICR_HIGH, 0xff00_0000);
    cpu.write(Register::ICR_LOW, 0x31);
    assert_eq!(cpu.bus.messages[0].destination, Destination::All);
    assert_eq!(cpu.apic.pending(), None);
}

#[test]
fn an_illegal_vector_is_an_error_here_and_where_it_goes() {
    let mut cpu = Cpu::xapic(7);
    cpu.write(Register::ICR_HIGH, 0x0200_0000);
    cpu.write(Register::ICR_LOW, 0x0f);
    assert_eq!(cpu.esr(), 0x20);
    cpu.write(Register::ICR_LOW, 1 << 8 | 0x0f);
    assert_eq!(cpu.esr(), 0x20);
    let to = Destination::Physical(2);
    assert_eq!(
        core::mem::take(&mut cpu.bus.messages),
        [
            edge(to, DeliveryMode::Fixed, 0x0f),
            edge(to, DeliveryMode::LowestPriority, 0x0f)
        ],
        "the receiver finds out by itself"
    );
    cpu.write(Register::ICR_LOW, TO_SELF | 0x0f);
    assert_eq!(cpu.esr(), 0x60, "sent and received");
    cpu.write(Register::ICR_LOW, NMI | 0x0f);
    assert_eq!(cpu.esr(), 0, "an NMI has no vector");
    assert_eq!(cpu.bus.messages.len(), 1);

    let mut cpu = Cpu::x2apic(7);
    cpu.wrmsr(0x83f, 0x0f).unwrap();
    cpu.wrmsr(0x828, 0).unwrap();
    assert_eq!(cpu.rdmsr(0x828), Ok(0x60));
}

#[test]
fn an_illegal_vector_to_all_is_received_by_its_sender_too() {
    let mut cpu = Cpu::xapic(7);
    cpu.write(Register::ICR_LOW, TO_ALL | 0x0f);
    for message in core::mem::take(&mut cpu.bus.messages) {
        assert!(cpu.apic.accepts(&message));
        cpu.apic.port().post(&message);
    }
    cpu.apic.accept_incoming();
    assert_eq!(cpu.esr(), 0x60);
    assert_eq!(cpu.apic.pending(), None);
}
