//! From a device through its wire to the processor.

use super::*;

#[test]
fn a_tick_of_the_pit_reaches_pin_2_of_the_ioapic() {
    let mut machine = Machine::new();
    machine.start_pit();
    machine.unmask_pin(gsi::PIT, 0x40, Trigger::Edge);
    machine.run_until(MILLISECOND * 21 / 2);
    assert_eq!(
        machine.board.messages,
        vec![
            ApicMessage {
                destination: Destination::Physical(0),
                delivery_mode: DeliveryMode::Fixed,
                vector: 0x40,
                trigger: Trigger::Edge,
            };
            10
        ]
    );
    assert!(!machine.board.intr, "the 8259A has it masked");
}

#[test]
fn a_tick_of_the_pit_reaches_input_0_of_the_8259a() {
    let mut machine = Machine::new();
    machine.start_pit();
    machine.unmask_pic(irq::PIT);
    for tick in 1..=10 {
        machine.run_until(MILLISECOND * tick - MILLISECOND / 2);
        assert!(!machine.board.intr);
        machine.run_until(MILLISECOND * tick + MILLISECOND / 2);
        assert!(machine.board.intr);
        assert_eq!(machine.acknowledge_pic(), 0x30);
        assert!(!machine.board.intr);
        machine.outb(port::PIC_MASTER, 0x20);
    }
    assert_eq!(machine.take_vectors(), [], "the IOAPIC has it masked");
}

#[test]
fn input_on_com1_interrupts_as_irq_4_both_ways() {
    for (fcr, bytes) in [(0x00, 1), (0x81, 8)] {
        let mut machine = Machine::new();
        machine.unmask_pin(irq::COM1.into(), 0x44, Trigger::Edge);
        machine.unmask_pic(irq::COM1);
        machine.outb(port::COM1 + 2, fcr);
        machine.outb(port::COM1 + 4, 0x08);
        machine.outb(port::COM1 + 1, 0x01);
        for _ in 0..bytes {
            assert_eq!(machine.take_vectors(), []);
            let now = machine.now();
            machine
                .chipset
                .serial_receive(now, b'x', &mut machine.board);
        }
        assert_eq!(machine.take_vectors(), [0x44]);
        assert_eq!(machine.acknowledge_pic(), 0x34);
    }
}

#[test]
fn few_bytes_on_com1_interrupt_after_the_character_timeout() {
    let mut machine = Machine::new();
    machine.unmask_pin(irq::COM1.into(), 0x44, Trigger::Edge);
    machine.outb(port::COM1 + 3, 0x03);
    machine.outb(port::COM1 + 2, 0x81);
    machine.outb(port::COM1 + 4, 0x08);
    machine.outb(port::COM1 + 1, 0x01);
    let now = machine.now();
    machine
        .chipset
        .serial_receive(now, b'x', &mut machine.board);
    // Forty bits at 115200 baud: 347.2 us.
    machine.run_until(347_222);
    assert_eq!(machine.take_vectors(), []);
    machine.run_until(347_223);
    assert_eq!(machine.take_vectors(), [0x44]);
}

#[test]
fn output_on_com1_interrupts_when_it_has_gone() {
    let mut machine = Machine::new();
    machine.unmask_pin(irq::COM1.into(), 0x44, Trigger::Edge);
    machine.outb(port::COM1 + 4, 0x08);
    machine.outb(port::COM1 + 1, 0x02);
    assert_eq!(machine.take_vectors(), [0x44]);
    assert_eq!(machine.inb(port::COM1 + 2), 0x02);
    machine.outb(port::COM1, b'>');
    assert_eq!(machine.take_vectors(), [0x44]);
    assert_eq!(machine.board.sent, b">");
}

#[test]
fn the_sci_is_level_triggered_and_comes_again_until_its_event_is_cleared() {
    const VECTOR: u8 = 0x49;
    let mut machine = Machine::new();
    machine.unmask_pin(gsi::SCI, VECTOR, Trigger::Level);
    // PM timer status enabled: the top bit of the 32-bit counter changes after 600 s.
    machine.write(port::PM1A_EVENT + 2, 2, 0x0001);
    machine.run_until(599_000 * MILLISECOND);
    assert_eq!(machine.take_vectors(), []);
    machine.run_until(600_000 * MILLISECOND);
    assert_eq!(machine.take_vectors(), [VECTOR]);

    machine
        .chipset
        .end_of_interrupt(VECTOR + 1, &mut machine.board);
    assert_eq!(machine.take_vectors(), [], "that was another's");
    machine.chipset.end_of_interrupt(VECTOR, &mut machine.board);
    assert_eq!(machine.take_vectors(), [VECTOR], "nobody saw to the event");
    assert_eq!(machine.read(port::PM1A_EVENT, 2), 0x0001);
    machine.write(port::PM1A_EVENT, 2, 0x0001);
    machine.chipset.end_of_interrupt(VECTOR, &mut machine.board);
    assert_eq!(machine.take_vectors(), []);
}

#[test]
fn the_power_button_is_an_sci() {
    let mut machine = Machine::new();
    machine.unmask_pin(gsi::SCI, 0x49, Trigger::Level);
    machine.write(port::PM1A_EVENT + 2, 2, 0x0100);
    machine.chipset.press_power_button(&mut machine.board);
    assert_eq!(machine.take_vectors(), [0x49]);
    assert_eq!(machine.read(port::PM1A_EVENT, 2), 0x0100);
}

#[test]
fn what_is_sent_to_a_missing_keyboard_comes_back_as_irq_1() {
    let mut machine = Machine::new();
    machine.unmask_pin(irq::KEYBOARD.into(), 0x41, Trigger::Edge);
    machine.outb(port::I8042_COMMAND, 0x60);
    machine.outb(port::I8042_DATA, 0x01);
    machine.outb(port::I8042_DATA, 0xf2);
    assert_eq!(machine.take_vectors(), [0x41]);
}

#[test]
fn firmware_has_set_the_id_of_the_ioapic() {
    let mut machine = Machine::new();
    machine.mmio_write(mmio::IOAPIC, 4, 0);
    let now = machine.now();
    assert_eq!(
        machine.chipset.mmio_read(now, mmio::IOAPIC + 0x10, 4),
        Some(u64::from(platform_map::IOAPIC_ID) << 24)
    );
}
