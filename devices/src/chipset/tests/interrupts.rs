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

/// HPET registers and bits, and how many cycles of it are a millisecond.
const HPET_CONFIGURATION: u64 = 0x010;
const HPET_STATUS: u64 = 0x020;
const HPET_ENABLE: u64 = 1 << 0;
const HPET_LEGACY: u64 = 1 << 1;
const HPET_LEVEL: u64 = 1 << 1;
const HPET_INTERRUPT: u64 = 1 << 2;
const HPET_PERIODIC: u64 = 1 << 3;
const HPET_SET_VALUE: u64 = 1 << 6;
const HPET_ROUTE: u32 = 9;
const HPET_MILLISECOND: u64 = hpet::FREQUENCY.get() / 1000;

const fn hpet_timer(timer: u64) -> (u64, u64) {
    (0x100 + 0x20 * timer, 0x108 + 0x20 * timer)
}

#[test]
fn in_legacy_replacement_the_hpet_ticks_in_place_of_the_pit() {
    let mut machine = Machine::new();
    machine.start_pit();
    machine.unmask_pin(gsi::PIT, 0x40, Trigger::Edge);
    let (configuration, comparator) = hpet_timer(0);
    machine.hpet_write(
        configuration,
        HPET_INTERRUPT | HPET_PERIODIC | HPET_SET_VALUE,
    );
    machine.hpet_write(comparator, 2 * HPET_MILLISECOND);
    machine.hpet_write(comparator, 2 * HPET_MILLISECOND);
    machine.hpet_write(HPET_CONFIGURATION, HPET_ENABLE | HPET_LEGACY);
    machine.run_until(MILLISECOND * 21 / 2);
    assert_eq!(machine.take_vectors(), [0x40; 5]);

    machine.unmask_pic(irq::PIT);
    machine.run_until(MILLISECOND * 25 / 2);
    assert!(machine.board.intr);
    assert_eq!(machine.acknowledge_pic(), 0x30);
    machine.take_vectors();

    // Back to the PIT, which went on in the meantime.
    machine.hpet_write(HPET_CONFIGURATION, HPET_ENABLE);
    machine.take_vectors();
    machine.run_until(MILLISECOND * 45 / 2);
    assert_eq!(machine.take_vectors(), [0x40; 10]);
}

#[test]
fn in_legacy_replacement_the_hpet_has_irq_8_in_place_of_the_rtc() {
    const PERIODIC_INTERRUPT: u8 = 1 << 6;
    let mut machine = Machine::new();
    machine.unmask_pin(irq::RTC.into(), 0x48, Trigger::Edge);
    // 1024 Hz; each has to be acknowledged by a read of register C.
    let status = machine.cmos_read(0x0b);
    machine.cmos_write(0x0b, status | PERIODIC_INTERRUPT);
    machine.run_until(MILLISECOND);
    assert_eq!(machine.take_vectors(), [0x48]);
    machine.cmos_read(0x0c);

    let (configuration, comparator) = hpet_timer(1);
    machine.hpet_write(configuration, HPET_INTERRUPT);
    machine.hpet_write(comparator, 3 * HPET_MILLISECOND);
    machine.hpet_write(HPET_CONFIGURATION, HPET_ENABLE | HPET_LEGACY);
    machine.run_until(MILLISECOND * 3);
    assert_eq!(machine.take_vectors(), []);
    machine.run_until(MILLISECOND * 5);
    assert_eq!(machine.take_vectors(), [0x48]);
    assert_ne!(machine.cmos_read(0x0c) & PERIODIC_INTERRUPT, 0);

    machine.hpet_write(HPET_CONFIGURATION, HPET_ENABLE);
    machine.run_until(MILLISECOND * 6);
    assert_eq!(machine.take_vectors(), [0x48]);
}

#[test]
fn a_level_triggered_hpet_timer_interrupts_its_pin_until_its_status_is_cleared() {
    const PIN: u32 = 21;
    let mut machine = Machine::new();
    machine.unmask_pin(PIN, 0x55, Trigger::Level);
    let (configuration, comparator) = hpet_timer(2);
    let route = u64::from(PIN) << HPET_ROUTE;
    machine.hpet_write(configuration, HPET_INTERRUPT | HPET_LEVEL | route);
    machine.hpet_write(comparator, HPET_MILLISECOND);
    machine.hpet_write(HPET_CONFIGURATION, HPET_ENABLE);
    machine.run_until(MILLISECOND);
    assert_eq!(machine.take_vectors(), [0x55]);
    machine.chipset.end_of_interrupt(0x55, &mut machine.board);
    assert_eq!(machine.take_vectors(), [0x55]);
    machine.hpet_write(HPET_STATUS, 1 << 2);
    machine.chipset.end_of_interrupt(0x55, &mut machine.board);
    assert_eq!(machine.take_vectors(), []);
}

#[test]
fn hpet_timers_that_share_a_pin_hold_it_until_the_last_has_been_seen_to() {
    const PIN: u32 = 21;
    let mut machine = Machine::new();
    machine.unmask_pin(PIN, 0x55, Trigger::Level);
    let route = u64::from(PIN) << HPET_ROUTE;
    for (timer, trigger) in [(0, HPET_LEVEL), (1, 0), (2, HPET_LEVEL)] {
        let (configuration, comparator) = hpet_timer(timer);
        machine.hpet_write(configuration, HPET_INTERRUPT | trigger | route);
        machine.hpet_write(comparator, (1 + timer) * HPET_MILLISECOND);
    }
    machine.hpet_write(HPET_CONFIGURATION, HPET_ENABLE);
    machine.run_until(3 * MILLISECOND);
    assert_eq!(machine.take_vectors(), [0x55]);
    machine.hpet_write(HPET_STATUS, 1 << 0);
    machine.chipset.end_of_interrupt(0x55, &mut machine.board);
    assert_eq!(machine.take_vectors(), [0x55], "timer 2 is left");
    machine.hpet_write(HPET_STATUS, 1 << 2);
    machine.chipset.end_of_interrupt(0x55, &mut machine.board);
    assert_eq!(machine.take_vectors(), []);
}

#[test]
fn the_hpet_routes_to_no_pin_of_another_device() {
    let irqs = [
        irq::PIT,
        irq::KEYBOARD,
        irq::CASCADE,
        irq::COM1,
        irq::RTC,
        irq::SCI,
        irq::MOUSE,
    ];
    for irq in irqs {
        assert_eq!(HPET_ROUTES >> irq & 1, 0);
    }
    const { assert!(HPET_ROUTES >> platform_map::IOAPIC_PINS == 0) };
}

#[test]
fn the_rtc_interrupts_as_irq_8_until_register_c_is_read() {
    let mut machine = Machine::new();
    machine.unmask_pic(irq::RTC);
    // Update-ended interrupt, once a second.
    let status = machine.cmos_read(0x0b);
    machine.cmos_write(0x0b, status | 1 << 4);
    for second in 1..=3 {
        machine.run_until(second * 1000 * MILLISECOND - 1);
        assert!(!machine.board.intr);
        machine.run_until(second * 1000 * MILLISECOND);
        assert_eq!(machine.acknowledge_pic(), 0x38);
        machine.outb(port::PIC_SLAVE, 0x20);
        machine.outb(port::PIC_MASTER, 0x20);
        assert_eq!(machine.cmos_read(0x0c) & 0x90, 0x90);
    }
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
            machine.serial_receive(b'x');
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
    machine.serial_receive(b'x');
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
    machine.press_power_button();
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
    assert_eq!(
        machine.mmio_read(mmio::IOAPIC + 0x10, 4),
        Some(u64::from(platform_map::IOAPIC_ID) << 24)
    );
}

#[test]
fn the_test_device_drives_the_pins_of_the_ioapic() {
    let mut machine = Machine::new();
    for (line, pin) in [(0, gsi::PIT), (14, 14), (15, 15), (23, 23)] {
        machine.unmask_pin(pin, 0x70 + line as u8, Trigger::Edge);
        machine.outb(port::TEST_IRQ_LINES + line, 1);
        machine.outb(port::TEST_IRQ_LINES + line, 0);
        let vectors: Vec<_> = machine.board.messages.drain(..).map(|m| m.vector).collect();
        assert_eq!(vectors, [0x70 + line as u8], "line {line}");
    }
}
