//! The guest's ACPI tables (ACPI 6.5): they describe the machine of
//! [`devices::platform_map`], with as many processors as the VM has, and nothing else.

use alloc::{format, vec, vec::Vec};
use core::ops::Range;

use acpi_tables::{
    Aml, aml,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    mcfg::MCFG,
    sdt::{GenericAddress, Sdt},
};
use devices::chipset::pci;
use devices::platform_map::{self as map, gsi, irq, mmio, port};
use vmx::addr::GuestPhysAddr;

use super::image::MemoryImage;
use super::layout;
use crate::guest_memory::NotRam;

const OEM: [u8; 6] = *b"TARPIT";
const OEM_TABLE: [u8; 8] = *b"TARPITVM";
const OEM_REVISION: u32 = 1;
/// The DSDT's revision: integers are 64 bits wide from 2 on.
const DSDT_REVISION: u8 = 2;

/// Writes the tables for a VM with `vcpus` VCPUs, whose APIC IDs are 0 and up, and with
/// `pci_functions` functions on its PCI bus, to the firmware area. Returns the address of the
/// RSDP.
///
/// # Errors
/// If the VM has no RAM there.
pub(crate) fn install(
    memory: &mut MemoryImage<'_>,
    vcpus: u32,
    pci_functions: usize,
) -> Result<u64, NotRam> {
    // The RSDP is found by its address, on a 16-byte boundary; it refers to all else.
    let base = layout::ACPI + ALIGNMENT;
    let tables = Tables::new(base, vcpus, pci_functions);
    // The tables' size is bounded by MAX_VCPUS and MAX_FUNCTIONS, constants.
    let end = base + tables.bytes.len() as u64;
    debug_assert!(end <= layout::ACPI_END, "the firmware area is full");
    memory.write(GuestPhysAddr(layout::ACPI), tables.rsdp().to_vec())?;
    memory.write(GuestPhysAddr(base), tables.bytes)?;
    Ok(layout::ACPI)
}

/// The boundary that each table is on, in bytes: that of the FACS.
pub(super) const ALIGNMENT: u64 = 64;

/// A pointer from one table to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    /// The offset of the pointer in the tables.
    pub offset: usize,
    /// The length of the pointer in bytes.
    pub length: u8,
}

/// All tables but the RSDP, one after the other, and what of them depends on where they are.
pub(super) struct Tables {
    /// The tables, for memory that begins at the address that they were made for.
    pub bytes: Vec<u8>,
    /// The pointers among them.
    pub pointers: Vec<Pointer>,
    /// The tables that have pointers and a checksum, the byte at [`CHECKSUM`] of each.
    pub checked: Vec<Range<usize>>,
    base: u64,
    rsdt: u64,
    xsdt: u64,
}

/// The offset of the checksum in a table that has one.
pub(super) const CHECKSUM: usize = 9;
/// The length of the header of a table that has a checksum.
const HEADER: usize = 36;

impl Tables {
    /// Makes the tables for a VM with `vcpus` VCPUs and `pci_functions` functions on its PCI bus, for
    /// memory at `base`.
    pub(super) fn new(base: u64, vcpus: u32, pci_functions: usize) -> Self {
        let mut tables = Self {
            bytes: Vec::new(),
            pointers: Vec::new(),
            checked: Vec::new(),
            base,
            rsdt: 0,
            xsdt: 0,
        };
        let facs = tables.place(&facs());
        let dsdt = tables.place(dsdt(vcpus, pci_functions).as_slice());
        // FIRMWARE_CTRL, DSDT and X_DSDT (5.2.9).
        let fadt = tables.place_with(&fadt(facs, dsdt), &[(36, 4), (40, 4), (140, 8)]);
        let madt = tables.place(madt(vcpus).as_slice());
        let hpet = tables.place(hpet().as_slice());
        let mcfg = tables.place(&mcfg());
        let all = [fadt, madt, hpet, mcfg];
        let entries = |length: u8| {
            let offset = move |index| (HEADER + index * usize::from(length), length);
            (0..all.len()).map(offset).collect::<Vec<_>>()
        };
        let rsdt = root(*b"RSDT", all.map(|address| address as u32));
        tables.rsdt = tables.place_with(rsdt.as_slice(), &entries(4));
        let xsdt = root(*b"XSDT", all);
        tables.xsdt = tables.place_with(xsdt.as_slice(), &entries(8));
        tables
    }

    /// Adds a table. Returns its address.
    fn place(&mut self, table: &[u8]) -> u64 {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT as usize);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(table);
        self.base + offset as u64
    }

    /// Adds a table with a checksum and pointers, whose offsets and lengths are `pointers`. Returns its
    /// address.
    fn place_with(&mut self, table: &[u8], pointers: &[(usize, u8)]) -> u64 {
        let address = self.place(table);
        let end = self.bytes.len();
        let start = end - table.len();
        let pointers = pointers.iter().map(|&(offset, length)| Pointer {
            offset: start + offset,
            length,
        });
        self.pointers.extend(pointers);
        self.checked.push(start..end);
        address
    }

    /// Returns the RSDP for them.
    pub(super) fn rsdp(&self) -> Vec<u8> {
        rsdp(self.rsdt as u32, self.xsdt)
    }
}

/// The length of the RSDP.
pub(super) const RSDP_LENGTH: u32 = 36;
/// The pointers in the RSDP.
pub(super) const RSDP_POINTERS: [Pointer; 2] = [
    Pointer {
        offset: 16,
        length: 4,
    },
    Pointer {
        offset: 24,
        length: 8,
    },
];
/// The checksums in the RSDP: the bytes that each is of, and its offset.
pub(super) const RSDP_CHECKSUMS: [(Range<usize>, usize); 2] =
    [(0..20, 8), (0..RSDP_LENGTH as usize, 32)];

/// Returns the root system description pointer (5.2.5).
fn rsdp(rsdt: u32, xsdt: u64) -> Vec<u8> {
    const LENGTH: u32 = RSDP_LENGTH;
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend_from_slice(b"RSD PTR ");
    bytes.push(0);
    bytes.extend_from_slice(&OEM);
    bytes.push(2); // revision
    bytes.extend_from_slice(&rsdt.to_le_bytes());
    bytes[8] = checksum(&bytes);
    bytes.extend_from_slice(&LENGTH.to_le_bytes());
    bytes.extend_from_slice(&xsdt.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// Returns what makes the sum of all bytes zero if it is added.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Returns the RSDT or XSDT (5.2.7, 5.2.8): a list of 32-bit or 64-bit addresses.
fn root<T, const N: usize>(signature: [u8; 4], tables: [T; N]) -> Sdt
where
    T: Into<u64> + Copy,
{
    let mut table = sdt(signature, 1);
    for address in tables {
        let address: u64 = address.into();
        table.append_slice(&address.to_le_bytes()[..size_of::<T>()]);
    }
    table
}

fn sdt(signature: [u8; 4], revision: u8) -> Sdt {
    const HEADER: u32 = 36;
    Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION)
}

/// Returns the firmware ACPI control structure (5.2.10): there is nothing to control.
fn facs() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64; // length
    bytes[32] = 2; // version
    bytes
}

/// Returns the fixed ACPI description table (5.2.9). There is no SMI command port: the machine is
/// in ACPI mode from the start. The power button is in the PM1 block; there is no sleep button, and
/// the RTC does not wake through that block.
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    /// A worse latency than this means that the C state is not there.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    // A block of registers: its port, as old systems are told it, its length, and its address.
    let block = |port: u16, length: u8, access| {
        let address = GAS::new(
            AddressSpace::SystemIo,
            length * 8,
            0,
            access,
            u64::from(port),
        );
        (u32::from(port).into(), length, address)
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(irq::SCI).into();
    (fadt.pm1a_evt_blk, fadt.pm1_evt_len, fadt.x_pm1a_evt_blk) = block(
        port::PM1A_EVENT,
        port::PM1A_EVENT_LENGTH,
        AccessSize::WordAccess,
    );
    (fadt.pm1a_cnt_blk, fadt.pm1_cnt_len, fadt.x_pm1a_cnt_blk) = block(
        port::PM1A_CONTROL,
        port::PM1A_CONTROL_LENGTH,
        AccessSize::WordAccess,
    );
    (fadt.pm_tmr_blk, fadt.pm_tmr_len, fadt.x_pm_tmr_blk) = block(
        port::PM_TIMER,
        port::PM_TIMER_LENGTH,
        AccessSize::DwordAccess,
    );
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = map::RTC_CENTURY_INDEX;
    fadt.iapc_boot_arch = map::IAPC_BOOT_ARCH.into();
    (_, _, fadt.reset_reg) = block(port::RESET_CONTROL, 1, AccessSize::ByteAccess);
    fadt.reset_value = map::RESET_VALUE;
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

/// Returns the multiple APIC description table (5.2.12).
fn madt(vcpus: u32) -> Sdt {
    const PCAT_COMPATIBLE: u32 = 1;
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xFF;
    const ISA: u8 = 0;
    let mut table = sdt(*b"APIC", 4);
    table.append(mmio::LOCAL_APIC as u32);
    table.append(PCAT_COMPATIBLE);
    for id in 0..vcpus as u8 {
        // Type 0: processor local APIC.
        table.append_slice(&[0, 8, id, id]);
        table.append(ENABLED);
    }
    // Type 1: I/O APIC.
    table.append_slice(&[1, 12, map::IOAPIC_ID, 0]);
    table.append(mmio::IOAPIC as u32);
    table.append(gsi::BASE);
    for (source, gsi, flags) in [
        (irq::PIT, gsi::PIT, 0),
        (irq::SCI, gsi::SCI, gsi::SCI_FLAGS),
    ] {
        // Type 2: interrupt source override.
        table.append_slice(&[2, 10, ISA, source]);
        table.append(gsi);
        table.append(flags);
    }
    // Type 4: local APIC NMI, on LINT1 as on any PC.
    table.append_slice(&[4, 6, ALL_PROCESSORS, 0, 0, 1]);
    table.update_checksum();
    table
}

/// Returns the HPET description table (IA-PC HPET specification 1.0a, 3.2.4).
fn hpet() -> Sdt {
    const NO_PAGE_PROTECTION: u8 = 0;
    let mut table = sdt(*b"HPET", 1);
    table.append(HPET_BLOCK_ID);
    table.append(GenericAddress {
        address_space_id: 0,
        register_bit_width: 64,
        register_bit_offset: 0,
        access_size: 0,
        address: mmio::HPET,
    });
    table.append_slice(&[0]); // the first and only one
    table.append(HPET_MINIMUM_TICK);
    table.append_slice(&[NO_PAGE_PROTECTION]);
    table.update_checksum();
    table
}

/// Returns the table of memory-mapped configuration spaces (PCI Firmware Specification 3.0, 4.1.2).
fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(mmio::PCI_CONFIG, 0, 0, 0);
    let mut bytes = Vec::new();
    mcfg.to_aml_bytes(&mut bytes);
    bytes
}

/// The low half of the HPET's capabilities register: vendor 8086h, able of legacy
/// replacement, 64-bit counter, three comparators, revision 1.
const HPET_BLOCK_ID: u32 = 0x8086_A201;
/// The least period that a comparator can keep up with, in its ticks.
const HPET_MINIMUM_TICK: u16 = 128;

/// Returns the differentiated system description table: processors, S5, and the devices that OSs do
/// not find by themselves.
fn dsdt(vcpus: u32, pci_functions: usize) -> Sdt {
    let sleep_type = map::SLEEP_TYPE_S5;
    let s5 = aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&sleep_type, &sleep_type, &aml::ZERO, &aml::ZERO]),
    );
    let mut devices = Vec::new();
    for id in 0..vcpus {
        aml::Device::new(
            format!("C{id:03X}").as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"ACPI0007"),
                &aml::Name::new("_UID".into(), &id),
            ],
        )
        .to_aml_bytes(&mut devices);
    }
    device(
        &mut devices,
        "COM1",
        "PNP0501",
        &[
            &aml::IO::new(port::COM1, port::COM1, 1, 8),
            &edge_interrupt(irq::COM1),
        ],
    );
    device(
        &mut devices,
        "RTC_",
        "PNP0B00",
        &[
            &aml::IO::new(port::RTC_INDEX, port::RTC_INDEX, 1, 2),
            &edge_interrupt(irq::RTC),
        ],
    );
    device(
        &mut devices,
        "HPET",
        "PNP0103",
        &[&aml::Memory32Fixed::new(
            true,
            mmio::HPET as u32,
            mmio::HPET_LENGTH as u32,
        )],
    );

    pci_root(&mut devices, pci_functions);
    // What an operating system takes from memory that nobody else describes: the configuration
    // space of PCI.
    device(
        &mut devices,
        "MRES",
        "PNP0C02",
        &[&aml::Memory32Fixed::new(
            true,
            mmio::PCI_CONFIG as u32,
            mmio::PCI_CONFIG_LENGTH as u32,
        )],
    );

    let mut table = sdt(*b"DSDT", DSDT_REVISION);
    let mut code = Vec::new();
    s5.to_aml_bytes(&mut code);
    interrupt_model(&mut code);
    code.extend(aml::Scope::raw("_SB_".into(), devices));
    table.append_slice(&code);
    table
}

/// The variable in which `\_PIC` keeps the operating system's interrupt model: zero as long as it
/// uses the 8259A pair (5.8.1).
const INTERRUPT_MODEL: &str = "PICM";

/// Adds `\_PIC`, by which the operating system says which interrupt controllers it uses.
fn interrupt_model(code: &mut Vec<u8>) {
    aml::Name::new(INTERRUPT_MODEL.into(), &aml::ZERO).to_aml_bytes(code);
    let model = aml::Path::new(INTERRUPT_MODEL);
    let store = aml::Store::new(&model, &aml::Arg(0));
    aml::Method::new("_PIC".into(), 1, false, vec![&store]).to_aml_bytes(code);
}

/// Adds the root of PCI: its bus, its window, and where the interrupts of its devices go (6.2.13).
fn pci_root(code: &mut Vec<u8>, functions: usize) {
    let window_end = mmio::PCI_WINDOW + mmio::PCI_WINDOW_LENGTH - 1;
    let bus = aml::AddressSpace::new_bus_number(0_u16, 0);
    let ports = aml::IO::new(port::PCI_CONFIG_ADDRESS, port::PCI_CONFIG_ADDRESS, 1, 8);
    let window = aml::AddressSpace::new_memory(
        aml::AddressSpaceCacheable::NotCacheable,
        true,
        mmio::PCI_WINDOW as u32,
        window_end as u32,
        None,
    );
    let by_ioapic = routes(functions, |interrupt| gsi::PCI + interrupt as u32);
    let by_pic = routes(functions, |interrupt| irq::PCI[interrupt].into());
    let model = aml::Path::new(INTERRUPT_MODEL);
    aml::Device::new(
        "PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&bus, &ports, &window]),
            ),
            &aml::Method::new(
                "_PRT".into(),
                0,
                false,
                vec![
                    &aml::If::new(
                        &aml::Equal::new(&model, &aml::ZERO),
                        vec![&aml::Return::new(&by_pic)],
                    ),
                    &aml::Return::new(&by_ioapic),
                ],
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// Returns the routing table of the PCI bus: for the INTA pin of each device, the global system interrupt
/// or IRQ that `number` gives for the bus's interrupt that it is wired to.
fn routes(functions: usize, number: impl Fn(usize) -> u32) -> aml::PackageBuilder {
    /// All functions of a device.
    const ANY_FUNCTION: u32 = 0xffff;
    let mut table = aml::PackageBuilder::new();
    for device in 1..=functions {
        let address = (device as u32) << 16 | ANY_FUNCTION;
        let number = number(pci::interrupt_of(device));
        table.add_element(&aml::Package::new(vec![
            &address,
            &aml::ZERO, // INTA
            &aml::ZERO, // not by a link device
            &number,
        ]));
    }
    table
}

/// Adds a device that is always there, with these resources.
fn device(code: &mut Vec<u8>, name: &str, id: &str, resources: &[&dyn Aml]) {
    aml::Device::new(
        name.into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new(id)),
            &aml::Name::new("_UID".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(resources.to_vec()),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// Returns an interrupt as the ISA bus has them: rising edge, not shared.
fn edge_interrupt(irq: u8) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, irq.into())
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(super) mod tests;
