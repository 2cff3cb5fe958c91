//! Disabled, xAPIC, x2APIC.

use super::*;

#[test]
fn a_disabled_apic_answers_to_nothing_but_cr8() {
    let mut cpu = Cpu::xapic(0);
    cpu.interrupt(0x50, false);
    cpu.apic.set_apic_base(0xfee0_0100).unwrap();
    assert_eq!(cpu.apic.mode(), Mode::Disabled);
    assert_eq!(cpu.read(Register::VERSION), u32::MAX);
    assert_eq!(cpu.apic.mmio_read(cpu.now, 0x30, 1), 0xff);
    assert_eq!(cpu.apic.mmio_read(cpu.now, 0x30, 8), u64::MAX);
    cpu.write(Register::TPR, 0xff);
    assert_eq!(cpu.apic.cr8(), 0);
    cpu.apic.set_cr8(7).unwrap();
    assert_eq!(cpu.apic.cr8(), 7);
    assert_eq!(cpu.apic.pending(), None);
    cpu.apic.set_tsc_deadline(cpu.now, 100);
    assert_eq!(cpu.apic.next_deadline(), None);
    assert!(
        !cpu.apic
            .accepts(&message(DeliveryMode::Nmi, 0, Trigger::Edge))
    );
    cpu.apic.set_apic_base(0xfee0_0900).unwrap();
    assert_eq!(cpu.read(Register::TPR), 0x70);
    assert_eq!(cpu.read(Register::VERSION), 0x0105_0014);
}

#[test]
fn disabling_stops_the_timer() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_TIMER, 0x40);
    cpu.write(Register::INITIAL_COUNT, 1000);
    assert!(cpu.apic.next_deadline().is_some());
    cpu.apic.set_apic_base(0xfee0_0100).unwrap();
    assert_eq!(cpu.apic.next_deadline(), None);
    cpu.apic.set_apic_base(0xfee0_0900).unwrap();
    assert_eq!(cpu.read(Register::CURRENT_COUNT), 0);
}

#[test]
fn x2apic_mode_has_wide_ids_and_no_memory() {
    let mut cpu = Cpu::xapic(0x123);
    assert_eq!(cpu.read(Register::ID), 0x2300_0000);
    cpu.write(Register::LDR, 0x0400_0000);
    cpu.write(Register::TPR, 0x20);
    cpu.write(Register::ICR_HIGH, 0x0500_0000);
    cpu.apic.set_apic_base(0xfee0_0c00).unwrap();
    assert_eq!(cpu.rdmsr(0x802), Ok(0x123));
    assert_eq!(cpu.rdmsr(0x80d), Ok(0x0012_0008));
    assert_eq!(cpu.rdmsr(0x808), Ok(0x20), "kept");
    assert_eq!(cpu.rdmsr(0x80f), Ok(0x1ff), "kept");
    assert_eq!(cpu.rdmsr(0x830), Ok(0));
    assert_eq!(cpu.read(Register::TPR), u32::MAX);
    cpu.write(Register::TPR, 0);
    assert_eq!(cpu.rdmsr(0x808), Ok(0x20));

    assert_eq!(
        cpu.apic.set_apic_base(0xfee0_0800),
        Err(GeneralProtection),
        "only through disabled"
    );
    assert_eq!(cpu.apic.mode(), Mode::X2Apic);
    cpu.apic.set_apic_base(0xfee0_0000).unwrap();
    assert_eq!(
        cpu.apic.set_apic_base(0xfee0_0c00),
        Err(GeneralProtection),
        "only through xAPIC"
    );
    cpu.apic.set_apic_base(0xfee0_0800).unwrap();
    assert_eq!(cpu.read(Register::ID), 0x2300_0000);
    assert_eq!(cpu.read(Register::LDR), 0);
    assert_eq!(cpu.read(Register::DFR), u32::MAX);
}

#[test]
fn senders_see_each_change_of_address() {
    let mut cpu = Cpu::powered_up(3);
    let fixed = |destination| ApicMessage {
        destination,
        ..message(DeliveryMode::Fixed, 0x40, Trigger::Edge)
    };
    let port = cpu.apic.port().clone();
    assert!(!port.accepts(&fixed(Destination::Physical(3))), "disabled");
    cpu.write(Register::SVR, 0x1ff);
    assert!(port.accepts(&fixed(Destination::Physical(3))));
    assert!(!port.accepts(&fixed(Destination::Logical(8))));
    cpu.write(Register::LDR, 0x0800_0000);
    assert!(port.accepts(&fixed(Destination::Logical(8))));
    cpu.write(Register::LDR, 0x3800_0000);
    cpu.write(Register::DFR, 0x0fff_ffff);
    assert!(port.accepts(&fixed(Destination::Logical(0x3f))));
    assert!(!port.accepts(&fixed(Destination::Logical(0x4f))));
    cpu.apic.set_apic_base(0xfee0_0c00).unwrap();
    assert!(!port.accepts(&fixed(Destination::Logical(0x3f0000))));
    assert!(port.accepts(&fixed(Destination::Logical(8))));
    assert!(port.accepts(&fixed(Destination::AllExcept(2))));
    assert!(!port.accepts(&fixed(Destination::AllExcept(3))));
    cpu.wrmsr(0x80f, 0xff).unwrap();
    assert!(!port.accepts(&fixed(Destination::Physical(3))));
}

#[test]
fn virtual_wire_mode_is_what_firmware_leaves() {
    let mut cpu = Cpu::powered_up(0);
    cpu.apic.enter_virtual_wire_mode();
    assert_eq!(cpu.read(Register::SVR), 0x1ff);
    assert_eq!(cpu.read(Register::LVT_LINT0), 0x700);
    assert_eq!(cpu.read(Register::LVT_LINT1), 0x400);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    assert_eq!(cpu.apic.pending(), Some(Pending::ExtInt));
    cpu.apic.set_pin(LocalPin::Lint1, true);
    assert!(cpu.apic.take_nmi());
}
