//! A virtual machine: what its VCPUs share.

pub mod create;
pub mod output;
pub mod ram;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use devices::apic_message::ApicMessage;
use devices::chipset::{Chipset, ChipsetHost, PowerRequest};
use devices::clock::VirtualClock;
use devices::lapic::{ApicPort, Router};
use devices::time::HostTicks;
use spin::Mutex;
use vmx::addr::{GuestPhysAddr, HostPhysAddr};
use vmx::ept::{Access, Ept, EptError};

use crate::cpuid::GuestCpuid;
use crate::host_time::host_now;
use crate::suppression::policy::Paper;
use crate::suppression::usage::Usage;
use crate::suppression::watch::Watch;
use crate::trace::Trace;
use crate::vcpu::statistics::Statistics;
use output::GuestOutput;
use ram::GuestRam;

/// The number of a VM: its place in the list of VMs, and its colour on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmId(pub usize);

/// What a VM does, as the operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Its VCPUs run when their guests want to.
    Running,
    /// The operator has stopped it, with its clock.
    Paused,
    /// It has come to its end.
    Ended,
}

impl State {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        }
    }
}

/// The devices that all VCPUs of a VM reach, and the clock that they run on.
pub struct Board {
    /// All devices but the local APICs.
    pub chipset: Chipset,
    /// The VM's time.
    pub clock: VirtualClock,
}

/// What VCPUs share of a VM.
pub struct Vm {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its devices and its time.
    pub board: Mutex<Board>,
    /// What CPUID shows.
    pub cpuid: GuestCpuid,
    /// What is suppressed in it.
    pub suppression: Mutex<Watch>,
    /// What its VCPUs record while the operator wants it.
    pub trace: Trace,
    /// Changes with the targets, and when tracing begins or ends: VCPUs look at them anew
    /// then.
    pub suppression_generation: AtomicU32,
    /// The address spaces seen, by VCPU.
    pub usages: Vec<Mutex<Usage>>,
    /// What its VCPUs have done, as of the last time each came off its CPU.
    pub statistics: Vec<Mutex<Statistics>>,
    /// How it pages, as last seen: a [`RootFormat`] in its order, zero for long mode.
    pub root_format: AtomicU8,
    state: AtomicU8,
    /// When it was paused last.
    paused_at: Mutex<HostTicks>,
    /// Where its serial port's output goes.
    pub output: GuestOutput,
    ept: Mutex<Ept>,
    ept_pointer: u64,
    tables: fn() -> Option<&'static mut vmx::page::Page>,
    apic_access_page: HostPhysAddr,
    /// One bit a VCPU: those that want the APIC-access page mapped.
    apic_page_users: AtomicU32,
    vcpus: u32,
    router: Router,
    ports: Vec<Arc<ApicPort>>,
    pic_output: AtomicBool,
    power: Mutex<Option<PowerRequest>>,
}

/// What a VM is made of.
pub struct VmParts {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its memory map, with the RAM mapped.
    pub ept: Ept,
    /// Where more tables come from.
    pub tables: fn() -> Option<&'static mut vmx::page::Page>,
    /// A page of nothing, for [`vmx::vmcs::Vmcs::set_apic_access_page`].
    pub apic_access_page: HostPhysAddr,
    /// Its devices.
    pub chipset: Chipset,
    /// Its time.
    pub clock: VirtualClock,
    /// What CPUID shows.
    pub cpuid: GuestCpuid,
    /// Its local APICs' shared sides, by VCPU.
    pub ports: Vec<Arc<ApicPort>>,
    /// Where its serial port's output goes.
    pub output: GuestOutput,
    /// The time over which shares of the CPU are taken, in host ticks.
    pub usage_window: u64,
}

impl Vm {
    /// A VM of these parts.
    #[must_use]
    pub fn new(parts: VmParts) -> Self {
        let now = host_now();
        Self {
            id: parts.id,
            name: parts.name,
            ram: parts.ram,
            board: Mutex::new(Board {
                chipset: parts.chipset,
                clock: parts.clock,
            }),
            cpuid: parts.cpuid,
            suppression: Mutex::new(Watch::new(Paper, parts.ports.len(), now)),
            trace: Trace::default(),
            suppression_generation: AtomicU32::new(0),
            statistics: parts.ports.iter().map(|_| Mutex::default()).collect(),
            root_format: AtomicU8::new(0),
            state: AtomicU8::new(State::Running as u8),
            paused_at: Mutex::new(now),
            usages: parts
                .ports
                .iter()
                .map(|_| Mutex::new(Usage::new(now, parts.usage_window)))
                .collect(),
            output: parts.output,
            ept_pointer: parts.ept.pointer(),
            ept: Mutex::new(parts.ept),
            tables: parts.tables,
            apic_access_page: parts.apic_access_page,
            apic_page_users: AtomicU32::new(0),
            vcpus: parts.ports.len() as u32,
            router: Router::default(),
            ports: parts.ports,
            pic_output: AtomicBool::new(false),
            power: Mutex::new(None),
        }
    }

    /// What it does.
    #[must_use]
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Running,
            1 => State::Paused,
            _ => State::Ended,
        }
    }

    /// Sets what it does.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Stops a running VM at `now`, with its clock. False if it was not running.
    pub fn pause(&self, now: HostTicks) -> bool {
        let mut paused_at = self.paused_at.lock();
        if self.state() != State::Running {
            return false;
        }
        *paused_at = now;
        self.set_state(State::Paused);
        true
    }

    /// Lets a paused VM go on at `now`. False if it was not paused.
    pub fn resume(&self, now: HostTicks) -> bool {
        let paused_at = self.paused_at.lock();
        if self.state() != State::Paused {
            return false;
        }
        self.board.lock().clock.skip(*paused_at, now);
        self.set_state(State::Running);
        true
    }

    /// The number of its VCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.ports.len()
    }

    /// The EPT pointer of its memory map.
    #[must_use]
    pub const fn ept_pointer(&self) -> u64 {
        self.ept_pointer
    }

    /// The APIC-access page.
    #[must_use]
    pub const fn apic_access_page(&self) -> HostPhysAddr {
        self.apic_access_page
    }

    /// Says whether VCPU `index` wants the APIC-access page in the memory map. It is mapped
    /// while all want it; otherwise accesses to the LAPIC's page exit, which is right for any
    /// mode, only slower.
    ///
    /// # Errors
    /// If there is no memory for tables.
    pub fn set_apic_access_page_mapped(&self, index: u32, wanted: bool) -> Result<bool, EptError> {
        let bit = 1u32 << (index & 31);
        let all = u32::MAX >> (32 - self.vcpus.clamp(1, 32));
        let before = if wanted {
            self.apic_page_users.fetch_or(bit, Ordering::AcqRel)
        } else {
            self.apic_page_users.fetch_and(!bit, Ordering::AcqRel)
        };
        let after = if wanted { before | bit } else { before & !bit };
        if (before == all) == (after == all) {
            return Ok(false);
        }
        let page = GuestPhysAddr(devices::lapic::ApicBase::DEFAULT_ADDRESS);
        let mut ept = self.ept.lock();
        let mut tables = self.tables;
        if after == all {
            // SAFETY: the APIC-access page holds nothing; all guests may do with it what
            // they like.
            unsafe {
                ept.map(
                    page,
                    self.apic_access_page,
                    4096,
                    Access::READ | Access::WRITE,
                    &mut tables,
                )?;
            }
        } else {
            ept.unmap_page(page, &mut tables)?;
        }
        Ok(true)
    }

    /// Sends `message` to the local APICs that it is for.
    #[inline]
    pub fn route(&self, message: &ApicMessage) {
        // One physical CPU runs all VCPUs of a VM: each looks into its mailbox before it
        // enters the guest, so nobody has to be told.
        self.router.route(&self.ports, message, |_| {});
    }

    /// The level of the PIC's output.
    #[must_use]
    #[inline]
    pub fn pic_output(&self) -> bool {
        self.pic_output.load(Ordering::Acquire)
    }

    /// Takes a request of the guest's for its power to be switched.
    pub fn take_power_request(&self) -> Option<PowerRequest> {
        self.power.lock().take()
    }
}

/// The chipset's connections.
pub struct BoardHost<'a> {
    vm: &'a Vm,
    /// Whether a message went out or a line changed.
    pub interrupts_changed: bool,
    /// Whether the guest asked for its power to be switched.
    pub power_requested: bool,
}

impl<'a> BoardHost<'a> {
    /// The connections of `vm`'s chipset.
    #[must_use]
    #[inline]
    pub const fn new(vm: &'a Vm) -> Self {
        Self {
            vm,
            interrupts_changed: false,
            power_requested: false,
        }
    }
}

impl ChipsetHost for BoardHost<'_> {
    fn interrupt_message(&mut self, message: ApicMessage) {
        self.interrupts_changed = true;
        self.vm.route(&message);
    }

    fn pic_output(&mut self, asserted: bool) {
        self.interrupts_changed = true;
        self.vm.pic_output.store(asserted, Ordering::Release);
    }

    fn serial_transmit(&mut self, byte: u8) {
        self.vm.output.put(byte);
    }

    fn power(&mut self, request: PowerRequest) {
        self.power_requested = true;
        *self.vm.power.lock() = Some(request);
    }
}
