//! A machine that starts in firmware, as the firmware finds it.

use super::*;
use crate::chipset::fw_cfg::File;
use crate::virtio::pci::VirtioPci;
use crate::virtio::rng::Rng;

const MIB: u64 = 1 << 20;

fn machine(low_ram: u64, high_ram: u64) -> Machine {
    let files = vec![File {
        name: "etc/test",
        content: vec![0xaa, 0x55],
    }];
    let entropy = Rng::new(Box::new(|| 0x5555_5555_5555_5555));
    let functions: Vec<Box<dyn PciFunction>> = vec![Box::new(VirtioPci::new(Box::new(entropy)))];
    Machine::with_firmware(
        functions,
        FirmwareConfig {
            low_ram,
            high_ram,
            files,
        },
    )
}

/// Reads `length` bytes of CMOS memory, the lowest first.
fn cmos(machine: &mut Machine, index: u8, length: u8) -> u32 {
    (index..index + length).rev().fold(0, |value, index| {
        value << 8 | u32::from(machine.cmos_read(index))
    })
}

#[test]
fn cmos_tells_how_large_it_is() {
    let mut small = machine(8 * MIB, 0);
    assert_eq!(cmos(&mut small, 0x15, 2), 640);
    assert_eq!(cmos(&mut small, 0x30, 2), 7 << 10);
    assert_eq!(cmos(&mut small, 0x34, 2), 0);
    assert_eq!(cmos(&mut small, 0x5b, 3), 0);
    assert_eq!(small.cmos_read(0x5f), 1, "one less than there are");
    let mut large = machine(3 << 30, 5 << 30);
    assert_eq!(cmos(&mut large, 0x30, 2), 0xffff, "as much as it can say");
    assert_eq!(cmos(&mut large, 0x34, 2), (3 << 30 >> 16) - 256);
    assert_eq!(cmos(&mut large, 0x5b, 3), 5 << 14);
    assert_eq!(cmos(&mut Machine::new(), 0x30, 2), 0, "nobody asks");
}

#[test]
fn seabios_knows_the_host_bridge_and_opens_the_ram_behind_its_rom() {
    let mut machine = machine(256 * MIB, 0);
    assert_eq!(machine.pci_read(0, 0x00), 0x1237_8086);
    assert_eq!(machine.pci_read(0, 0x2c), 0x1100_1af4);
    assert_eq!(machine.pci_read(0, 0x58), 0, "the RAM is closed");
    assert_eq!(machine.pci_read(0, 0x5c), 0);
    machine.pci_write(0, 0x58, 4, 0xffff_30ff);
    machine.pci_write(0, 0x5c, 4, 0x3333_3333);
    assert_eq!(machine.pci_read(0, 0x58), 0x3333_3000);
    assert_eq!(machine.pci_read(0, 0x5c), 0x3333_3333);
    let (chipset, mut env) = machine.parts();
    chipset.reset(&mut env);
    assert_eq!(machine.pci_read(0, 0x58), 0);
    assert_eq!(machine.pci_read(0, 0x5c), 0);
    assert_eq!(machine.pci_read(0, 0x00), 0x1237_8086);
}

#[test]
fn functions_are_not_placed_before_firmware_does_it() {
    let mut machine = machine(256 * MIB, 0);
    for _ in 0..2 {
        for bar in [0x10, 0x14] {
            assert_eq!(machine.pci_read(1, bar), 0);
        }
        assert_eq!(machine.pci_read(1, 0x04) & 0xffff, 0, "switched off");
        // Close to the IOAPIC, from where on SeaBIOS places them downwards.
        let place = 0xfebf_c000;
        machine.pci_write(1, 0x10, 4, u32::MAX);
        assert_eq!(machine.pci_read(1, 0x10), 0xffff_c000);
        machine.pci_write(1, 0x10, 4, place);
        let queues = u64::from(place) + 0x12;
        assert_eq!(machine.mmio_read(queues, 2), Some(u64::MAX), "off");
        machine.pci_write(1, 0x04, 2, 0x0002);
        assert_eq!(machine.mmio_read(queues, 2), Some(1));
        let (chipset, mut env) = machine.parts();
        chipset.reset(&mut env);
    }
}

#[test]
fn it_gets_files_and_others_have_no_such_interface() {
    let mut machine = machine(256 * MIB, 0);
    machine.write(port::FW_CFG_SELECTOR, 2, 0x20);
    assert_eq!(machine.inb(port::FW_CFG_DATA), 0xaa);
    assert_eq!(machine.inb(port::FW_CFG_DATA), 0x55);
    assert_eq!(machine.inb(port::FW_CFG_DATA), 0);
    assert_eq!(machine.inb(port::DEBUG_EXIT), 0xff);
    machine.outb(port::DEBUG_EXIT, 1);
    assert_eq!(machine.board.power, [], "no test device");
    let mut plain = Machine::with_test_devices(false);
    plain.write(port::FW_CFG_SELECTOR, 2, 0);
    assert_eq!(plain.inb(port::FW_CFG_DATA), 0xff);
}
