//! Making a VM from its configuration: RAM, memory map, devices, VCPUs, and the guest in it.

use alloc::sync::Arc;
use alloc::vec::Vec;

use devices::chipset::{Chipset, ChipsetConfig};
use devices::clock::VirtualClock;
use devices::lapic::{ApicConfig, LocalApic};
use devices::rtc::NaiveDateTime;
use devices::time::{Hertz, HostTicks};
use thiserror::Error;
use vmx::addr::{GuestPhysAddr, HostPhysAddr};
use vmx::bitmaps::IoBitmaps;
use vmx::capabilities::Capabilities;
use vmx::controls::Secondary;
use vmx::ept::{Access, Ept, EptError};
use vmx::translation::Vpid;

use super::output::GuestOutput;
use super::pages::PagePool;
use super::ram::{GuestRam, MAX_RANGES, RamRange};
use super::{Vm, VmId, VmParts};
use crate::cpuid::{self, GuestCpuid, VmxSupport};
use crate::guest_boot::{self, LoadError, memory_map};
use crate::host_time::host_now;
use crate::machine::memory::{self, OutOfMemory};
use crate::machine::rtc;
use crate::msr::{HostMsrs, Msrs};
use crate::vcpu::{Vcpu, VcpuConfig, VcpuPages};
use crate::vm_config::{MAX_VCPUS, VmConfig};

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
    /// The frequency of the TSC.
    pub tsc: Hertz,
    /// What guests are told of the host's MSRs.
    pub host_msrs: HostMsrs,
    /// Ports that exit: all.
    pub io_bitmaps: &'static IoBitmaps,
    /// Whether to let the processor virtualise the APIC, if it can.
    pub virtualize_apic: bool,
}

impl Maker {
    /// Makes the VM of `config` with the number `id` in `ram`, whose size is that of the
    /// configuration, without a guest in it. This CPU is in VMX operation, and has no VCPU
    /// loaded.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn make(
        &self,
        id: VmId,
        config: &VmConfig<'_>,
        ram: GuestRam,
    ) -> Result<Vec<Vcpu>, CreateError> {
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
        let pages = PagePool::default();
        let ept = self.map_ram(&ram, &pages)?;
        let apic_access_page = pages.allocate().ok_or(CreateError::Tables)?.address();
        let clock = VirtualClock::new(start_of_time());
        let now = clock.now(host_now());
        let vm = Arc::new(Vm::new(VmParts {
            id,
            name: config.name.clone(),
            ept,
            pages,
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
            output: GuestOutput::new(id, self.tsc),
            cpuid,
            ram,
            usage_window: self.tsc.get() / 2,
        }));
        let mut vcpus = Vec::new();
        for (index, lapic) in (0..).zip(lapics) {
            vcpus.push(self.make_vcpu(&vm, index, lapic)?);
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

    fn map_ram(&self, ram: &GuestRam, pages: &PagePool) -> Result<Ept, CreateError> {
        let mut tables = || pages.allocate();
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

    fn make_vcpu(&self, vm: &Arc<Vm>, index: u32, lapic: LocalApic) -> Result<Vcpu, CreateError> {
        let vpid = vpid(vm.id, index).ok_or(CreateError::Vpids)?;
        let page = || vm.allocate_page().ok_or(CreateError::Tables);
        let pages = VcpuPages {
            vmcs: page()?,
            msr_bitmaps: page()?.into(),
            io_bitmaps: self.io_bitmaps,
        };
        let config = VcpuConfig {
            index,
            lapic,
            vpid,
            msrs: Msrs::new(&vm.cpuid, &self.host_msrs),
            virtualize_apic: self.virtualize_apic,
            tsc: self.tsc,
        };
        // SAFETY: this CPU is in VMX operation.
        unsafe { Vcpu::new(vm.clone(), self.capabilities, pages, config) }
            .map_err(|_| CreateError::Vmcs)
    }
}

/// Clears the RAM of the VM whose first VCPU this is, and loads the guest of `config`. No VCPU is
/// loaded on this CPU.
///
/// # Errors
/// If the guest's files are not what they should be.
pub fn load_guest(first: &mut Vcpu, config: &VmConfig<'_>) -> Result<(), CreateError> {
    let vm = first.vm().clone();
    vm.ram.clear();
    let state = guest_boot::load(&vm.ram, config)?;
    first.enter_at(&state).map_err(|_| CreateError::Vmcs)
}

/// The VPID of a VCPU: its own for all VMs there can be. One that a VM with the same number
/// had before is used again; CPUs drop what they know of it when a VCPU comes to them.
fn vpid(vm: VmId, index: u32) -> Option<Vpid> {
    let number = vm.0.checked_mul(MAX_VCPUS)? + index as usize + 1;
    Vpid::new(u16::try_from(number).ok()?)
}

/// A guest is born at time zero, now.
fn start_of_time() -> HostTicks {
    host_now()
}

/// The date that a guest's RTC starts with: the machine's, or the Unix epoch if that has none.
fn date() -> NaiveDateTime {
    rtc::now().unwrap_or_default()
}

/// RAM for a guest, as its memory map wants it, in one piece of host memory, aligned for the
/// largest pages that the map can use.
///
/// # Errors
/// If the machine has no such piece left.
pub fn allocate_ram(size: u64) -> Result<GuestRam, CreateError> {
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
    // SAFETY: fresh memory, identity-mapped, and the RAM's own until it is dropped with the
    // VM, whose VCPUs are gone by then.
    Ok(unsafe { GuestRam::new(ranges, backing) })
}
