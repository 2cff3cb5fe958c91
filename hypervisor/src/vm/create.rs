//! Making a VM from its configuration: RAM, memory map, devices, VCPUs, and the guest in it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use devices::chipset::{Chipset, ChipsetConfig};
use devices::clock::VirtualClock;
use devices::lapic::{ApicConfig, LocalApic};
use devices::rtc::NaiveDateTime;
use devices::time::{Hertz, HostTicks};
use thiserror::Error;
use vmx::addr::{GuestPhysAddr, HostPhysAddr, PAGE_SIZE};
use vmx::bitmaps::{IoBitmaps, MsrBitmaps};
use vmx::capabilities::Capabilities;
use vmx::controls::Secondary;
use vmx::ept::{Access, Ept, EptError, TableAllocator};
use vmx::page::Page;
use vmx::translation::Vpid;
use vmx::vmcs::HostState;

use super::output::GuestOutput;
use super::ram::{GuestRam, MAX_RANGES, RamRange};
use super::{Vm, VmId, VmParts};
use crate::cpuid::{self, GuestCpuid, VmxSupport};
use crate::guest_boot::{self, LoadError, memory_map};
use crate::host_time::host_now;
use crate::machine::memory::{self, OutOfMemory};
use crate::machine::rtc;
use crate::msr::{HostMsrs, Msrs};
use crate::vcpu::{Vcpu, VcpuConfig, VcpuPages};
use crate::vm_config::VmConfig;

/// Why a VM cannot be made.
#[derive(Clone, Debug, Error)]
pub enum CreateError {
    /// The machine's memory does not suffice.
    #[error(
        "not enough memory for {wanted} MiB of RAM: {free} MiB are free; give the VM less with \
         `mem=`, or the machine more"
    )]
    Memory {
        /// What the VM wants, in MiB.
        wanted: u64,
        /// What there is, in MiB.
        free: u64,
    },
    /// No memory for the VM's structures.
    #[error("not enough memory for the VM's tables")]
    Tables,
    /// The guest cannot be loaded.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// Too many VCPUs in all VMs for the identifiers that tag their translations.
    #[error("too many VCPUs in all VMs")]
    Vpids,
    /// The processor refuses a VMCS: a bug of tarpit's.
    #[error("the processor refuses the VMCS")]
    Vmcs,
}

impl From<EptError> for CreateError {
    fn from(_: EptError) -> Self {
        Self::Tables
    }
}

/// What all VMs of a machine are made with.
pub struct Maker {
    /// What the CPUs' VMX can do.
    pub capabilities: &'static Capabilities,
    /// This CPU's tables.
    pub host: HostState,
    /// The frequency of the TSC.
    pub tsc: Hertz,
    /// What guests are told of the host's MSRs.
    pub host_msrs: HostMsrs,
    /// Ports that exit: all.
    pub io_bitmaps: &'static IoBitmaps,
    /// Whether to let the processor virtualise the APIC, if it can.
    pub virtualize_apic: bool,
    next_vpid: u16,
}

/// A zeroed page for an EPT table.
fn allocate_table() -> Option<&'static mut Page> {
    let range = memory::allocate(PAGE_SIZE, PAGE_SIZE).ok()?;
    let page = range.start.0 as *mut Page;
    // SAFETY: a fresh, aligned, identity-mapped frame that is nobody else's; zeroed before
    // it is referred to.
    unsafe {
        page.write_bytes(0, 1);
        Some(&mut *page)
    }
}

impl Maker {
    /// A maker whose first VCPU gets VPID 1.
    #[must_use]
    pub const fn new(
        capabilities: &'static Capabilities,
        host: HostState,
        tsc: Hertz,
        host_msrs: HostMsrs,
        io_bitmaps: &'static IoBitmaps,
        virtualize_apic: bool,
    ) -> Self {
        Self {
            capabilities,
            host,
            tsc,
            host_msrs,
            io_bitmaps,
            virtualize_apic,
            next_vpid: 1,
        }
    }

    /// Makes the VM of `config` with the number `id`, its guest loaded and its first VCPU
    /// ready to run.
    ///
    /// # Errors
    /// If there is no memory, or the guest's files are not what they should be.
    pub fn make(&mut self, id: VmId, config: &VmConfig<'_>) -> Result<Vec<Vcpu>, CreateError> {
        let (ram, backing) = allocate_ram(config.memory)?;
        self.make_in(id, config, ram)
            .inspect_err(|_| memory::free(backing))
    }

    fn make_in(
        &mut self,
        id: VmId,
        config: &VmConfig<'_>,
        ram: GuestRam,
    ) -> Result<Vec<Vcpu>, CreateError> {
        ram.clear();
        let entry = guest_boot::load(&ram, config)?;
        let cpuid = GuestCpuid::new(cpuid::host, self.vmx_support(), config.vcpus, self.tsc);
        let lapics: Vec<LocalApic> = (0..config.vcpus)
            .map(|index| {
                LocalApic::new(ApicConfig {
                    id: index,
                    bootstrap: index == 0,
                    tsc_hz: self.tsc,
                    timer_hz: cpuid.apic_timer_hz(),
                    physical_address_bits: cpuid.limits().physical_address_bits as u8,
                    cmci: false,
                })
            })
            .collect();
        let ept = self.map_ram(&ram)?;
        let apic_access_page = allocate_table().ok_or(CreateError::Tables)?.address();
        let clock = VirtualClock::new(start_of_time());
        let now = clock.now(host_now());
        let vm = Arc::new(Vm::new(VmParts {
            id,
            name: config.name.clone(),
            ept,
            tables: allocate_table,
            apic_access_page,
            chipset: Chipset::new(
                ChipsetConfig {
                    tsc: self.tsc,
                    date: date(),
                    processors: config.vcpus as u16,
                    ram_size: config.memory,
                },
                now,
            ),
            clock,
            ports: lapics.iter().map(|lapic| lapic.port().clone()).collect(),
            output: GuestOutput::new(id),
            cpuid,
            ram,
            usage_window: self.tsc.get() / 2,
        }));
        let mut vcpus = Vec::new();
        for (index, lapic) in (0..).zip(lapics) {
            let mut vcpu = self.make_vcpu(&vm, index, lapic)?;
            if index == 0 {
                vcpu.enter_at(&entry);
            }
            vcpus.push(vcpu);
        }
        Ok(vcpus)
    }

    /// What guests may use only if VMX lets them.
    const fn vmx_support(&self) -> VmxSupport {
        VmxSupport {
            rdtscp: self.capabilities.has(Secondary::RDTSCP),
            invpcid: self.capabilities.has(Secondary::INVPCID),
            xsaves: self.capabilities.has(Secondary::XSAVES),
        }
    }

    fn map_ram(&self, ram: &GuestRam) -> Result<Ept, CreateError> {
        let mut tables = allocate_table;
        let tables: &mut dyn FnMut() -> Option<&'static mut Page> = &mut tables;
        let mut tables = || tables();
        let mut ept = Ept::new(&self.capabilities.translation, &mut tables)?;
        for range in ram.ranges() {
            // SAFETY: the RAM is this guest's alone.
            unsafe {
                ept.map(
                    range.guest,
                    range.host,
                    range.length,
                    Access::all(),
                    &mut tables,
                )?
            };
        }
        Ok(ept)
    }

    fn make_vcpu(
        &mut self,
        vm: &Arc<Vm>,
        index: u32,
        lapic: LocalApic,
    ) -> Result<Vcpu, CreateError> {
        let vpid = Vpid::new(self.next_vpid).ok_or(CreateError::Vpids)?;
        self.next_vpid = self.next_vpid.wrapping_add(1);
        vmx::translation::invalidate_vpid(&self.capabilities.translation, vpid);
        let pages = VcpuPages {
            vmcs: allocate_table.allocate().ok_or(CreateError::Tables)?,
            msr_bitmaps: Box::leak(Box::new(MsrBitmaps::ALL_EXIT)),
            io_bitmaps: self.io_bitmaps,
        };
        let config = VcpuConfig {
            index,
            lapic,
            vpid,
            msrs: Msrs::new(&vm.cpuid, &self.host_msrs),

            virtualize_apic: self.virtualize_apic,
        };
        // SAFETY: this CPU is in VMX operation, and the host state is its own.
        unsafe { Vcpu::new(vm.clone(), self.capabilities, &self.host, pages, config) }
            .map_err(|_| CreateError::Vmcs)
    }
}

/// A guest is born at time zero, now.
fn start_of_time() -> HostTicks {
    host_now()
}

/// The date that a guest's RTC starts with: the machine's, or the Unix epoch if that has none.
fn date() -> NaiveDateTime {
    rtc::now().unwrap_or_default()
}

/// RAM for a guest, as its memory map wants it, and the host memory that backs it: in one
/// piece, aligned for the largest pages that the map can use.
fn allocate_ram(size: u64) -> Result<(GuestRam, memory::PhysRange), CreateError> {
    let out_of_memory = |_: OutOfMemory| CreateError::Memory {
        wanted: size >> 20,
        free: memory::free_bytes() >> 20,
    };
    let backing = memory::allocate(size, memory::SIZE_1G)
        .or_else(|_| memory::allocate(size, memory::SIZE_2M))
        .map_err(out_of_memory)?;
    let mut ranges = [RamRange {
        guest: GuestPhysAddr(0),
        host: backing.start,
        length: 0,
    }; MAX_RANGES];
    for (slot, range) in ranges.iter_mut().zip(memory_map::ram_ranges(size)) {
        let above_hole = range.start >= memory_map::DEVICE_HOLE_END;
        let hole = memory_map::DEVICE_HOLE_END - memory_map::DEVICE_HOLE_START;
        let offset = if above_hole {
            range.start - hole
        } else {
            range.start
        };
        *slot = RamRange {
            guest: GuestPhysAddr(range.start),
            host: HostPhysAddr(backing.start.0 + offset),
            length: range.end - range.start,
        };
    }
    // SAFETY: fresh memory, identity-mapped, never given to anyone else while the VM lives.
    Ok((unsafe { GuestRam::new(ranges) }, backing))
}
