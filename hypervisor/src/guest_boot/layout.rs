//! Where the loaders put what they make, in the first megabyte: all of it below the
//! addresses that kernels are loaded to, and none of it needed once the guest has read it.

/// The GDT of Linux's entry state.
pub(super) const GDT: u64 = 0x6000;
/// Linux's boot parameters, the "zero page".
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// Six pages of page tables that map the first 4 GiB one to one.
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// Linux's command line.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// One past the last byte that the command line may occupy.
pub(super) const COMMAND_LINE_END: u64 = super::memory_map::EBDA_START;
/// The GDT of the entry state and the multiboot information.
pub(super) const MULTIBOOT: u64 = 0x2_0000;
/// One past the last byte that the multiboot information may occupy here.
pub(super) const MULTIBOOT_END: u64 = super::memory_map::EBDA_START;
/// The RSDP, and the ACPI tables from there on.
pub(super) const ACPI: u64 = super::memory_map::FIRMWARE_START;
/// One past the last byte that the ACPI tables may occupy.
pub(super) const ACPI_END: u64 = MP_TABLES;
/// The MP floating pointer structure, followed by the MP configuration table.
pub(super) const MP_TABLES: u64 = 0xF_0000;
