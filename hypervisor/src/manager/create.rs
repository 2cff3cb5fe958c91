//! Making a VM from its configuration: RAM, memory map, devices, VCPUs, and the guest in it.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use devices::bandwidth::TokenBucket;
use devices::chipset::pci::PciFunction;
use devices::chipset::rtc::NaiveDateTime;
use devices::chipset::{Chipset, ChipsetConfig};
use devices::clock::VirtualClock;
use devices::lapic::{ApicConfig, LocalApic};
use devices::switch::Switch;
use devices::time::{Hertz, HostTicks};
use devices::virtio::block::Block;
use devices::virtio::console::{Console, ConsoleInput, ConsoleLine};
use devices::virtio::device::VirtioDevice;
use devices::virtio::net::{Limit, Net};
use devices::virtio::pci::VirtioPci;
use devices::virtio::rng::Rng;
use spin::{Mutex, Once};
use vmx::addr::PAGE_SIZE;
use vmx::bitmaps::{IoBitmaps, MsrBitmaps};
use vmx::capabilities::Capabilities;
use vmx::controls::Secondary;
use vmx::entry::WorldSwitch;
use vmx::ept::{Access, Ept};
use vmx::page::Page;
use vmx::translation::Vpid;

use super::factory::{CreateError, Load, NewVm, VmFactory};
use crate::cpuid::{self, GuestCpuid, VmxSupport};
use crate::guest_boot::{self, GuestImage, LoadError};
use crate::ids::{MAX_VCPUS, VmId};
use crate::machine::entropy;
use crate::machine::host_time::host_now;
use crate::machine::memory::{self, Frames, OutOfMemory};
use crate::machine::rtc;
use crate::msr::{HostMsrs, Msrs};
use crate::scheduler::Runnable;
use crate::vcpu::vmx::{VmxCpu, VmxPages};
use crate::vcpu::{Vcpu, VcpuConfig};
use crate::vm::host::{SerialOutput, Waker};
use crate::vm::memory_map::MemoryMap;
use crate::vm::ram::GuestRam;
use crate::vm::rom::Rom;
use crate::vm::{Nic, Vm, VmDisk, VmParts};
use crate::vm_config::VmConfig;

/// The things that are made for a VM once, for all its lives: it takes its time, for its files may be large.
pub(crate) struct Prepared {
    image: Arc<GuestImage<'static>>,
    /// Its firmware, if it has any.
    rom: Option<Arc<Rom>>,
    cpuid: GuestCpuid,
}

/// A factory of VMs that run on this machine's processors.
pub(crate) struct HostFactory {
    /// The capabilities of the CPUs' VMX.
    pub capabilities: &'static Capabilities,
    /// The frequency of the TSC.
    pub tsc: Hertz,
    /// The facts about the host's MSRs that guests are told.
    pub host_msrs: HostMsrs,
    /// Ports that exit: all.
    pub io_bitmaps: &'static IoBitmaps,
    /// Whether to let the processor virtualize the APIC, if it can.
    pub virtualize_apic: bool,
    /// The things that are done at each entry of a guest and at each exit.
    pub world_switch: WorldSwitch,
    /// Whether guests may execute in large pages of their RAM.
    pub executes_in_large_pages: bool,
    /// The means to bring VCPUs to look at their requests.
    pub waker: Arc<dyn Waker>,
    /// The function that makes the far end of the serial line of a VM.
    pub serial_output: Box<dyn Fn(VmId) -> Box<dyn SerialOutput> + Send + Sync>,
    /// The networks between VMs, by name.
    pub networks: Mutex<BTreeMap<String, Arc<Switch>>>,
    /// The guests of the VMs, by their numbers, or why there are none.
    pub prepared: Vec<Result<Prepared, CreateError>>,
}

/// The VM that frames arrive for and that writes to its console, once it has been made.
type Plugs = Arc<Once<Weak<Vm>>>;

/// The line to which a VM's virtio console writes: where its serial output goes.
struct GuestLine(Plugs);

impl GuestLine {
    fn vm(&self) -> Option<Arc<Vm>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl ConsoleLine for GuestLine {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(vm) = self.vm() {
            for &byte in bytes {
                vm.output.write(&vm.name, byte);
            }
        }
    }

    fn wait(&mut self) -> Option<HostTicks> {
        let vm = self.vm()?;
        let waits = vm.output.is_full() && !vm.output.has_room();
        waits.then(|| host_now().saturating_add(vm.output.delay()))
    }
}

impl VmFactory for HostFactory {
    fn ticks_per_second(&self) -> u64 {
        self.tsc.get()
    }

    fn allocate_ram(&self, size: u64) -> Result<GuestRam, CreateError> {
        allocate_ram(size)
    }

    fn make_vm(
        &self,
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
        disks: Vec<VmDisk>,
    ) -> Result<NewVm, CreateError> {
        let Prepared { cpuid, rom, .. } = self.prepared(id)?;
        let ram = match rom {
            Some(rom) => ram.with_rom(rom.clone()),
            None => ram,
        };
        self.make(id, config, cpuid.clone(), ram, disks)
    }

    fn make_vcpu(
        &self,
        vm: &Arc<Vm>,
        index: u32,
        lapic: LocalApic,
        load: Load,
    ) -> Result<Box<dyn Runnable>, CreateError> {
        let mut vcpu = self.make_empty_vcpu(vm, index, lapic)?;
        if index == 0 {
            let image = &self.prepared(vm.id)?.image;
            match load {
                Load::Now => load_guest(&mut vcpu, image)?,
                Load::Later => vcpu.load_guest_later(image.clone()),
            }
        }
        Ok(Box::new(vcpu))
    }
}

impl HostFactory {
    /// Prepares the VMs of these configurations, in the order of their numbers: before any of them runs, as
    /// it takes its time.
    pub(crate) fn prepare(&mut self, configs: &[VmConfig<'static>]) {
        self.prepared = (configs.iter())
            .map(|config| self.prepare_one(config))
            .collect();
    }

    fn prepare_one(&self, config: &VmConfig<'static>) -> Result<Prepared, CreateError> {
        let image = Arc::new(guest_boot::prepare(config)?);
        let rom = config.firmware.map(|image| {
            let rom = Rom::new(guest_boot::firmware::rom_start(image), image);
            rom.map(Arc::new).ok_or(CreateError::Tables)
        });
        Ok(Prepared {
            image,
            rom: rom.transpose()?,
            cpuid: GuestCpuid::new(cpuid::host, self.vmx_support(), config.vcpus, self.tsc),
        })
    }

    /// Returns what has been prepared for a VM.
    ///
    /// # Errors
    /// If it could not be prepared, or nothing was.
    fn prepared(&self, id: VmId) -> Result<&Prepared, CreateError> {
        let prepared = self.prepared.get(id.0).ok_or(CreateError::NotPrepared)?;
        prepared.as_ref().map_err(CreateError::clone)
    }

    /// Makes the VM of `config` with the number `id` in `ram`, whose size is that of the
    /// configuration, with these `disks` and without VCPUs.
    ///
    /// # Errors
    /// If there is no memory.
    fn make(
        &self,
        id: VmId,
        config: &VmConfig<'static>,
        cpuid: GuestCpuid,
        ram: GuestRam,
        disks: Vec<VmDisk>,
    ) -> Result<NewVm, CreateError> {
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
        let whole = self.map_ram(&ram)?;
        let guarded = self.map_ram(&ram)?;
        let apic_access_page = Page::try_new().ok_or(CreateError::Tables)?;
        let plugs = Plugs::default();
        let mut nics = Vec::new();
        let console = config.console.then(Arc::<ConsoleInput>::default);
        let functions = self.pci_functions(config, &disks, &plugs, &mut nics, console.as_ref())?;
        let clock = VirtualClock::new(start_of_time());
        let now = clock.now(host_now());
        let vm = Arc::new(Vm::new(VmParts {
            id,
            name: config.name.clone(),
            memory_map: MemoryMap::new(whole, guarded, apic_access_page, config.vcpus),
            chipset: Chipset::new(
                &ChipsetConfig {
                    tsc: self.tsc,
                    date: date(),
                    processors: config.vcpus as u16,
                    ram_size: config.memory,
                    test_devices: config.test_devices,
                    firmware: config
                        .firmware
                        .map(|_| guest_boot::firmware::config(config)),
                },
                functions,
                now,
            ),
            clock,
            ports: lapics.iter().map(|lapic| lapic.port().clone()).collect(),
            output: (self.serial_output)(id),
            disks,
            nics,
            console,
            waker: self.waker.clone(),
            cpuid,
            ram,
            tsc: self.tsc,
            suppression: config.suppression,
        }));
        plugs.call_once(|| Arc::downgrade(&vm));
        Ok(NewVm { vm, lapics })
    }

    /// Returns the devices on the PCI bus of the VM of `config`, whom `plugs` will name, with `disks` behind some
    /// of them, and puts what the operator sees of its network devices into `nics`. `console` is the input of
    /// its console.
    fn pci_functions(
        &self,
        config: &VmConfig<'static>,
        disks: &[VmDisk],
        plugs: &Plugs,
        nics: &mut Vec<Nic>,
        console: Option<&Arc<ConsoleInput>>,
    ) -> Result<Vec<Box<dyn PciFunction>>, CreateError> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        if config.entropy {
            devices.push(Box::new(Rng::new(Box::new(entropy::generator()))));
        }
        for disk in disks {
            devices.push(Box::new(Block::new(disk.contents.clone(), disk.id.clone())));
        }
        for nic in &config.nics {
            let plugs = plugs.clone();
            let arrival = Box::new(move || {
                if let Some(vm) = plugs.get().and_then(Weak::upgrade) {
                    vm.input_arrived();
                }
            });
            let network = self.network(&nic.network);
            let port = network
                .plug_in(nic.mac, arrival)
                .map_err(|_| CreateError::Tables)?;
            nics.push(Nic {
                network: nic.network.clone(),
                mac: nic.mac,
                rate: nic.rate,
                traffic: port.traffic().clone(),
            });
            let limit = nic.rate.map(|rate| Limit {
                bucket: TokenBucket::new(rate, self.tsc),
                clock: Box::new(host_now),
            });
            let device = Net::new(port, limit).map_err(|_| CreateError::Tables)?;
            devices.push(Box::new(device));
        }
        // Behind the others, which are where they would be without it.
        if let Some(input) = console {
            let line = Box::new(GuestLine(plugs.clone()));
            devices.push(Box::new(Console::new(line, input.clone())));
        }
        Ok(devices
            .into_iter()
            .map(|device| Box::new(VirtioPci::new(device)) as Box<dyn PciFunction>)
            .collect())
    }

    /// Returns the network of this name.
    fn network(&self, name: &str) -> Arc<Switch> {
        let mut networks = self.networks.lock();
        networks.entry(name.to_owned()).or_default().clone()
    }

    /// Returns what guests may use only if VMX lets them.
    const fn vmx_support(&self) -> VmxSupport {
        VmxSupport {
            rdtscp: self.capabilities.has(Secondary::RDTSCP),
            invpcid: self.capabilities.has(Secondary::INVPCID),
            xsaves: self.capabilities.has(Secondary::XSAVES),
        }
    }

    fn map_ram(&self, ram: &GuestRam) -> Result<Ept, CreateError> {
        let mut ept = Ept::new(&self.capabilities.translation)?;
        if !self.executes_in_large_pages {
            ept = ept.without_execution_in_large_pages();
        }
        for range in ram.ranges() {
            // SAFETY: the RAM is this guest's alone.
            unsafe { ept.map(range.guest, range.host, range.length, Access::all())? };
        }
        for (guest, host) in ram.rom().into_iter().flat_map(Rom::pages) {
            let access = Access::READ | Access::EXECUTE;
            // SAFETY: the page is of this guest's ROM alone, which lives as long as the RAM; the guest
            // can only read it.
            unsafe { ept.map(guest, host, PAGE_SIZE, access)? };
        }
        Ok(ept)
    }

    /// Makes VCPU `index` of `vm`, with its local APIC and without a guest. This CPU is in VMX operation, and
    /// has no VCPU loaded.
    fn make_empty_vcpu(
        &self,
        vm: &Arc<Vm>,
        index: u32,
        lapic: LocalApic,
    ) -> Result<Vcpu, CreateError> {
        let vpid = vpid(vm.id, index).ok_or(CreateError::Vpids)?;
        let pages = VmxPages {
            vmcs: Page::try_new().ok_or(CreateError::Tables)?,
            msr_bitmaps: MsrBitmaps::try_new().ok_or(CreateError::Tables)?,
            io_bitmaps: self.io_bitmaps,
        };
        // SAFETY: this CPU is in VMX operation; the VCPU that the processor goes to keeps the VM and
        // the LAPIC. The world switch asks for nothing but what the CPUs' remedies do.
        let cpu = unsafe {
            VmxCpu::new(
                vm,
                self.capabilities,
                pages,
                vpid,
                &lapic,
                &self.world_switch,
            )?
        };
        let config = VcpuConfig {
            index,
            lapic,
            msrs: Msrs::new(&vm.cpuid, &self.host_msrs),
            virtualize_apic: self.virtualize_apic,
            tsc: self.tsc,
        };
        Ok(Vcpu::new(vm.clone(), cpu, config)?)
    }
}

/// Clears the RAM of the VM whose first VCPU this is, and loads the guest of `image`. No VCPU is
/// loaded on this CPU.
///
/// # Errors
/// If the guest does not fit into the RAM.
fn load_guest(first: &mut Vcpu, image: &GuestImage<'_>) -> Result<(), CreateError> {
    let vm = first.vm().clone();
    vm.ram.clear();
    image.memory.copy_to(&vm.ram).map_err(LoadError::from)?;
    Ok(first.enter_at(&image.entry)?)
}

/// Returns the VPID of a VCPU: its own for all VMs there can be. One that a VM with the same number
/// had before is used again; CPUs drop what they know of it when a VCPU comes to them.
fn vpid(vm: VmId, index: u32) -> Option<Vpid> {
    let number = vm.0.checked_mul(MAX_VCPUS)? + index as usize + 1;
    Vpid::new(u16::try_from(number).ok()?)
}

/// Returns the host time at which a guest is born: now.
fn start_of_time() -> HostTicks {
    host_now()
}

/// Returns the date that a guest's RTC starts with: the machine's, or the Unix epoch if that has
/// none.
fn date() -> NaiveDateTime {
    rtc::now().unwrap_or_default()
}

/// The part of the machine's memory that guests' RAM leaves for the VMs' tables and devices, in
/// bytes.
const LEFT_FOR_TABLES: u64 = 4 << 20;

/// Returns `size` bytes of RAM for a guest: in one piece of host memory, aligned for the largest
/// pages that can map it, or else in as few pieces as it takes.
///
/// # Errors
/// If the machine does not have that much left.
fn allocate_ram(size: u64) -> Result<GuestRam, CreateError> {
    let largest = memory::free_bytes_in_pieces(memory::SIZE_2M).saturating_sub(LEFT_FOR_TABLES);
    let out_of_memory = |_| CreateError::Memory {
        wanted: size >> 20,
        free: memory::free_bytes() >> 20,
        largest: largest >> 20,
    };
    if largest < size {
        return Err(out_of_memory(OutOfMemory {
            size,
            alignment: memory::SIZE_2M,
        }));
    }
    let pieces = Frames::allocate(size, memory::SIZE_1G)
        .or_else(|_| Frames::allocate(size, memory::SIZE_2M))
        .map(|piece| alloc::vec![piece])
        .or_else(|_| Frames::allocate_pieces(size, memory::SIZE_2M))
        .map_err(out_of_memory)?;
    if let [_, _, ..] = pieces[..] {
        let ranges: Vec<_> = pieces.iter().map(Frames::range).collect();
        log::debug!("{} MiB of RAM lie in pieces: {ranges:?}", size >> 20);
    }
    GuestRam::new(size, pieces).map_err(|_| CreateError::Tables)
}
