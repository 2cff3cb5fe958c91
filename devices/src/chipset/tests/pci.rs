//! The PCI bus as a driver finds it.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::chipset::pci::config::ConfigSpace;
use crate::chipset::pci::{BarAccess, FunctionContext, Header};

/// The accesses that a function has seen.
type Log = Arc<Mutex<Vec<(BarAccess, Option<u64>)>>>;

/// A function with a BAR of 8 KiB and MSI-X in another. A write of a vector to offset 0 of the BAR
/// interrupts by message, one of 1 or 0 to offset 8 drives the pin, one to offset 16 tells whether
/// it is a bus master, and one to offset 24 says how many times it has something to do.
#[derive(Debug)]
struct Gadget {
    log: Log,
    is_master: bool,
    tasks: u64,
}

const GADGET: Header = Header {
    id: (0x1234, 0x5678),
    subsystem: (0x1234, 0x0001),
    class: (0xff, 0, 0),
    revision: 3,
};

impl PciFunction for Gadget {
    fn config(&mut self) -> ConfigSpace {
        let mut config = GADGET.config();
        config.add_memory_bar(0, 0x2000);
        config
    }

    fn msix(&self) -> Option<(usize, usize)> {
        Some((1, 4))
    }

    fn read(&mut self, access: BarAccess, _: &mut FunctionContext<'_>) -> u64 {
        self.log.lock().unwrap().push((access, None));
        u64::from(self.is_master)
    }

    fn write(&mut self, access: BarAccess, value: u64, cx: &mut FunctionContext<'_>) {
        self.log.lock().unwrap().push((access, Some(value)));
        match access.offset {
            0 => cx.send_message(value as u16),
            8 => cx.set_pin(value != 0),
            16 => self.is_master = cx.is_master,
            24 => self.tasks = value,
            _ => {}
        }
    }

    fn next_deadline(&self) -> Option<TimerTicks> {
        (self.tasks != 0).then_some(TimerTicks::ZERO)
    }

    fn expire(&mut self, cx: &mut FunctionContext<'_>) {
        self.tasks -= 1;
        cx.report(format_args!("{} left", self.tasks));
    }

    fn reset(&mut self) {
        self.is_master = false;
    }
}

/// A machine with `count` gadgets, and what those have been asked for.
fn machine_with(count: usize) -> (Machine, Vec<Log>) {
    let logs: Vec<Log> = (0..count).map(|_| Log::default()).collect();
    let functions = logs
        .iter()
        .map(|log| -> Box<dyn PciFunction> {
            Box::new(Gadget {
                log: log.clone(),
                is_master: false,
                tasks: 0,
            })
        })
        .collect();
    (Machine::with_functions(false, functions), logs)
}

const fn config_address(device: u32, register: u32) -> u32 {
    1 << 31 | device << 11 | register
}

impl Machine {
    pub(super) fn pci_read(&mut self, device: u32, register: u32) -> u32 {
        let address = config_address(device, register & 0xfc);
        self.write(port::PCI_CONFIG_ADDRESS, 4, address);
        self.read(port::PCI_CONFIG_DATA, 4)
    }

    pub(super) fn pci_write(&mut self, device: u32, register: u32, size: u8, value: u32) {
        let address = config_address(device, register & 0xfc);
        self.write(port::PCI_CONFIG_ADDRESS, 4, address);
        let port = port::PCI_CONFIG_DATA + (register & 3) as u16;
        self.write(port, size, value);
    }

    pub(super) fn bar(&mut self, device: u32, bar: u32) -> u64 {
        u64::from(self.pci_read(device, 0x10 + 4 * bar) & !0xf)
    }

    /// The offset of the capability `id`.
    pub(super) fn capability(&mut self, device: u32, id: u8) -> u32 {
        let mut offset = self.pci_read(device, 0x34) & 0xff;
        while offset != 0 {
            let header = self.pci_read(device, offset);
            if header as u8 == id {
                return offset;
            }
            offset = header >> 8 & 0xff;
        }
        panic!("no capability {id:#x}");
    }
}

#[test]
fn linux_finds_mechanism_1_with_a_host_bridge() {
    // pci_check_type1() and pci_sanity_check().
    let mut machine = Machine::new();
    machine.write(port::PCI_CONFIG_ADDRESS, 4, 0x8000_0000);
    assert_eq!(machine.read(port::PCI_CONFIG_ADDRESS, 4), 0x8000_0000);
    machine.write(port::PCI_CONFIG_ADDRESS, 4, 0x8000_0008);
    assert_eq!(machine.read(port::PCI_CONFIG_DATA + 2, 2), 0x0600);
}

#[test]
fn nothing_else_is_on_the_bus() {
    let (mut machine, _) = machine_with(2);
    for function in 0..0x1_0000 {
        machine.write(port::PCI_CONFIG_ADDRESS, 4, 0x8000_0000 | function << 8);
        let id = machine.read(port::PCI_CONFIG_DATA, 4);
        let expected = match function {
            0 => 0x0d57_8086,
            0x08 | 0x10 => 0x5678_1234,
            _ => u32::MAX,
        };
        assert_eq!(id, expected, "{function:#x}");
        if function < 0x100 {
            let address = mmio::PCI_CONFIG + (u64::from(function) << 12);
            let mapped = machine.mmio_read(address, 4).unwrap();
            assert_eq!(mapped as u32, expected, "{function:#x}");
        }
    }
    for address in [
        mmio::PCI_CONFIG + mmio::PCI_CONFIG_LENGTH - 4,
        mmio::PCI_WINDOW + 0x8000,
        mmio::PCI_WINDOW + mmio::PCI_WINDOW_LENGTH - 4,
    ] {
        machine.mmio_write(address, 4, 0);
        assert_eq!(
            machine.mmio_read(address, 4),
            Some(u64::MAX),
            "{address:#x}"
        );
    }
}

#[test]
fn without_the_enable_bit_there_is_no_configuration_space() {
    let mut machine = Machine::new();
    machine.write(port::PCI_CONFIG_ADDRESS, 4, 0);
    assert_eq!(machine.read(port::PCI_CONFIG_DATA, 4), u32::MAX);
}

#[test]
fn the_bridge_has_a_single_function_and_no_resources() {
    let mut machine = Machine::new();
    for register in (0x0c..0x100).step_by(4) {
        machine.pci_write(0, register, 4, u32::MAX);
        assert_eq!(machine.pci_read(0, register), 0);
    }
}

#[test]
fn both_ways_to_the_configuration_space_show_the_same_bytes() {
    let (mut machine, _) = machine_with(1);
    for register in (0..0x100).step_by(4) {
        let by_ports = machine.pci_read(1, register);
        let address = mmio::PCI_CONFIG + 0x8000 + u64::from(register);
        assert_eq!(machine.mmio_read(address, 4), Some(by_ports.into()));
        for (byte, expected) in (0..).zip(by_ports.to_le_bytes()) {
            let read = machine.mmio_read(address + byte, 1).unwrap();
            assert_eq!(read as u8, expected);
            let port = port::PCI_CONFIG_DATA + byte as u16;
            assert_eq!(machine.inb(port), expected);
        }
        if register % 8 == 0 {
            let next = machine.pci_read(1, register + 4);
            let both = u64::from(next) << 32 | u64::from(by_ports);
            assert_eq!(machine.mmio_read(address, 8), Some(both));
        }
    }
    assert_eq!(
        machine.mmio_read(mmio::PCI_CONFIG + 0x8100, 4).unwrap() as u32,
        u32::MAX,
        "no extended space"
    );
}

#[test]
fn bars_are_placed_apart_and_answer_where_the_guest_moves_them() {
    let (mut machine, logs) = machine_with(2);
    let bases = [
        machine.bar(1, 0),
        machine.bar(1, 1),
        machine.bar(2, 0),
        machine.bar(2, 1),
    ];
    for (n, &base) in bases.iter().enumerate() {
        assert!(base >= mmio::PCI_WINDOW && base.is_multiple_of(0x1000));
        assert!(bases[..n].iter().all(|&other| base >= other + 0x1000));
    }
    machine.mmio_write(bases[2] + 0x1ff8, 8, 0x1122_3344_5566_7788);
    assert_eq!(
        logs[1].lock().unwrap().pop(),
        Some((
            BarAccess {
                bar: 0,
                offset: 0x1ff8,
                size: 8
            },
            Some(0x1122_3344_5566_7788)
        ))
    );
    assert!(logs[0].lock().unwrap().is_empty());
    // As a driver that moves it: decoding off, size, new base, decoding on.
    let elsewhere = mmio::PCI_WINDOW + 0x0800_0000;
    machine.pci_write(2, 0x04, 2, 0);
    assert_eq!(machine.mmio_read(bases[2], 4), Some(u64::MAX));
    machine.pci_write(2, 0x10, 4, u32::MAX);
    assert_eq!(machine.pci_read(2, 0x10), 0xffff_e000);
    machine.pci_write(2, 0x10, 4, elsewhere as u32);
    machine.pci_write(2, 0x04, 2, 0x0006);
    assert!(logs[1].lock().unwrap().is_empty());
    machine.mmio_read(elsewhere + 0x20, 2);
    let access = BarAccess {
        bar: 0,
        offset: 0x20,
        size: 2,
    };
    assert_eq!(logs[1].lock().unwrap().pop(), Some((access, None)));
    assert_eq!(machine.mmio_read(bases[2], 4), Some(u64::MAX));
    // Out of the bridge's window nothing reaches it.
    machine.pci_write(2, 0x10, 4, 0xfee0_0000);
    assert_eq!(machine.mmio_read(0xfee0_0000, 4), None);
}

#[test]
fn only_a_bus_master_reaches_memory() {
    let (mut machine, _) = machine_with(1);
    let bar = machine.bar(1, 0);
    for (command, reaches) in [(0x0006, 1), (0x0002, 0)] {
        machine.pci_write(1, 0x04, 2, command);
        machine.mmio_write(bar + 16, 4, 0);
        assert_eq!(machine.mmio_read(bar, 4), Some(reaches));
    }
}

#[test]
fn a_pin_interrupts_at_the_ioapic_and_at_the_8259a_until_it_is_let_go() {
    for device in 1..=4u32 {
        let (mut machine, _) = machine_with(4);
        let pin = gsi::PCI + device % 4;
        // Level-triggered, active low.
        machine.ioapic_write(0x10 + 2 * pin as u8, 1 << 15 | 1 << 13 | 0x60);
        let irq = irq::PCI[device as usize % 4];
        machine.unmask_pic(irq);
        assert!(!machine.board.intr);
        let bar = machine.bar(device, 0);
        let status = |machine: &mut Machine| machine.pci_read(device, 0x04) >> 16 & 1 << 3;
        assert_eq!(status(&mut machine), 0);
        machine.mmio_write(bar + 8, 4, 1);
        assert_eq!(machine.take_vectors(), [0x60], "device {device}");
        assert!(machine.board.intr);
        assert_eq!(status(&mut machine), 1 << 3);
        machine.chipset.end_of_interrupt(0x60, &mut machine.board);
        assert_eq!(machine.take_vectors(), [0x60], "still asserted");
        machine.mmio_write(bar + 8, 4, 0);
        machine.chipset.end_of_interrupt(0x60, &mut machine.board);
        assert_eq!(machine.take_vectors(), []);
        assert!(!machine.board.intr, "a level goes with its wire");
        // Switched off in the command register.
        machine.pci_write(device, 0x04, 2, 0x0406);
        machine.mmio_write(bar + 8, 4, 1);
        assert_eq!(machine.take_vectors(), []);
        assert_eq!(status(&mut machine), 1 << 3);
        assert_eq!(
            machine.pci_read(device, 0x3c) as u16,
            0x0100 | u16::from(irq)
        );
    }
}

#[test]
fn pins_that_share_an_interrupt_hold_it_until_the_last_has_let_go() {
    let (mut machine, _) = machine_with(5);
    let pin = gsi::PCI + 1;
    machine.ioapic_write(0x10 + 2 * pin as u8, 1 << 15 | 1 << 13 | 0x60);
    let (first, fifth) = (machine.bar(1, 0), machine.bar(5, 0));
    machine.mmio_write(first + 8, 4, 1);
    machine.mmio_write(fifth + 8, 4, 1);
    assert_eq!(machine.take_vectors(), [0x60]);
    machine.mmio_write(first + 8, 4, 0);
    machine.chipset.end_of_interrupt(0x60, &mut machine.board);
    assert_eq!(machine.take_vectors(), [0x60]);
    machine.mmio_write(fifth + 8, 4, 0);
    machine.chipset.end_of_interrupt(0x60, &mut machine.board);
    assert_eq!(machine.take_vectors(), []);
}

#[test]
fn messages_go_where_the_table_says_once_they_are_switched_on() {
    let (mut machine, logs) = machine_with(1);
    let (bar, table) = (machine.bar(1, 0), machine.bar(1, 1));
    let capability = machine.capability(1, 0x11);
    let control = machine.pci_read(1, capability) >> 16;
    assert_eq!(control, 3, "four vectors, off");
    assert_eq!(machine.pci_read(1, capability + 4), 1, "in BAR 1, at 0");
    machine.mmio_write(table + 0x20, 4, 0xfee0_1000);
    machine.mmio_write(table + 0x28, 4, 0x71);
    machine.mmio_write(table + 0x2c, 4, 0);
    machine.mmio_write(bar, 4, 2);
    assert_eq!(machine.take_vectors(), [], "off");
    machine.pci_write(1, capability + 2, 2, 0x8000);
    machine.mmio_write(bar, 4, 2);
    assert_eq!(
        machine.board.messages,
        [ApicMessage {
            destination: Destination::Physical(1),
            delivery_mode: DeliveryMode::Fixed,
            vector: 0x71,
            trigger: Trigger::Edge,
        }]
    );
    assert_eq!(logs[0].lock().unwrap().len(), 2, "the table is the bus's");
}

#[test]
fn functions_that_have_much_to_do_take_turns() {
    let (mut machine, _) = machine_with(2);
    for (device, tasks) in [(1, 12), (2, 3)] {
        let bar = machine.bar(device, 0);
        machine.mmio_write(bar + 24, 4, tasks);
    }
    while machine.chipset.next_deadline().is_some() {
        machine.expire();
    }
    let order = [11, 2, 10, 1, 9, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0];
    assert_eq!(
        machine.board.reports,
        order.map(|left| std::format!("{left} left"))
    );
}

#[test]
fn after_a_reset_functions_are_as_firmware_leaves_them() {
    let (mut machine, _) = machine_with(2);
    let image = |machine: &mut Machine| -> Vec<u32> {
        let registers = (0..0x100).step_by(4);
        registers
            .map(|register| machine.pci_read(2, register))
            .collect()
    };
    let before = image(&mut machine);
    let bar = machine.bar(2, 0);
    machine.mmio_write(bar + 8, 4, 1);
    for register in (0..0x100).step_by(4) {
        machine.pci_write(2, register, 4, 0xa5a5_a5a5);
    }
    assert_ne!(image(&mut machine), before);
    let (chipset, mut env) = machine.parts();
    chipset.reset(&mut env);
    assert_eq!(image(&mut machine), before);
}

proptest! {
    /// Whatever a guest writes to configuration space and BARs, nothing panics, and BARs answer
    /// only in the window.
    #[test]
    fn configuration_cannot_be_broken(
        accesses in proptest::collection::vec(
            (any::<bool>(), any::<u64>(), prop_oneof![Just(1u8), Just(2), Just(4), Just(8)], any::<u64>()),
            0..300,
        )
    ) {
        let (mut machine, logs) = machine_with(3);
        for (write, place, size, value) in accesses {
            // Mostly the spaces of functions that are there.
            let address = match place % 4 {
                0 => mmio::PCI_CONFIG + (place >> 2) % 0x2_0000,
                1 => mmio::PCI_CONFIG + 0x8000 * (1 + (place >> 2) % 3) + (place >> 8) % 0x100,
                2 => mmio::PCI_WINDOW + (place >> 2) % 0x8000,
                _ => mmio::PCI_WINDOW + (place >> 2) % mmio::PCI_WINDOW_LENGTH,
            };
            if write {
                machine.mmio_write(address, size, value);
            } else {
                machine.mmio_read(address, size);
            }
        }
        for log in logs {
            for (access, _) in log.lock().unwrap().iter() {
                prop_assert!(access.bar == 0 && access.offset < 0x2000);
            }
        }
    }
}
