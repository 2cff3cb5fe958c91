//! With the virtualization hardware doing a part of the work on the same page.

use super::*;

/// What the hardware does when it delivers the virtual interrupt RVI.
fn hardware_delivers(cpu: &Cpu) -> u8 {
    let page = cpu.apic.page();
    let vector = page.highest(VectorRegister::Irr).unwrap();
    let word = vector >> 5;
    let bit = 1 << (vector & 31);
    page.set_vectors(
        VectorRegister::Irr,
        word,
        page.vectors(VectorRegister::Irr, word) & !bit,
    );
    page.set_vectors(
        VectorRegister::Isr,
        word,
        page.vectors(VectorRegister::Isr, word) | bit,
    );
    vector
}

/// What the hardware does for an EOI: it takes SVI out of service.
fn hardware_ends(cpu: &Cpu) -> u8 {
    let page = cpu.apic.page();
    let vector = page.highest(VectorRegister::Isr).unwrap();
    let word = vector >> 5;
    page.set_vectors(
        VectorRegister::Isr,
        word,
        page.vectors(VectorRegister::Isr, word) & !(1 << (vector & 31)),
    );
    vector
}

#[test]
fn what_the_hardware_moves_is_seen() {
    let mut cpu = Cpu::xapic(0);
    cpu.apic.set_virtual_interrupt_delivery(true);
    cpu.interrupt(0x51, false);
    cpu.interrupt(0x91, true);
    assert_eq!(cpu.apic.highest_irr(), Some(0x91));
    assert_eq!(hardware_delivers(&cpu), 0x91);
    assert_eq!(cpu.apic.highest_irr(), Some(0x51));
    assert_eq!(cpu.apic.highest_isr(), Some(0x91));
    assert_eq!(cpu.apic.processor_priority(), 0x90);
    assert_eq!(cpu.apic.pending(), None);
    let vector = hardware_ends(&cpu);
    cpu.apic.after_virtualized_eoi(vector, &mut cpu.bus);
    assert_eq!(cpu.bus.ends, [0x91]);
    assert_eq!(cpu.apic.pending(), Some(Pending::Vector(0x51)));
    assert_eq!(hardware_delivers(&cpu), 0x51);
    // Turned off in the middle: software goes on from what the page says.
    cpu.apic.set_virtual_interrupt_delivery(false);
    assert_eq!(cpu.read(Register::PPR), 0x50);
    cpu.interrupt(0x52, false);
    assert_eq!(cpu.apic.pending(), None);
    cpu.write(Register::EOI, 0);
    assert_eq!(cpu.handle(), Some(0x52));
    assert_eq!(cpu.bus.ends, [0x91]);
}

#[test]
fn the_eoi_exit_bitmap_is_the_trigger_mode_register() {
    let mut cpu = Cpu::xapic(0);
    cpu.interrupt(0x91, true);
    cpu.interrupt(0x92, false);
    assert_eq!(
        cpu.apic.page().bitmap(VectorRegister::Tmr),
        [0, 0, 1 << 0x11, 0]
    );
}

#[test]
fn the_eoi_exit_bitmap_is_told_when_it_may_have_changed_and_not_again() {
    let mut cpu = Cpu::xapic(0);
    cpu.apic.set_virtual_interrupt_delivery(true);
    assert_eq!(cpu.apic.take_changed_modes(), Some([0; 4]));
    cpu.interrupt(0x92, false);
    assert_eq!(cpu.apic.take_changed_modes(), None, "as it was");
    cpu.interrupt(0x91, true);
    assert_eq!(
        cpu.apic.take_changed_modes(),
        Some([0, 0, 1 << 0x11, 0]),
        "level-triggered now"
    );
    assert_eq!(cpu.apic.take_changed_modes(), None);
    cpu.interrupt(0x91, false);
    assert_eq!(cpu.apic.take_changed_modes(), Some([0; 4]), "edge again");
    cpu.apic.set_virtual_interrupt_delivery(true);
    assert_eq!(
        cpu.apic.take_changed_modes(),
        Some([0; 4]),
        "the hardware begins anew"
    );
}

#[test]
fn one_look_at_the_vectors_tells_what_is_pending() {
    let mut cpu = Cpu::xapic(0);
    cpu.apic.set_virtual_interrupt_delivery(true);
    let none = cpu.apic.highest();
    assert_eq!((none.requested, none.in_service), (0, 0));
    assert_eq!(cpu.apic.pending_of(none), None);
    cpu.interrupt(0x51, false);
    let requested = cpu.apic.highest();
    assert_eq!((requested.requested, requested.in_service), (0x51, 0));
    assert_eq!(cpu.apic.pending_of(requested), Some(Pending::Vector(0x51)));
    let served = Highest {
        requested: 0x51,
        in_service: 0x52,
    };
    assert_eq!(cpu.apic.pending_of(served), None, "of the same class");
    cpu.write(Register::TPR, 0x50);
    assert_eq!(cpu.apic.pending_of(requested), None, "the task's class");
}

/// A write that the hardware has made to the page before it exits.
fn after_write(cpu: &mut Cpu, register: Register, value: u32) {
    cpu.apic.page().write(register, value);
    cpu.apic
        .after_virtualized_write(cpu.now, offset(register), &mut cpu.bus);
}

#[test]
fn writes_that_the_hardware_has_made_have_the_same_effects() {
    let mut cpu = Cpu::xapic(5);
    after_write(&mut cpu, Register::ID, 0xffff_ffff);
    assert_eq!(cpu.read(Register::ID), 0x0500_0000);
    after_write(&mut cpu, Register::LDR, 0x0812_3456);
    assert_eq!(cpu.read(Register::LDR), 0x0800_0000);
    assert!(cpu.apic.accepts(&ApicMessage {
        destination: Destination::Logical(8),
        ..message(DeliveryMode::Fixed, 0x40, Trigger::Edge)
    }));
    after_write(&mut cpu, Register::LVT_ERROR, 0xffff_00e1);
    assert_eq!(cpu.read(Register::LVT_ERROR), 0x0001_00e1);
    after_write(&mut cpu, Register::LVT_ERROR, 0xe1);
    cpu.interrupt(1, false);
    after_write(&mut cpu, Register::ESR, 0x1234);
    assert_eq!(cpu.read(Register::ESR), 0x40);
    assert_eq!(cpu.handle(), Some(0xe1));
    cpu.write(Register::ICR_HIGH, 0x0200_0000);
    after_write(&mut cpu, Register::ICR_LOW, 0xfff0_1031);
    assert_eq!(cpu.read(Register::ICR_LOW), 0x31);
    assert_eq!(cpu.bus.messages[0].destination, Destination::Physical(2));
    after_write(&mut cpu, Register::LVT_TIMER, 0x2_0040);
    after_write(&mut cpu, Register::INITIAL_COUNT, 100);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(200 * TICKS)));
    after_write(&mut cpu, Register::DIVIDE, 0b1011);
    assert_eq!(cpu.apic.next_deadline(), Some(TimerTicks(100 * TICKS)));
    after_write(&mut cpu, Register::SVR, 0xff);
    assert_eq!(cpu.read(Register::LVT_TIMER), 0x3_0040);
    assert_eq!(cpu.read(Register::LVT_ERROR), 0x1_00e1);
}

#[test]
fn a_level_on_a_pin_survives_a_virtualized_write() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_LINT0, 0x8044);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    after_write(&mut cpu, Register::LVT_LINT0, 0x8044);
    assert_eq!(
        cpu.read(Register::LVT_LINT0),
        0xc044,
        "remote IRR is the APIC's"
    );
}

#[test]
fn the_tpr_threshold_is_where_the_next_vector_waits() {
    let mut cpu = Cpu::xapic(0);
    assert_eq!(cpu.apic.tpr_threshold(), 0);
    cpu.interrupt(0x51, false);
    assert_eq!(cpu.apic.tpr_threshold(), 0, "deliverable already");
    // The hardware writes the TPR in the page, and nobody is told.
    cpu.apic.page().write(Register::TPR, 0x50);
    assert_eq!(cpu.apic.pending(), None);
    assert_eq!(cpu.apic.tpr_threshold(), 5);
    cpu.apic.page().write(Register::TPR, 0xf0);
    assert_eq!(cpu.apic.tpr_threshold(), 5);
    cpu.apic.page().write(Register::TPR, 0x40);
    assert_eq!(cpu.apic.pending(), Some(Pending::Vector(0x51)));
    assert_eq!(cpu.read(Register::PPR), 0x40);
}

#[test]
fn a_timer_unmasked_by_a_virtualized_write_does_not_interrupt_for_what_it_was_masked_for() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_TIMER, 0x40 | 1 << 16);
    cpu.write(Register::INITIAL_COUNT, 10);
    cpu.now = at(1000 * TICKS);
    // The processor has written the page before the exit.
    cpu.apic.page().write(Register::LVT_TIMER, 0x40);
    cpu.apic
        .after_virtualized_write(cpu.now, offset(Register::LVT_TIMER), &mut cpu.bus);
    assert_eq!(cpu.apic.pending(), None);
}
