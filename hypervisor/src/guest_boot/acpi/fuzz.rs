//! A target for fuzzing: the guest's tables of any size, read back by the `acpi` crate.

use std::rc::Rc;

use ::acpi::{
    AcpiTables,
    fadt::Fadt,
    madt::{Madt, MadtEntry},
};
use devices::chipset::pci::MAX_FUNCTIONS;

use super::tests::{Firmware, installed_with};
use super::*;
use crate::ids::MAX_VCPUS;

#[test]
fn tables_for_guests_of_any_size() {
    fuzzing::check!()
        .with_type::<(u8, u8)>()
        .for_each(|(vcpus, functions)| {
            let vcpus = u32::from(*vcpus) % MAX_VCPUS as u32 + 1;
            let functions = usize::from(*functions) % (MAX_FUNCTIONS + 1);
            let (firmware, rsdp) = installed_with(vcpus, functions);
            let beyond = &firmware[layout::ACPI_END as usize..];
            assert!(beyond.iter().all(|&byte| byte == 0), "into the MP tables");
            // SAFETY: the handler answers for all addresses below 1 MiB.
            let tables = unsafe { AcpiTables::from_rsdp(Firmware(Rc::new(firmware)), rsdp) };
            let tables = tables.unwrap();
            tables.find_table::<Fadt>().unwrap().validate().unwrap();
            assert!(tables.dsdt().is_ok());
            let madt = tables.find_table::<Madt>().unwrap();
            let processors = madt.get().entries();
            let processors = processors.filter(|it| matches!(it, MadtEntry::LocalApic(_)));
            assert_eq!(processors.count(), vcpus as usize);
        });
}
