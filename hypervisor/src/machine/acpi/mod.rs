//! What the host's ACPI tables say of processors, timers, interrupt controllers and power.

#[cfg(test)]
mod fuzz;
mod soft_off;
mod table;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::ptr::NonNull;

use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};

use super::boot_info::BootInfo;
use super::console_line::ConsoleLine;
use table::{HEADER, Table};

pub(crate) use soft_off::SleepTypes;

/// A logical processor of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostCpu {
    /// Its local APIC's ID (32 bits wide in x2APIC mode).
    pub apic_id: u32,
}

/// An I/O APIC of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostIoApic {
    /// The physical address of its registers.
    pub address: u64,
    /// The global system interrupt of its first input.
    pub first_gsi: u32,
}

/// The way of an interrupt to the I/O APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostInterrupt {
    /// The global system interrupt.
    pub gsi: u32,
    /// Whether the line is active low.
    pub is_active_low: bool,
}

/// An interrupt of the ISA bus that is not the global system interrupt of its number, active high (ACPI 6.5,
/// 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IsaOverride {
    /// Its number on the bus.
    pub irq: u8,
    /// The way that it goes instead.
    pub interrupt: HostInterrupt,
}

/// The ACPI power management timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PmTimer {
    /// The I/O port of its counter.
    pub port: u16,
    /// The bits that count: 24 or 32.
    pub bits: u32,
}

/// A write to a port that makes firmware hand over the ACPI registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AcpiEnable {
    /// The SMI command port.
    pub port: u16,
    /// The ACPI_ENABLE value.
    pub value: u8,
}

/// The registers and values that enter S5, soft off (ACPI 6.5, 4.8.3.2 and 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SoftOff {
    /// The PM1a control register's port.
    pub pm1a_control: u16,
    /// The PM1b control register's port, where there is one.
    pub pm1b_control: Option<u16>,
    /// SLP_TYP for PM1a.
    pub sleep_type_a: u8,
    /// SLP_TYP for PM1b.
    pub sleep_type_b: u8,
    /// The command that enters ACPI mode, where that is needed.
    pub acpi_enable: Option<AcpiEnable>,
}

/// The location of the reset register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResetSpace {
    /// An I/O port.
    Port(u16),
    /// A byte at a physical address.
    Memory(u64),
}

/// The register that resets the machine (ACPI 6.5, 4.8.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResetRegister {
    /// The location to write to.
    pub space: ResetSpace,
    /// The value to write.
    pub value: u8,
}

/// The content of the ACPI tables. What a table does not say, or says in a way that makes no sense,
/// is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acpi {
    /// The processors that are enabled, in the firmware's order, the boot CPU usually first.
    pub cpus: Vec<HostCpu>,
    /// The I/O APICs.
    pub io_apics: Vec<HostIoApic>,
    /// The interrupts of the ISA bus that go another way than usual.
    pub isa_overrides: Vec<IsaOverride>,
    /// The physical address of the HPET's registers.
    pub hpet: Option<u64>,
    /// The power management timer.
    pub pm_timer: Option<PmTimer>,
    /// The way to switch the machine off.
    pub soft_off: Option<SoftOff>,
    /// The way to reset it.
    pub reset: Option<ResetRegister>,
    /// The serial line that firmware has its console on.
    pub console: Option<ConsoleLine>,
}

/// A mapping of tables, which lie where the firmware says, in identity-mapped memory.
#[derive(Clone, Copy)]
struct Identity;

impl AcpiHandler for Identity {
    unsafe fn map_physical_region<T>(
        &self,
        physical_address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let address = NonNull::new(physical_address as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: physical memory is identity-mapped.
        unsafe { PhysicalMapping::new(physical_address, address, size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

impl Acpi {
    /// Reads the tables, found by the RSDP from the boot loader, or else by the BIOS's.
    ///
    /// # Errors
    /// If there is no RSDP or no root table with a right signature and checksum.
    ///
    /// # Safety
    /// Physical memory must be identity-mapped and hold the firmware's tables unchanged.
    pub(crate) unsafe fn discover(boot_info: &BootInfo) -> Result<Self, AcpiError> {
        // SAFETY: by the caller; the RSDP's copy lives through the call.
        let tables = unsafe {
            match &boot_info.rsdp {
                Some(rsdp) => AcpiTables::from_rsdp(Identity, rsdp.as_ptr() as usize)?,
                None => AcpiTables::search_for_rsdp_bios(Identity)?,
            }
        };
        Ok(Self::from_tables(&tables))
    }

    /// Reads the tables that there are; those that are missing are empty.
    fn from_tables(tables: &AcpiTables<Identity>) -> Self {
        let fadt = bytes_of::<Fadt>(tables);
        // The address of 64 bits, or else that of 32.
        let dsdt = fadt.u64(140).filter(|&address| address != 0);
        let dsdt = dsdt.or(fadt.u32(40).map(u64::from));
        // SAFETY: firmware says that its table is there, and tables stay.
        let dsdt = dsdt.and_then(|address| unsafe { table_at(address, *b"DSDT") });
        let mut acpi = Self {
            hpet: hpet(bytes_of::<Hpet>(tables)),
            console: console_line(bytes_of::<Spcr>(tables)),
            ..Self::default()
        };
        acpi.read_madt(bytes_of::<Madt>(tables));
        acpi.read_fadt(fadt, aml(dsdt));
        acpi
    }

    /// Reads the table of processors and interrupt controllers (ACPI 6.5, 5.2.12).
    fn read_madt(&mut self, madt: Table<'_>) {
        const ENTRIES: usize = 44;
        const LOCAL_APIC: u8 = 0;
        const IO_APIC: u8 = 1;
        const SOURCE_OVERRIDE: u8 = 2;
        const LOCAL_X2APIC: u8 = 9;
        for (kind, entry) in madt.structures(ENTRIES) {
            // Those that are too short for what they should say are left out.
            let _: Option<()> = match kind {
                LOCAL_APIC => entry.u32(4).zip(entry.byte(3)).map(|(flags, apic_id)| {
                    self.add_cpu(flags, u32::from(apic_id));
                }),
                LOCAL_X2APIC => entry.u32(8).zip(entry.u32(4)).map(|(flags, apic_id)| {
                    self.add_cpu(flags, apic_id);
                }),
                IO_APIC => entry.u32(4).zip(entry.u32(8)).map(|(address, first_gsi)| {
                    self.io_apics.push(HostIoApic {
                        address: u64::from(address),
                        first_gsi,
                    });
                }),
                SOURCE_OVERRIDE => entry
                    .u32(4)
                    .zip(entry.byte(3))
                    .zip(entry.u16(8))
                    .map(|((gsi, irq), flags)| self.add_override(irq, gsi, flags)),
                _ => None,
            };
        }
    }

    /// Adds an interrupt of the ISA bus that goes another way.
    fn add_override(&mut self, irq: u8, gsi: u32, flags: u16) {
        // MPS INTI flags (ACPI 6.5, table 5.25).
        const POLARITY: u16 = 0b11;
        const ACTIVE_LOW: u16 = 0b11;
        let interrupt = HostInterrupt {
            gsi,
            is_active_low: flags & POLARITY == ACTIVE_LOW,
        };
        self.isa_overrides.push(IsaOverride { irq, interrupt });
    }

    /// Returns the way of the ISA bus's interrupt `irq`.
    #[must_use]
    pub(crate) fn isa_interrupt(&self, irq: u8) -> HostInterrupt {
        let usual = HostInterrupt {
            gsi: irq.into(),
            is_active_low: false,
        };
        let known = self.isa_overrides.iter().find(|it| it.irq == irq);
        known.map_or(usual, |it| it.interrupt)
    }

    /// Returns the I/O APIC that has the global system interrupt `gsi`, as far as its first one tells, and the number of
    /// the input there.
    #[must_use]
    pub(crate) fn io_apic_of(&self, gsi: u32) -> Option<(HostIoApic, u32)> {
        let begun = self.io_apics.iter().filter(|it| it.first_gsi <= gsi);
        let last = begun.max_by_key(|it| it.first_gsi)?;
        Some((*last, gsi - last.first_gsi))
    }

    /// Adds a processor that is enabled once: firmware may list it both as local APIC and as local x2APIC.
    fn add_cpu(&mut self, flags: u32, apic_id: u32) {
        // MADT "local APIC flags" (ACPI 6.5, table 5.22).
        const ENABLED: u32 = 1 << 0;
        let cpu = HostCpu { apic_id };
        if flags & ENABLED != 0 && !self.cpus.contains(&cpu) {
            self.cpus.push(cpu);
        }
    }

    /// Reads the table of fixed hardware (ACPI 6.5, 5.2.9), with the DSDT's byte code.
    fn read_fadt(&mut self, fadt: Table<'_>, aml: &[u8]) {
        const TIMER_IS_32_BITS: u32 = 1 << 8;
        const RESET_REGISTER: u32 = 1 << 10;
        /// The length that says that there is a timer.
        const TIMER_LENGTH: u8 = 4;
        let flags = fadt.u32(112).unwrap_or(0);
        let timer = register_block(fadt, 208, 76).filter(|_| fadt.byte(91) == Some(TIMER_LENGTH));
        self.pm_timer = timer.map(|port| PmTimer {
            port,
            bits: if flags & TIMER_IS_32_BITS != 0 {
                32
            } else {
                24
            },
        });
        let pm1a_control = register_block(fadt, 172, 64);
        if let (Some(pm1a_control), Some(types)) = (pm1a_control, SleepTypes::of_s5(aml)) {
            let command = fadt.u32(48).and_then(|port| u16::try_from(port).ok());
            let acpi_enable = command.zip(fadt.byte(52));
            self.soft_off = Some(SoftOff {
                pm1a_control,
                pm1b_control: register_block(fadt, 184, 68),
                sleep_type_a: types.a,
                sleep_type_b: types.b,
                acpi_enable: acpi_enable
                    .filter(|&(port, value)| port != 0 && value != 0)
                    .map(|(port, value)| AcpiEnable { port, value }),
            });
        }
        // The flag is defined together with the register; a FADT without the field lacks it.
        let register = fadt.address(116).filter(|_| flags & RESET_REGISTER != 0);
        self.reset = register.zip(fadt.byte(128)).and_then(|(register, value)| {
            let port = register.port().map(ResetSpace::Port);
            let space = port.or(register.memory().map(ResetSpace::Memory))?;
            Some(ResetRegister { space, value })
        });
    }
}

/// Returns the port of a block of registers of the FADT, from its extended field, which counts if it is there
/// and is not zero, or else from the old one.
fn register_block(fadt: Table<'_>, extended: usize, old: usize) -> Option<u16> {
    /// The revision of ACPI 1.0, whose table has reserved bytes there.
    const WITHOUT_EXTENSION: u8 = 1;
    let address = fadt.u64(extended + 4).filter(|&address| address != 0);
    if address.is_some() && fadt.revision() > WITHOUT_EXTENSION {
        return fadt.address(extended)?.port();
    }
    let port = fadt.u32(old).and_then(|port| u16::try_from(port).ok());
    port.filter(|&port| port != 0)
}

/// Returns the address of the HPET's registers (IA-PC HPET specification, 3.2.4).
fn hpet(table: Table<'_>) -> Option<u64> {
    table.address(40)?.memory()
}

/// Returns the line that the SPCR describes, if it has a UART of the 16550 kind at I/O ports.
fn console_line(spcr: Table<'_>) -> Option<ConsoleLine> {
    const DEFAULT_BAUD: u32 = 115_200;
    /// The interfaces that are so: of a 16550 and of a 16450, and of what an address describes.
    const KINDS: [u8; 3] = [0x00, 0x01, 0x12];
    let port = spcr.address(40)?.port();
    let port = port.filter(|_| spcr.byte(36).is_some_and(|kind| KINDS.contains(&kind)))?;
    // The exact speed is in tables of revision 4 and later.
    let exact = spcr.u32(80).filter(|&baud| baud != 0);
    let baud = exact.or(match spcr.byte(58) {
        Some(3) => Some(9600),
        Some(4) => Some(19_200),
        Some(6) => Some(57_600),
        _ => None,
    });
    ConsoleLine::new(port, baud.unwrap_or(DEFAULT_BAUD))
}

/// Returns a DSDT's byte code.
fn aml(dsdt: Option<&[u8]>) -> &[u8] {
    dsdt.and_then(|dsdt| dsdt.get(HEADER..)).unwrap_or_default()
}

/// Makes types that stand for whole tables: the crate's own have all the fields of the latest revision,
/// whatever the length of the table that they are laid over.
macro_rules! whole_tables {
    ($($name:ident = $signature:ident),+) => {$(
        #[repr(transparent)]
        struct $name {
            header: SdtHeader,
        }

        // SAFETY: every table begins with the header, and the type has nothing else.
        unsafe impl AcpiTable for $name {
            const SIGNATURE: Signature = Signature::$signature;

            fn header(&self) -> &SdtHeader {
                &self.header
            }
        }
    )+};
}

whole_tables! { Madt = MADT, Fadt = FADT, Spcr = SPCR, Hpet = HPET }

/// Returns the bytes of a table; none if there is none with a right checksum.
fn bytes_of<T: AcpiTable>(tables: &AcpiTables<Identity>) -> Table<'_> {
    match tables.find_table::<T>() {
        // SAFETY: the table's extent was checked by its checksum, and firmware tables stay.
        Ok(table) => Table(unsafe {
            core::slice::from_raw_parts(
                table.physical_start() as *const u8,
                table.get().header().length as usize,
            )
        }),
        Err(_) => Table(&[]),
    }
}

/// Returns the bytes of the table at a physical address; `None` if it has another signature or a wrong checksum.
///
/// # Safety
/// The address must be that of a table, or of other memory, which is identity-mapped and stays unchanged.
unsafe fn table_at<'a>(address: u64, signature: [u8; 4]) -> Option<&'a [u8]> {
    let start = NonNull::new(address as *mut u8)?.as_ptr();
    // SAFETY: by the caller; a header is there, or memory at least.
    let header = Table(unsafe { core::slice::from_raw_parts(start, HEADER) });
    let length = header.u32(4)? as usize;
    if !header.0.starts_with(&signature) || length < HEADER {
        return None;
    }
    // SAFETY: as above: it says that it is so long.
    let table = unsafe { core::slice::from_raw_parts(start, length) };
    let sum = table.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
    (sum == 0).then_some(table)
}
