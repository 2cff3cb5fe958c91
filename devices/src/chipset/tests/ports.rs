//! The bus: who answers where, to which width, and the requests for power.

use proptest::prelude::*;

use super::*;

#[test]
fn nobody_answers_where_nothing_is() {
    let mut machine = Machine::new();
    for port in [
        0x0000, 0x0200, 0x02f8, 0x0402, 0x0512, 0x0cfa, 0x5658, 0xffff,
    ] {
        for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff)] {
            machine.write(port, size, 0);
            assert_eq!(machine.read(port, size), ones, "port {port:#x}");
        }
    }
    for address in [
        0,
        mmio::PCI_CONFIG - 1,
        mmio::IOAPIC + 0x1000,
        mmio::LOCAL_APIC,
        u64::MAX,
    ] {
        assert_eq!(machine.mmio_read(address, 4), None);
        let (chipset, mut env) = machine.parts();
        let claimed = chipset.mmio_write(address, 4, 0, &mut env);
        assert!(!claimed);
    }
}

#[test]
fn requests_for_power() {
    use PowerRequest::{DebugExit, Off, Reset};
    let s5 = u32::from(SLEEP_TYPE_S5) << 10 | 1 << 13 | 1;
    for (request, writes) in [
        (Off, &[(port::PM1A_CONTROL, 2, s5)][..]),
        (Off, &[(port::PM1A_CONTROL + 1, 1, s5 >> 8)]),
        (Off, &[(port::PM1A_CONTROL, 4, s5)]),
        (Reset, &[(port::I8042_COMMAND, 1, 0xfe)]),
        (
            Reset,
            &[(port::I8042_COMMAND, 1, 0xd1), (port::I8042_DATA, 1, 0xfe)],
        ),
        (Reset, &[(port::SYSTEM_CONTROL_A, 1, 0x01)]),
        (
            Reset,
            &[(port::RESET_CONTROL, 1, platform_map::RESET_VALUE as u32)],
        ),
        (
            Reset,
            &[
                (port::RESET_CONTROL, 1, 0x02),
                (port::RESET_CONTROL, 1, 0x06),
            ],
        ),
        (DebugExit(0x12), &[(port::DEBUG_EXIT, 1, 0xffff_ff12)]),
        (DebugExit(0x1234), &[(port::DEBUG_EXIT, 2, 0xffff_1234)]),
        (
            DebugExit(0x1234_5678),
            &[(port::DEBUG_EXIT, 4, 0x1234_5678)],
        ),
        (DebugExit(0), &[(port::DEBUG_EXIT, 4, 0)]),
    ] {
        let mut machine = Machine::new();
        for &(port, size, value) in writes {
            assert_eq!(machine.board.power, []);
            machine.write(port, size, value);
        }
        assert_eq!(machine.board.power, [request], "{writes:x?}");
    }
}

#[test]
fn a_wide_access_to_a_byte_device_is_one_to_each_of_its_ports() {
    let mut machine = Machine::new();
    // Divisor 0x000c by one word write.
    machine.outb(port::COM1 + 3, 0x80);
    machine.write(port::COM1, 2, 0x000c);
    assert_eq!(machine.inb(port::COM1), 0x0c);
    assert_eq!(machine.inb(port::COM1 + 1), 0x00);
    machine.outb(port::COM1 + 3, 0x03);
    // SCR and, beyond the UART, nothing.
    machine.write(port::COM1 + 7, 2, 0x00a5);
    assert_eq!(machine.read(port::COM1 + 7, 2), 0xffa5);
    // Both ELCRs.
    machine.write(port::ELCR_MASTER, 2, 0xffff);
    assert_eq!(machine.read(port::ELCR_MASTER, 4), 0xffff_def8);
    assert_eq!(machine.inb(0xffff), 0xff);
    assert_eq!(machine.read(0xffff, 4) as u8, 0xff, "past the last port");
}

#[test]
fn the_pm_timer_counts_guest_time_and_can_be_read_in_parts() {
    let mut machine = Machine::new();
    assert_eq!(machine.read(port::PM_TIMER, 4), 0);
    machine.run_until(1_000_000 * MILLISECOND);
    let count = 3_579_545_000_u32;
    assert_eq!(machine.read(port::PM_TIMER, 4), count);
    assert_eq!(machine.read(port::PM_TIMER, 2), count & 0xffff);
    assert_eq!(machine.read(port::PM_TIMER, 1), count & 0xff);
    assert_eq!(machine.read(port::PM_TIMER + 2, 2), count >> 16);
    assert_eq!(machine.read(port::PM_TIMER + 3, 1), count >> 24);
}

#[test]
fn linux_takes_pci_configuration_mechanism_1_and_finds_no_device() {
    let mut machine = Machine::new();
    // pci_check_type1()
    machine.outb(0xcfb, 0x01);
    machine.write(port::PCI_CONFIG_ADDRESS, 4, 0x8000_0000);
    assert_eq!(machine.read(port::PCI_CONFIG_ADDRESS, 4), 0x8000_0000);
    // pci_sanity_check(): a host bridge.
    machine.write(port::PCI_CONFIG_ADDRESS, 4, 0x8000_0008);
    assert_eq!(machine.read(port::PCI_CONFIG_DATA + 2, 2), 0x0600);
    assert_eq!(machine.inb(port::PCI_CONFIG_DATA + 3), 0x06);
    // The reset control register, amid the address register, is another's.
    assert_eq!(machine.inb(port::RESET_CONTROL), 0x00);
    machine.write(port::PCI_CONFIG_ADDRESS, 4, 0x8000_0800);
    assert_eq!(machine.read(port::PCI_CONFIG_DATA, 4), 0xffff_ffff);
    assert_eq!(machine.board.power, []);
}

#[test]
fn the_rtc_shows_the_date_it_was_given() {
    let mut machine = Machine::new();
    machine.run_until(1000 * MILLISECOND);
    let registers = [platform_map::RTC_CENTURY_INDEX, 9, 8, 7, 4, 2, 0];
    let shown = registers.map(|index| machine.cmos_read(index));
    assert_eq!(shown, [0x20, 0x26, 0x11, 0x23, 0x16, 0x21, 0x00]);
}

#[test]
fn a_word_write_sets_index_and_data_of_the_cmos() {
    let mut machine = Machine::new();
    machine.write(port::RTC_INDEX, 2, 0xa540);
    assert_eq!(machine.cmos_read(0x40), 0xa5);
}

#[test]
fn the_hpet_counts_guest_time_at_its_address() {
    let mut machine = Machine::new();
    machine.hpet_write(0x010, 1);
    machine.run_until(1000 * MILLISECOND);
    let counter = machine.mmio_read(mmio::HPET + 0xf0, 8);
    assert_eq!(counter, Some(hpet::FREQUENCY.get()));
}

#[test]
fn the_post_port_shows_the_last_code() {
    let mut machine = Machine::new();
    machine.outb(port::POST, 0xa5);
    assert_eq!(machine.inb(port::POST), 0xa5);
    assert_eq!(machine.chipset.post_code(), 0xa5);
}

#[test]
fn the_host_hears_when_com1_has_room_again() {
    let mut machine = Machine::new();
    machine.outb(port::COM1 + 2, 0x01);
    for byte in 0..16 {
        assert!(machine.chipset.serial_can_receive());
        machine.serial_receive(byte);
    }
    assert!(!machine.chipset.serial_can_receive());
    assert_eq!(machine.board.ready, 0);
    assert_eq!(machine.inb(port::COM1), 0);
    assert_eq!(machine.board.ready, 1);
    assert_eq!(machine.inb(port::COM1), 1);
    assert_eq!(machine.board.ready, 1);
}

#[test]
fn speaker_port_gates_channel_2_of_the_pit() {
    let mut machine = Machine::new();
    machine.outb(port::SYSTEM_CONTROL_B, 0x01);
    machine.outb(port::PIT + 3, 0xb0);
    machine.outb(port::PIT + 2, 0xff);
    machine.outb(port::PIT + 2, 0x00);
    assert_eq!(machine.inb(port::SYSTEM_CONTROL_B) & 0x20, 0);
    machine.run_until(MILLISECOND);
    assert_eq!(machine.inb(port::SYSTEM_CONTROL_B) & 0x20, 0x20);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16, u8),
    Write(u16, u8, u32),
    MmioRead(u64, u8),
    MmioWrite(u64, u8, u64),
    Wait(u64),
    Receive(u8),
    Acknowledge,
    EndOfInterrupt(u8),
    PowerButton,
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![
        0x20..0x22u16,
        0x40..0x44u16,
        0x60..0x65u16,
        0x70..0x72u16,
        0xa0..0xa2u16,
        0x3f8..0x400u16,
        0x4d0..0x4d2u16,
        0x600..0x60cu16,
        0xcf8..0xd00u16,
        any::<u16>(),
    ]
}

fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        mmio::IOAPIC..mmio::IOAPIC + 0x44,
        mmio::HPET..mmio::HPET + 0x180,
        any::<u64>(),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![Just(1u8), Just(2), Just(4)];
    let wide = prop_oneof![Just(1u8), Just(2), Just(4), Just(8)];
    prop_oneof![
        3 => (any_port(), size.clone()).prop_map(|(p, s)| Step::Read(p, s)),
        6 => (any_port(), size, any::<u32>()).prop_map(|(p, s, v)| Step::Write(p, s, v)),
        1 => (any_address(), wide.clone()).prop_map(|(a, s)| Step::MmioRead(a, s)),
        3 => (any_address(), wide, any::<u64>()).prop_map(|(a, s, v)| Step::MmioWrite(a, s, v)),
        3 => (0..MILLISECOND).prop_map(Step::Wait),
        1 => any::<u8>().prop_map(Step::Receive),
        1 => Just(Step::Acknowledge),
        1 => any::<u8>().prop_map(Step::EndOfInterrupt),
        1 => Just(Step::PowerButton),
    ]
}

impl Machine {
    fn take_step(&mut self, step: Step) {
        let time = self.time;
        let (chipset, mut env) = self.parts();
        match step {
            Step::Read(port, size) => {
                chipset.port_read(port, size, &mut env);
            }
            Step::Write(port, size, value) => chipset.port_write(port, size, value, &mut env),
            Step::MmioRead(address, size) => {
                chipset.mmio_read(address, size, &mut env);
            }
            Step::MmioWrite(address, size, value) => {
                chipset.mmio_write(address, size, value, &mut env);
            }
            Step::Wait(ticks) => self.run_until(time + ticks),
            Step::Receive(byte) => chipset.serial_receive(byte, &mut env),
            Step::Acknowledge => {
                let _ = chipset.acknowledge_pic(&mut env);
            }
            Step::EndOfInterrupt(vector) => chipset.end_of_interrupt(vector, env.host),
            Step::PowerButton => chipset.press_power_button(&mut env),
        }
    }
}

proptest! {
    /// Nothing that a guest did before it shows after a reset, but in what has a battery.
    #[test]
    fn a_reset_is_a_new_machine(steps in proptest::collection::vec(any_step(), 0..200)) {
        let mut machine = Machine::new();
        for step in steps {
            machine.take_step(step);
        }
        let (chipset, mut env) = machine.parts();
        chipset.reset(&mut env);
        prop_assert!(!machine.board.intr);
        let mut fresh = Chipset::new(&machine.config, Vec::new(), machine.now());
        for chipset in [&mut machine.chipset, &mut fresh] {
            let rtc = &mut chipset.devices.rtc;
            *rtc = Rtc::new(machine.config.date, TSC, Now::default());
            // No state of the machine's: it tells only that something has changed.
            chipset.deadline_changes = 0;
        }
        prop_assert_eq!(std::format!("{:?}", machine.chipset), std::format!("{fresh:?}"));
    }

    /// Nothing that a guest does panics, and the deadline kept is always that of the devices.
    #[test]
    fn the_deadline_is_the_earliest_of_the_devices_whatever_a_guest_does(
        steps in proptest::collection::vec(any_step(), 0..200)
    ) {
        let mut machine = Machine::new();
        for step in steps {
            machine.take_step(step);
            let kept = machine.chipset.next_deadline();
            let chipset = &mut machine.chipset;
            let earliest = Id::ALL
                .iter()
                .filter_map(|&id| {
                    let outputs = Outputs::new(&chipset.interrupts, id.wires());
                    chipset.devices.get(id).next_deadline(&outputs)
                })
                .min();
            prop_assert_eq!(kept, earliest);
        }
    }
}

#[test]
fn firmware_configuration_is_read_byte_by_byte() {
    let mut machine = Machine::new();
    machine.write(port::FW_CFG_SELECTOR, 2, 5);
    assert_eq!(machine.inb(port::FW_CFG_DATA), 2, "processors");
    machine.write(port::FW_CFG_SELECTOR, 2, 3);
    let size = [(); 8].map(|()| machine.inb(port::FW_CFG_DATA));
    assert_eq!(u64::from_le_bytes(size), 256 << 20);
}

#[test]
fn the_test_device_keeps_bytes_in_any_width() {
    let mut machine = Machine::new();
    machine.write(port::TEST_LATCH, 4, 0x1234_5678);
    assert_eq!(machine.inb(port::TEST_LATCH + 1), 0x56);
    assert_eq!(machine.read(port::TEST_BYTES, 2), 0x5678);
    machine.mmio_write(mmio::TEST_MEMORY + 0xfff0, 8, 0x1122_3344_5566_7788);
    let read = machine.mmio_read(mmio::TEST_MEMORY + 0xfff4, 4);
    assert_eq!(read.map(|value| value as u32), Some(0x1122_3344));
}

#[test]
fn a_machine_without_test_devices_has_nothing_in_their_places() {
    let mut machine = Machine::with_test_devices(false);
    let ports = [
        port::DEBUG_EXIT,
        port::TEST_LATCH,
        port::TEST_BYTES,
        port::TEST_IRQ_LINES,
        port::FW_CFG_SELECTOR,
        port::FW_CFG_DATA,
    ];
    for port in ports {
        for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff)] {
            machine.write(port, size, 0);
            assert_eq!(machine.read(port, size), ones, "port {port:#x}");
        }
    }
    assert_eq!(machine.mmio_read(mmio::TEST_MEMORY, 4), None);
    assert_eq!(machine.board.power, []);
}

#[test]
fn xv6_finds_the_cursor_and_moves_it() {
    let mut machine = Machine::new();
    // cgaputc(): index and data by single bytes.
    let cursor = |machine: &mut Machine| {
        machine.outb(port::VGA_CRTC, 14);
        let high = machine.inb(port::VGA_CRTC + 1);
        machine.outb(port::VGA_CRTC, 15);
        u16::from_be_bytes([high, machine.inb(port::VGA_CRTC + 1)])
    };
    assert_eq!(cursor(&mut machine), 0);
    machine.outb(port::VGA_CRTC, 14);
    machine.outb(port::VGA_CRTC + 1, 0x07);
    machine.outb(port::VGA_CRTC, 15);
    machine.outb(port::VGA_CRTC + 1, 0xcf);
    assert_eq!(cursor(&mut machine), 24 * 80 + 79);
    assert_eq!(machine.chipset.text_screen().cursor, Some(24 * 80 + 79));
    // By one word, as others do it: 0x20 to the cursor start switches it off.
    machine.write(port::VGA_CRTC, 2, 0x200a);
    assert_eq!(machine.chipset.text_screen().cursor, None);
    machine.write(port::VGA_CRTC, 2, 0x500d);
    assert_eq!(machine.chipset.text_screen().start, 80);
}

#[test]
fn a_driver_that_waits_for_the_vertical_retrace_sees_70_of_them_in_a_second() {
    const RETRACE: u8 = 1 << 3;
    let mut machine = Machine::new();
    let mut retraces = 0;
    let mut before = 0;
    for microsecond in 0..1_000_000 {
        machine.time = 1000 * microsecond;
        let status = machine.inb(port::VGA_INPUT_STATUS_1) & RETRACE;
        retraces += u32::from(status > before);
        before = status;
    }
    assert_eq!(retraces, 70);
}
