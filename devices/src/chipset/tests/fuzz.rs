//! Targets for fuzzing: a guest that reads and writes the registers of all devices at will, and a driver
//! that puts anything into its device.

use super::virtio::{machine as with_virtio, serves_a_good_driver, work_off};
use super::*;

/// Ports of devices, and what is near them.
const PORTS: [(u16, u16); 18] = [
    (port::PIC_MASTER, 2),
    (port::PIC_SLAVE, 2),
    (port::ELCR_MASTER, 2),
    (port::PIT, 4),
    (port::SYSTEM_CONTROL_A, 1),
    (0x61, 1),
    (port::RTC_INDEX, 2),
    (port::I8042_DATA, 1),
    (port::I8042_COMMAND, 1),
    (port::COM1, 8),
    (port::PM1A_CONTROL - 4, 8),
    (port::PM_TIMER, 4),
    (port::RESET_CONTROL, 1),
    (0xcf8, 8),
    (0x510, 12),
    (port::DEBUG_EXIT, 4),
    (0x80, 1),
    (0x3c0, 0x20),
];

/// Memory of devices.
const MEMORY: [(u64, u64); 3] = [
    (mmio::IOAPIC, 0x40),
    (mmio::HPET, 0x200),
    (mmio::HPET, 0x400),
];

/// The most calls that the chipset may want at once: one for each of its timers, some more for what they do
/// to each other.
const MOST_CALLS: u32 = 64;

impl Machine {
    /// Lets time pass, and calls the chipset when it wants to be; checks that it comes to an end.
    fn let_pass(&mut self, ticks: u64) {
        let time = self.time + ticks;
        let mut calls_now = 0;
        for _ in 0..2000 {
            let Some(deadline) = self.chipset.next_deadline().filter(|at| at.0 <= time) else {
                break;
            };
            calls_now = if deadline.0 > self.time {
                0
            } else {
                calls_now + 1
            };
            assert!(
                calls_now <= MOST_CALLS,
                "wants to be called again and again"
            );
            self.time = self.time.max(deadline.0);
            self.expire();
        }
        self.time = time;
        self.expire();
    }

    /// Does what a guest, or its machine, may do.
    fn act(&mut self, kind: u8, place: u16, value: u64) {
        let size = [1, 2, 4][usize::from(kind >> 6) % 3];
        let port = match kind & 0x20 {
            0 => {
                let (first, count) = PORTS[usize::from(place) % PORTS.len()];
                first + (place >> 8) % count
            }
            _ => place,
        };
        let (base, length) = MEMORY[usize::from(place) % MEMORY.len()];
        let address = base + u64::from(place >> 2) % length;
        match kind % 16 {
            0..5 => self.write(port, size, value as u32),
            5..8 => {
                let read = self.read(port, size);
                assert!(
                    size == 4 || read < 1 << (8 * size),
                    "{port:#x} read as {read:#x}"
                );
            }
            8 | 9 => {
                let size = if kind & 0x10 == 0 { size } else { 8 };
                let (chipset, mut env) = self.parts();
                chipset.mmio_write(address, size, value, &mut env);
                self.run_work();
            }
            10 => {
                let size = if kind & 0x10 == 0 { size } else { 8 };
                self.mmio_read(address, size);
            }
            11 => self.serial_receive(value as u8),
            12 => {
                if self.board.intr {
                    self.acknowledge_pic();
                }
                let (chipset, env) = self.parts();
                chipset.end_of_interrupt(value as u8, env.host);
            }
            13 => self.press_power_button(),
            _ => self.let_pass(match kind & 0x30 {
                0 => value % 100,
                0x10 => value % MILLISECOND,
                0x20 => value % (3000 * MILLISECOND),
                // A day, and how long it may be that nobody looks.
                _ => value % (1 << 47),
            }),
        }
    }
}

#[test]
fn registers_of_all_devices() {
    fuzzing::check!()
        .with_type::<(Vec<(u8, u16, u64)>, bool, bool)>()
        .for_each(|(acts, test_devices, starts_in_firmware)| {
            let firmware = starts_in_firmware.then(|| FirmwareConfig {
                low_ram: 1 << 28,
                high_ram: 0,
                files: vec![fw_cfg::File {
                    name: "etc/test",
                    content: vec![0x5a; 300],
                }],
            });
            let machine = || Machine::with(*test_devices, Vec::new(), firmware.clone());
            let mut machines = [machine(), machine()];
            for machine in &mut machines {
                for &(kind, place, value) in acts {
                    machine.act(kind, place, value);
                }
                let exits = |request: &PowerRequest| matches!(request, PowerRequest::DebugExit(_));
                assert!(*test_devices || !machine.board.power.iter().any(exits));
                assert!(machine.board.reports.len() <= acts.len());
            }
            // Devices depend on nothing else.
            let [one, other] = machines.map(|machine| machine.board);
            assert_eq!(one.messages, other.messages);
            assert_eq!(
                (one.sent, one.power, one.reports),
                (other.sent, other.power, other.reports)
            );
        });
}

#[test]
fn after_a_reset_all_is_as_in_the_beginning() {
    fuzzing::check!()
        .with_type::<(Vec<(u8, u16, u64)>, Vec<u16>)>()
        .for_each(|(acts, ports)| {
            let mut machine = Machine::new();
            for &(kind, place, value) in acts {
                machine.act(kind, place, value);
            }
            let (chipset, mut env) = machine.parts();
            chipset.reset(&mut env);
            machine.board = Board::default();
            let mut fresh = Machine::new();
            // What counts goes on counting, and what is dated or received stays.
            fresh.time = 0;
            for port in ports.iter().map(|it| PORTS[usize::from(*it) % PORTS.len()]) {
                let counts = matches!(port.0, port::PIT | port::RTC_INDEX | port::PM_TIMER | 0x61)
                    || (port::PM1A_CONTROL - 4..port::PM1A_CONTROL + 8).contains(&port.0)
                    || matches!(port.0, port::COM1 | 0x510 | 0xcf8 | 0x3c0);
                if !counts {
                    for offset in 0..port.1 {
                        let at = port.0 + offset;
                        assert_eq!(machine.inb(at), fresh.inb(at), "port {at:#x}");
                    }
                }
            }
            for register in 0..0x40 {
                machine.mmio_write(mmio::IOAPIC, 4, register);
                fresh.mmio_write(mmio::IOAPIC, 4, register);
                let at = mmio::IOAPIC + 0x10;
                assert_eq!(
                    machine.mmio_read(at, 4),
                    fresh.mmio_read(at, 4),
                    "IOAPIC {register:#x}"
                );
            }
            let enabled = machine.mmio_read(mmio::HPET + 0x10, 8);
            assert_eq!(enabled, fresh.mmio_read(mmio::HPET + 0x10, 8));
        });
}

#[test]
fn structures_and_rings_of_a_virtio_device() {
    fuzzing::check!()
        .with_type::<(Vec<(u8, u16, u64)>, Vec<(u16, u64)>, [u8; 32])>()
        .for_each(|(writes, words, garbage)| {
            let mut machine = with_virtio();
            let ram = machine.ram.clone();
            for start in (0..0x4000).step_by(garbage.len()) {
                ram.put(start, garbage);
            }
            for &(at, value) in words {
                ram.put(u64::from(at & !7), &value.to_le_bytes());
            }
            let at = machine.structures();
            for &(kind, place, value) in writes {
                let size = [1, 2, 4, 8][usize::from(kind & 3)];
                let address = match kind >> 2 & 7 {
                    0..4 => at.common + u64::from(place % 0x40),
                    4 => at.notify + u64::from(place % 8),
                    5 => at.msix + u64::from(place % 0x1000),
                    6 => at.device + u64::from(place % 0x100),
                    _ => at.common + u64::from(place % 0x4000),
                };
                // Mostly small values, as addresses within RAM.
                let value = if kind & 0x20 == 0 {
                    value & 0xffff
                } else {
                    value
                };
                if kind & 0x40 == 0 {
                    machine.mmio_write(address, size, value);
                } else {
                    machine.peek(address, size);
                }
                work_off(&mut machine);
            }
            assert!(serves_a_good_driver(&mut machine, at, &ram));
        });
}

#[test]
fn configuration_space_of_pci() {
    fuzzing::check!()
        .with_type::<Vec<(u8, u8, u8, u32)>>()
        .for_each(|acts| {
            let mut machine = with_virtio();
            let identity = machine.pci_read(1, 0);
            for &(kind, device, offset, value) in acts {
                let device = if kind & 0x80 == 0 {
                    1
                } else {
                    u32::from(device % 32)
                };
                let size = [1, 2, 4][usize::from(kind % 3)];
                if kind & 0x40 == 0 {
                    let offset = u32::from(offset) & !(u32::from(size) - 1);
                    machine.pci_write(device, offset, size, value);
                } else {
                    machine.pci_read(device, u32::from(offset & !3));
                }
                assert_eq!(
                    machine.pci_read(1, 0),
                    identity,
                    "who it is cannot be written"
                );
                // Capabilities are a list that ends.
                let mut at = machine.pci_read(1, 0x34) & 0xff;
                for _ in 0..48 {
                    at = if at == 0 {
                        0
                    } else {
                        machine.config_byte(at + 1).into()
                    };
                }
                assert_eq!(at, 0);
            }
        });
}
