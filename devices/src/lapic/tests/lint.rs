//! The local interrupt pins.

use arch::apic::delivery_mode::{EXT_INT, FIXED, INIT, NMI};
use arch::apic::lvt::{ACTIVE_LOW, LEVEL, REMOTE_IRR};

use super::*;

#[test]
fn ext_int_lasts_as_long_as_the_pin_is_high() {
    let mut cpu = Cpu::xapic(0);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    assert_eq!(cpu.apic.pending(), None, "masked");
    cpu.write(Register::LVT_LINT0, EXT_INT);
    assert_eq!(cpu.apic.pending(), Some(Pending::ExtInt));
    cpu.write(Register::TPR, 0xff);
    assert_eq!(cpu.apic.pending(), Some(Pending::ExtInt), "no priority");
    cpu.apic.take_ext_int();
    assert_eq!(cpu.apic.pending(), Some(Pending::ExtInt), "still high");
    cpu.apic.set_pin(LocalPin::Lint0, false);
    assert_eq!(cpu.apic.pending(), None);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    cpu.write(Register::LVT_LINT0, EXT_INT | LVT_MASKED);
    assert_eq!(cpu.apic.pending(), None);
    cpu.write(Register::LVT_LINT0, EXT_INT);
    cpu.write(Register::SVR, 0xff);
    assert_eq!(cpu.apic.pending(), None, "masked by disabling");
}

#[test]
fn without_an_apic_the_pins_are_intr_and_nmi() {
    let mut cpu = Cpu::powered_up(0);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    assert_eq!(cpu.apic.pending(), None);
    cpu.apic.set_apic_base(0xfee0_0000).unwrap();
    assert_eq!(cpu.apic.pending(), Some(Pending::ExtInt));
    cpu.apic.set_pin(LocalPin::Lint1, true);
    cpu.apic.set_pin(LocalPin::Lint1, true);
    assert!(cpu.apic.take_nmi());
    assert!(!cpu.apic.take_nmi());
    cpu.apic.set_apic_base(0xfee0_0800).unwrap();
    assert_eq!(cpu.apic.pending(), None);
}

#[test]
fn an_ext_int_message_is_taken_once() {
    let mut cpu = Cpu::xapic(0);
    cpu.apic
        .deliver(&message(DeliveryMode::ExtInt, 0, Trigger::Edge));
    assert_eq!(cpu.apic.pending(), Some(Pending::ExtInt));
    cpu.apic.take_ext_int();
    assert_eq!(cpu.apic.pending(), None);
}

#[test]
fn an_edge_on_a_pin_interrupts_once() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_LINT0, FIXED | 0x44);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    assert_eq!(cpu.handle(), Some(0x44));
    assert_eq!(cpu.handle(), None);
    cpu.apic.set_pin(LocalPin::Lint0, false);
    assert_eq!(cpu.handle(), None);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    assert_eq!(cpu.handle(), Some(0x44));
    assert!(cpu.bus.ends.is_empty(), "an edge is not broadcast");
}

#[test]
fn a_level_on_a_pin_interrupts_until_it_is_gone() {
    let mut cpu = Cpu::xapic(0);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    cpu.write(Register::LVT_LINT0, FIXED | LEVEL | 0x44);
    assert_eq!(cpu.read(Register::LVT_LINT0), LEVEL | REMOTE_IRR | 0x44);
    assert_eq!(cpu.apic.acknowledge(), 0x44);
    cpu.apic.set_pin(LocalPin::Lint0, false);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    assert_eq!(cpu.apic.highest_irr(), None, "not ended yet");
    cpu.write(Register::EOI, 0);
    assert_eq!(cpu.apic.acknowledge(), 0x44, "again");
    cpu.apic.set_pin(LocalPin::Lint0, false);
    cpu.write(Register::EOI, 0);
    assert_eq!(cpu.apic.pending(), None);
    assert_eq!(cpu.read(Register::LVT_LINT0), LEVEL | 0x44);
}

#[test]
fn an_active_low_pin_interrupts_when_it_falls() {
    let mut cpu = Cpu::xapic(0);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    cpu.write(Register::LVT_LINT0, FIXED | ACTIVE_LOW | 0x44);
    assert_eq!(cpu.apic.pending(), None);
    cpu.apic.set_pin(LocalPin::Lint0, false);
    assert_eq!(cpu.handle(), Some(0x44));
}

#[test]
fn lint1_brings_nmis_even_with_a_level_trigger() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_LINT1, NMI | LEVEL);
    cpu.apic.set_pin(LocalPin::Lint1, true);
    assert!(cpu.apic.take_nmi());
    assert!(!cpu.apic.nmi_pending());
    assert_eq!(cpu.read(Register::LVT_LINT1), NMI | LEVEL);
}

#[test]
fn a_pin_can_reset_the_processor() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_LINT1, INIT);
    cpu.apic.set_pin(LocalPin::Lint1, true);
    assert!(cpu.apic.take_init());
    assert!(!cpu.apic.take_init());
}

#[test]
fn a_pin_with_an_illegal_vector_is_an_error() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(Register::LVT_LINT0, FIXED | 0x0f);
    cpu.apic.set_pin(LocalPin::Lint0, true);
    cpu.write(Register::LVT_LINT1, FIXED | LEVEL | ACTIVE_LOW | 0x0f);
    assert_eq!(cpu.apic.pending(), None);
    assert_eq!(cpu.esr(), 0x40);
}
