use core::ptr::NonNull;
use std::rc::Rc;

use ::acpi::{
    AcpiHandler, AcpiTables, HpetInfo, PhysicalMapping,
    fadt::Fadt,
    madt::{Madt, MadtEntry},
    mcfg::Mcfg,
};

use super::*;
use crate::guest_boot::test_ram::TestRam;

/// A guest's RAM, for the independent parser of the `acpi` crate.
#[derive(Clone)]
pub(in crate::guest_boot) struct Firmware(pub(in crate::guest_boot) Rc<Vec<u8>>);

impl AcpiHandler for Firmware {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let bytes = &self.0[address..address + size];
        let start = NonNull::from(bytes).cast();
        // SAFETY: the pointer is to `size` bytes, which `self` keeps alive.
        unsafe { PhysicalMapping::new(address, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

fn installed(vcpus: u32) -> (Vec<u8>, usize) {
    installed_with(vcpus, 0)
}

pub(super) fn installed_with(vcpus: u32, pci_functions: usize) -> (Vec<u8>, usize) {
    let mut rsdp = 0;
    let ram = TestRam::with(4 << 20, |memory| {
        rsdp = install(memory, vcpus, pci_functions).unwrap();
    });
    let mut firmware = vec![0; 0x10_0000];
    firmware[layout::ACPI as usize..]
        .copy_from_slice(&ram.bytes(layout::ACPI, 0x10_0000 - layout::ACPI as usize));
    (firmware, rsdp as usize)
}

fn tables(vcpus: u32) -> AcpiTables<Firmware> {
    tables_with(vcpus, 0)
}

fn tables_with(vcpus: u32, pci_functions: usize) -> AcpiTables<Firmware> {
    let (firmware, rsdp) = installed_with(vcpus, pci_functions);
    // SAFETY: the handler answers for all addresses below 1 MiB.
    unsafe { AcpiTables::from_rsdp(Firmware(Rc::new(firmware)), rsdp) }.unwrap()
}

#[test]
fn fadt_says_where_the_power_management_registers_are() {
    let tables = tables(1);
    let fadt = tables.find_table::<Fadt>().unwrap();
    fadt.validate().unwrap();
    let event = fadt.pm1a_event_block().unwrap();
    assert_eq!((event.address, event.bit_width), (0x600, 32));
    let control = fadt.pm1a_control_block().unwrap();
    assert_eq!((control.address, control.bit_width), (0x604, 16));
    let timer = fadt.pm_timer_block().unwrap().unwrap();
    assert_eq!((timer.address, timer.bit_width), (0x608, 32));
    assert_eq!(fadt.reset_register().unwrap().address, 0xCF9);
    let sci = fadt.sci_interrupt;
    assert_eq!(sci, 9);
    let flags = fadt.flags;
    assert!(
        !flags.power_button_is_control_method(),
        "it is in the PM1 block"
    );
    assert!(flags.pm_timer_is_32_bit() && flags.supports_system_reset_via_fadt());
}

#[test]
fn madt_lists_as_many_processors_as_the_vm_has() {
    for vcpus in 1..=8 {
        let tables = tables(vcpus);
        let madt = tables.find_table::<Madt>().unwrap();
        let ids: Vec<_> = madt
            .get()
            .entries()
            .filter_map(|entry| match entry {
                MadtEntry::LocalApic(apic) => Some(u32::from(apic.apic_id)),
                _ => None,
            })
            .collect();
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
    }
}

#[test]
fn madt_wires_the_pit_and_the_sci() {
    let tables = tables(1);
    let madt = tables.find_table::<Madt>().unwrap();
    let overrides: Vec<_> = madt
        .get()
        .entries()
        .filter_map(|entry| match entry {
            MadtEntry::InterruptSourceOverride(o) => {
                Some((o.irq, o.global_system_interrupt, o.flags))
            }
            _ => None,
        })
        .collect();
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0b1101)]);
    let io_apic = madt.get().entries().find_map(|entry| match entry {
        MadtEntry::IoApic(io_apic) => Some(io_apic.io_apic_address),
        _ => None,
    });
    assert_eq!(io_apic, Some(0xFEC0_0000));
    let nmi = madt
        .get()
        .entries()
        .any(|entry| matches!(entry, MadtEntry::LocalApicNmi(_)));
    assert!(nmi);
}

#[test]
fn hpet_is_where_the_platform_has_it() {
    let hpet = HpetInfo::new(&tables(1)).unwrap();
    assert_eq!(hpet.base_address, 0xFED0_0000);
    assert_eq!(hpet.num_comparators(), 3);
    assert!(hpet.legacy_irq_capable() && hpet.main_counter_is_64bits());
}

#[test]
fn rsdt_and_xsdt_list_the_same_tables() {
    let (firmware, rsdp) = installed(2);
    let word = |at: usize| u32::from_le_bytes(firmware[at..at + 4].try_into().unwrap()) as usize;
    let (rsdt, xsdt) = (word(rsdp + 16), word(rsdp + 24));
    let listed = |table: usize, size: usize| -> Vec<usize> {
        (table + 36..table + word(table + 4))
            .step_by(size)
            .map(word)
            .collect()
    };
    assert_eq!(listed(rsdt, 4), listed(xsdt, 8));
    for table in listed(rsdt, 4).into_iter().chain([rsdt, xsdt]) {
        let bytes = &firmware[table..table + word(table + 4)];
        assert_eq!(
            checksum(bytes),
            0,
            "{:?}",
            core::str::from_utf8(&bytes[..4])
        );
    }
    assert_eq!(checksum(&firmware[rsdp..rsdp + 20]), 0);
}

#[test]
fn dsdt_is_sound() {
    let tables = tables_with(8, pci::MAX_FUNCTIONS);
    let dsdt = tables.dsdt().unwrap();
    // The whole machine fits where ACPI tables may be.
    assert!(dsdt.address + (dsdt.length as usize) < layout::ACPI_END as usize);
}

#[test]
fn mcfg_says_where_the_configuration_space_of_the_bus_is() {
    let tables = tables(1);
    let mcfg = tables.find_table::<Mcfg>().unwrap();
    let [region] = mcfg.entries() else {
        panic!("not one region")
    };
    let (base, segment) = (region.base_address, region.pci_segment_group);
    assert_eq!((base, segment), (0xe000_0000, 0));
    let buses = (region.bus_number_start, region.bus_number_end);
    assert_eq!(buses, (0, 0), "one bus");
}

#[test]
fn each_function_has_an_interrupt_of_either_controller() {
    // A package of four: the address, pin A, no link device, and the interrupt.
    let entry = |device: u8, number: u8| {
        let address = [0x0c, 0xff, 0xff, device, 0];
        let number = [0x0a, number];
        [&address[..], &[0x00, 0x00], &number].concat()
    };
    for functions in [0, 1, 5, pci::MAX_FUNCTIONS] {
        let table = dsdt(1, functions);
        let count = |entry: &[u8]| {
            let windows = table.as_slice().windows(entry.len());
            windows.filter(|window| *window == entry).count()
        };
        for device in 1..=32 {
            let expected = usize::from(device <= functions);
            let n = device as u8;
            assert_eq!(count(&entry(n, 16 + n % 4)), expected, "IOAPIC, {device}");
            assert_eq!(count(&entry(n, 10 + n % 2)), expected, "8259A, {device}");
        }
    }
}

/// For `iasl -d`, by hand: `TARPIT_DUMP_DSDT=/tmp/dsdt.aml cargo test -p hypervisor dsdt`.
#[test]
fn dsdt_can_be_dumped() {
    let table = dsdt(2, 3);
    assert_eq!(checksum(table.as_slice()), 0);
    if let Ok(path) = std::env::var("TARPIT_DUMP_DSDT") {
        std::fs::write(path, table.as_slice()).unwrap();
    }
}
