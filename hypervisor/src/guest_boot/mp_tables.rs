//! The guest's MP tables (Intel MultiProcessor Specification 1.4): the same facts as the
//! ACPI tables, for systems without ACPI.

use alloc::vec::Vec;

use devices::chipset::pci;
use devices::platform_map::{self as map, gsi, irq, mmio};
use vmx::addr::GuestPhysAddr;

use super::{acpi::checksum, image::MemoryImage, layout};
use crate::guest_memory::NotRam;

/// Version 1.4 of the specification.
const SPECIFICATION_REVISION: u8 = 4;
const POINTER_SIZE: u64 = 16;
const HEADER_SIZE: usize = 44;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x20;
/// Family 6, where CPUID tells the rest, and the features that the specification names: a
/// floating-point unit and a local APIC.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 | 1 << 9;
const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;
/// Interrupts as the bus has them: rising edge on ISA, a low level on PCI.
const AS_THE_BUS: u16 = 0;
const ALL_LOCAL_APICS: u8 = 0xFF;

/// Kinds of entries (4.3).
mod entry {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IO_APIC: u8 = 2;
    pub(super) const IO_INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Kinds of interrupts (4.3.4).
mod interrupt {
    pub(super) const VECTORED: u8 = 0;
    pub(super) const NMI: u8 = 1;
    /// An external interrupt: one from the 8259 pair.
    pub(super) const EXTERNAL: u8 = 3;
}

/// Writes the tables for a VM with `vcpus` VCPUs, whose APIC IDs are 0 and up, and with
/// `pci_functions` functions on its PCI bus.
///
/// # Errors
/// If the VM has no RAM there.
pub(crate) fn install(
    memory: &mut MemoryImage<'_>,
    vcpus: u32,
    pci_functions: usize,
) -> Result<(), NotRam> {
    let table = layout::MP_TABLES + POINTER_SIZE;
    memory.write(
        GuestPhysAddr(layout::MP_TABLES),
        floating_pointer(table as u32).to_vec(),
    )?;
    memory.write(GuestPhysAddr(table), configuration(vcpus, pci_functions))
}

/// Returns the floating pointer structure (4.1). The machine starts in virtual wire mode.
fn floating_pointer(table: u32) -> [u8; POINTER_SIZE as usize] {
    let mut bytes = [0; POINTER_SIZE as usize];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8] = 1; // length, in units of 16 bytes
    bytes[9] = SPECIFICATION_REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// Returns the configuration table (4.2).
fn configuration(vcpus: u32, pci_functions: usize) -> Vec<u8> {
    let entries = entries(vcpus, pci_functions);
    let count: u16 = entries.len() as u16;
    let entries = entries.concat();
    let mut table = Vec::with_capacity(HEADER_SIZE + entries.len());
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&((HEADER_SIZE + entries.len()) as u16).to_le_bytes());
    table.extend_from_slice(&[SPECIFICATION_REVISION, 0]);
    table.extend_from_slice(b"TARPIT  VM          ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&(mmio::LOCAL_APIC as u32).to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended table
    table.extend_from_slice(&entries);
    table[7] = checksum(&table);
    table
}

fn entries(vcpus: u32, pci_functions: usize) -> Vec<Vec<u8>> {
    let mut entries: Vec<Vec<u8>> = (0..vcpus as u8).map(processor).collect();
    // Bus 0 is PCI's, as its own numbers have it.
    entries.push([&[entry::BUS, PCI_BUS][..], b"PCI   "].concat());
    entries.push([&[entry::BUS, ISA_BUS][..], b"ISA   "].concat());
    let enabled = 1;
    entries.push(
        [
            &[entry::IO_APIC, map::IOAPIC_ID, IO_APIC_VERSION, enabled][..],
            &(mmio::IOAPIC as u32).to_le_bytes(),
        ]
        .concat(),
    );
    for irq in (0..16).filter(|irq| *irq != irq::CASCADE) {
        let (pin, flags) = match irq {
            irq::PIT => (gsi::PIT as u8, AS_THE_BUS),
            irq::SCI => (gsi::SCI as u8, gsi::SCI_FLAGS),
            _ => (irq, AS_THE_BUS),
        };
        entries.push(interrupt_entry(
            [entry::IO_INTERRUPT, interrupt::VECTORED],
            flags,
            [ISA_BUS, irq, map::IOAPIC_ID, pin],
        ));
    }
    for device in 1..=pci_functions {
        // The source is a device and its pin, INTA being zero (appendix D.3).
        let source = (device << 2) as u8;
        let pin = gsi::PCI as u8 + pci::interrupt_of(device) as u8;
        entries.push(interrupt_entry(
            [entry::IO_INTERRUPT, interrupt::VECTORED],
            AS_THE_BUS,
            [PCI_BUS, source, map::IOAPIC_ID, pin],
        ));
    }
    for (kind, line) in [(interrupt::EXTERNAL, 0), (interrupt::NMI, 1)] {
        entries.push(interrupt_entry(
            [entry::LOCAL_INTERRUPT, kind],
            AS_THE_BUS,
            [ISA_BUS, 0, ALL_LOCAL_APICS, line],
        ));
    }
    entries
}

fn processor(id: u8) -> Vec<u8> {
    let (enabled, bootstrap) = (1, u8::from(id == 0) << 1);
    let mut bytes = Vec::from([
        entry::PROCESSOR,
        id,
        LOCAL_APIC_VERSION,
        enabled | bootstrap,
    ]);
    bytes.extend_from_slice(&CPU_SIGNATURE.to_le_bytes());
    bytes.extend_from_slice(&CPU_FEATURES.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

/// Makes an entry: `kind` of entry and interrupt; `route` is source bus, source IRQ, destination
/// APIC, its pin.
fn interrupt_entry(kind: [u8; 2], flags: u16, route: [u8; 4]) -> Vec<u8> {
    [&kind[..], &flags.to_le_bytes(), &route].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest_boot::test_ram::TestRam;

    /// Finds the tables as an operating system does, and walks through them.
    fn installed(vcpus: u32, pci_functions: usize) -> Vec<Vec<u8>> {
        let ram = TestRam::with(2 << 20, |memory| {
            install(memory, vcpus, pci_functions).unwrap();
        });
        let pointer = (0xF_0000..0x10_0000)
            .step_by(16)
            .map(|address| ram.bytes(address, 16))
            .find(|bytes| bytes.starts_with(b"_MP_") && checksum(bytes) == 0)
            .expect("a floating pointer in the BIOS area");
        let table: u64 = ram.u32(0xF_0004).into();
        assert_eq!(pointer[4..8], (table as u32).to_le_bytes());
        let length = ram.u32(table + 4) as u16;
        let table = ram.bytes(table, length.into());
        assert!(table.starts_with(b"PCMP"));
        assert_eq!(checksum(&table), 0);
        let count = u16::from_le_bytes([table[34], table[35]]);
        let mut rest = &table[HEADER_SIZE..];
        let entries: Vec<_> = core::iter::from_fn(|| {
            let size = if *rest.first()? == entry::PROCESSOR {
                20
            } else {
                8
            };
            let (entry, after) = rest.split_at(size);
            rest = after;
            Some(entry.to_vec())
        })
        .collect();
        assert_eq!(entries.len(), usize::from(count));
        entries
    }

    #[test]
    fn the_timer_is_on_pin_2_and_the_sci_is_level_triggered() {
        let entries = installed(1, 0);
        let irq = |irq: u8| {
            entries
                .iter()
                .find(|e| e[0] == entry::IO_INTERRUPT && e[5] == irq)
                .cloned()
        };
        assert_eq!(irq(0).unwrap()[7], 2);
        assert_eq!(irq(4).unwrap()[7], 4);
        assert_eq!(irq(9).unwrap()[2..4], [0b1101, 0]);
        assert_eq!(irq(2), None, "the cascade is no interrupt");
    }

    #[test]
    fn the_8259_pair_is_at_lint0_and_nmi_at_lint1() {
        let local: Vec<_> = installed(1, 0)
            .into_iter()
            .filter(|e| e[0] == entry::LOCAL_INTERRUPT)
            .map(|e| (e[1], e[6], e[7]))
            .collect();
        assert_eq!(local, [(3, 0xFF, 0), (1, 0xFF, 1)]);
    }

    #[test]
    fn pci_functions_interrupt_at_the_pins_that_the_bus_has() {
        let entries = installed(1, 5);
        let buses: Vec<_> = entries
            .iter()
            .filter(|e| e[0] == entry::BUS)
            .map(|e| (e[1], &e[2..5]))
            .collect();
        assert_eq!(buses, [(0, &b"PCI"[..]), (1, b"ISA")]);
        let routes: Vec<_> = entries
            .iter()
            .filter(|e| e[0] == entry::IO_INTERRUPT && e[4] == PCI_BUS)
            .map(|e| (e[5], e[7]))
            .collect();
        assert_eq!(routes, [(4, 17), (8, 18), (12, 19), (16, 16), (20, 17)]);
    }

    proptest! {
        #[test]
        fn there_is_a_processor_entry_for_each_vcpu(vcpus in 1_u32..=8, functions in 0..=pci::MAX_FUNCTIONS) {
            let processors: Vec<_> = installed(vcpus, functions)
                .into_iter()
                .filter(|e| e[0] == entry::PROCESSOR)
                .map(|e| (u32::from(e[1]), e[3]))
                .collect();
            let expected: Vec<_> = (0..vcpus)
                .map(|id| (id, if id == 0 { 0b11 } else { 0b01 }))
                .collect();
            prop_assert_eq!(processors, expected);
        }
    }
}
