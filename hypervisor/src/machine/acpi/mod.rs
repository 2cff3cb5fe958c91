//! What the host's ACPI tables say of processors, timers, interrupt controllers and power.

mod soft_off;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ptr::NonNull;

use acpi::address::{AddressSpace, GenericAddress};
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::spcr::{Spcr, SpcrInterfaceType};
use acpi::{AcpiError, AcpiHandler, AcpiTables, HpetInfo, PhysicalMapping};

use super::boot_info::BootInfo;
use super::console_line::ConsoleLine;

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

    fn from_tables(tables: &AcpiTables<Identity>) -> Self {
        let mut acpi = Self {
            hpet: HpetInfo::new(tables)
                .ok()
                .map(|hpet| hpet.base_address as u64),
            ..Self::default()
        };
        if let Ok(madt) = tables.find_table::<Madt>() {
            acpi.read_madt(&madt);
        }
        if let Ok(fadt) = tables.find_table::<Fadt>() {
            acpi.read_fadt(&fadt, aml(tables));
        }
        if let Ok(spcr) = tables.find_table::<Spcr>() {
            acpi.console = console_line(&spcr);
        }
        acpi
    }

    fn read_madt(&mut self, madt: &PhysicalMapping<Identity, Madt>) {
        // MADT "local APIC flags" (ACPI 6.5, table 5.22).
        const ENABLED: u32 = 1 << 0;
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(apic) if { apic.flags } & ENABLED != 0 => {
                    self.add_cpu(u32::from(apic.apic_id));
                }
                MadtEntry::LocalX2Apic(apic) if { apic.flags } & ENABLED != 0 => {
                    self.add_cpu(apic.x2apic_id);
                }
                MadtEntry::IoApic(io_apic) => self.io_apics.push(HostIoApic {
                    address: u64::from(io_apic.io_apic_address),
                    first_gsi: io_apic.global_system_interrupt_base,
                }),
                _ => {}
            }
        }
    }

    /// Adds a processor once: firmware may list it both as local APIC and as local x2APIC.
    fn add_cpu(&mut self, apic_id: u32) {
        let cpu = HostCpu { apic_id };
        if !self.cpus.contains(&cpu) {
            self.cpus.push(cpu);
        }
    }

    fn read_fadt(&mut self, fadt: &Fadt, aml: &[u8]) {
        self.pm_timer = port(fadt.pm_timer_block().ok().flatten()).map(|port| PmTimer {
            port,
            bits: if { fadt.flags }.pm_timer_is_32_bit() {
                32
            } else {
                24
            },
        });
        let pm1a_control = port(fadt.pm1a_control_block().ok()).filter(|&port| port != 0);
        if let (Some(pm1a_control), Some(types)) = (pm1a_control, SleepTypes::of_s5(aml)) {
            self.soft_off = Some(SoftOff {
                pm1a_control,
                pm1b_control: port(fadt.pm1b_control_block().ok().flatten()),
                sleep_type_a: types.a,
                sleep_type_b: types.b,
                acpi_enable: u16::try_from(fadt.smi_cmd_port)
                    .ok()
                    .filter(|&port| port != 0 && fadt.acpi_enable != 0)
                    .map(|port| AcpiEnable {
                        port,
                        value: fadt.acpi_enable,
                    }),
            });
        }
        // The flag is defined together with the register; a FADT without the field lacks it.
        if { fadt.flags }.supports_system_reset_via_fadt()
            && let Ok(register) = fadt.reset_register()
        {
            let space = match register.address_space {
                AddressSpace::SystemIo => {
                    u16::try_from(register.address).ok().map(ResetSpace::Port)
                }
                AddressSpace::SystemMemory => Some(ResetSpace::Memory(register.address)),
                _ => None,
            };
            self.reset = space.map(|space| ResetRegister {
                space,
                value: fadt.reset_value,
            });
        }
    }
}

/// Returns the line that the SPCR describes, if it has a UART of the 16550 kind at I/O ports.
fn console_line(spcr: &Spcr) -> Option<ConsoleLine> {
    const DEFAULT_BAUD: u32 = 115_200;
    let interface = spcr.interface_type();
    let is_16550 = matches!(
        interface,
        SpcrInterfaceType::Full16550
            | SpcrInterfaceType::Full16450
            | SpcrInterfaceType::Generic16550
    );
    let address = spcr.base_address().and_then(Result::ok);
    let baud = spcr.baud_rate().map_or(DEFAULT_BAUD, NonZeroU32::get);
    ConsoleLine::new(port(address.filter(|_| is_16550))?, baud)
}

/// Returns the I/O port that an address names, if it names one.
fn port(address: Option<GenericAddress>) -> Option<u16> {
    address
        .filter(|address| address.address_space == AddressSpace::SystemIo)
        .and_then(|address| u16::try_from(address.address).ok())
}

/// Returns the DSDT's byte code; empty if there is no DSDT with a right checksum.
fn aml(tables: &AcpiTables<Identity>) -> &[u8] {
    match tables.dsdt() {
        // SAFETY: the table's extent was checked by its checksum, and firmware tables stay.
        Ok(dsdt) => unsafe {
            core::slice::from_raw_parts(dsdt.address as *const u8, dsdt.length as usize)
        },
        Err(_) => &[],
    }
}
