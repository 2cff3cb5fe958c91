//! A VM for tests: all that VCPUs share, with RAM from the test's heap and no processor.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use devices::chipset::rtc::NaiveDateTime;
use devices::chipset::{Chipset, ChipsetConfig};
use devices::clock::VirtualClock;
use devices::lapic::{ApicConfig, LocalApic};
use devices::time::Hertz;
use raw_cpuid::CpuIdResult;
use spin::Mutex;
use vmx::capabilities::Translation;
use vmx::ept::{Access, Ept};
use vmx::page::Page;

use super::host::{SerialOutput, Waker};
use super::memory_map::MemoryMap;
use super::ram::GuestRam;
use super::{Vm, VmDisk, VmParts};
use crate::cpuid::{self, GuestCpuid, VmxSupport};
use crate::ids::VmId;
use crate::machine::host_time::host_now;
use crate::machine::memory::Frames;

/// The frequency of the TSC, as the tests' VMs are told.
pub(crate) const TSC: Hertz = Hertz::new(1_000_000_000);

/// A serial line with nobody to read it, and no end of room.
#[derive(Clone, Default)]
pub(crate) struct Written(pub(crate) Arc<Mutex<Vec<u8>>>);

impl SerialOutput for Written {
    fn write(&self, _: &str, byte: u8) {
        self.0.lock().push(byte);
    }

    fn is_full(&self) -> bool {
        false
    }

    fn has_room(&self) -> bool {
        true
    }

    fn delay(&self) -> u64 {
        0
    }
}

/// `size` bytes of RAM.
pub(crate) fn ram(size: u64) -> GuestRam {
    GuestRam::new(size, vec![Frames::allocate(size, 4096).unwrap()]).unwrap()
}

/// CPUID as this machine has it. It is executed once for each leaf: where the tests run in a VM, it exits.
fn host_cpuid(leaf: u32, subleaf: u32) -> CpuIdResult {
    static KNOWN: Mutex<BTreeMap<(u32, u32), CpuIdResult>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock();
    *known
        .entry((leaf, subleaf))
        .or_insert_with(|| cpuid::host(leaf, subleaf))
}

/// The local APICs of `vcpus` VCPUs, after power-up.
pub(crate) fn lapics(vcpus: u32) -> Vec<LocalApic> {
    (0..vcpus)
        .map(|index| {
            LocalApic::new(ApicConfig {
                id: index,
                bootstrap: index == 0,
                tsc_hz: TSC,
                timer_hz: TSC,
                physical_address_bits: 39,
                cmci: false,
            })
        })
        .collect()
}

/// A VM of `vcpus` VCPUs in `ram`.
pub(crate) fn vm(
    id: VmId,
    name: &str,
    vcpus: u32,
    ram: GuestRam,
    waker: Arc<dyn Waker>,
    output: Box<dyn SerialOutput>,
) -> Arc<Vm> {
    vm_with(id, name, &lapics(vcpus), ram, Vec::new(), waker, output)
}

/// A VM in `ram` with `disks`, which are on no bus, whose VCPUs have `lapics`.
pub(crate) fn vm_with(
    id: VmId,
    name: &str,
    lapics: &[LocalApic],
    ram: GuestRam,
    disks: Vec<VmDisk>,
    waker: Arc<dyn Waker>,
    output: Box<dyn SerialOutput>,
) -> Arc<Vm> {
    let vcpus = lapics.len() as u32;
    let vmx = VmxSupport {
        rdtscp: true,
        invpcid: true,
        xsaves: true,
    };
    let ept = || {
        let mut ept = Ept::new(&Translation::ALL).unwrap();
        for range in ram.ranges() {
            // SAFETY: no CPU uses these tables.
            unsafe {
                ept.map(range.guest, range.host, range.length, Access::all())
                    .unwrap()
            };
        }
        ept
    };
    let cpuid = GuestCpuid::new(host_cpuid, vmx, vcpus, TSC);
    let clock = VirtualClock::new(host_now());
    let config = ChipsetConfig {
        tsc: TSC,
        date: NaiveDateTime::default(),
        processors: vcpus as u16,
        ram_size: ram.ranges().map(|range| range.length).sum(),
        test_devices: true,
        firmware: None,
    };
    Arc::new(Vm::new(VmParts {
        id,
        name: name.to_string(),
        memory_map: MemoryMap::new(ept(), ept(), Page::try_new().unwrap(), vcpus),
        chipset: Chipset::new(&config, Vec::new(), clock.now(host_now())),
        clock,
        ports: lapics.iter().map(|lapic| lapic.port().clone()).collect(),
        output,
        disks,
        nics: Vec::new(),
        console: None,
        waker,
        cpuid,
        ram,
        tsc: TSC,
        suppression: crate::suppression::order::Defaults::default(),
    }))
}
