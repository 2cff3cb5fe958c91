//! A virtual machine: what its VCPUs share.

pub mod bell;
pub mod clock_gate;
pub mod create;
pub mod output;
pub mod pages;
pub mod ram;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

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
use crate::machine::smp;
use crate::scheduler::{self, VcpuRef};
use crate::suppression::policy::Paper;
use crate::suppression::usage::Usage;
use crate::suppression::watch::Watch;
use crate::trace::{Event, Trace};
use crate::vcpu::statistics::Statistics;
use bell::{Bell, MAIL, MEMORY, TIMERS};
use clock_gate::ClockGate;
use output::GuestOutput;
use pages::PagePool;
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
    /// Changes whenever the memory map becomes such that cached translations are wrong.
    memory_generation: AtomicU64,
    /// All pages that the processor reads for this VM; the last to go.
    pages: PagePool,
    apic_access_page: HostPhysAddr,
    /// One bit a VCPU: those that want the APIC-access page mapped.
    apic_page_users: AtomicU32,
    vcpus: u32,
    router: Router,
    ports: Vec<Arc<ApicPort>>,
    /// One a VCPU.
    bells: Vec<Bell>,
    clock_gate: ClockGate,
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
    /// Where its EPT's tables and all other pages come from.
    pub pages: PagePool,
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
            memory_generation: AtomicU64::new(0),
            pages: parts.pages,
            apic_access_page: parts.apic_access_page,
            apic_page_users: AtomicU32::new(0),
            vcpus: parts.ports.len() as u32,
            router: Router::default(),
            bells: parts.ports.iter().map(|_| Bell::default()).collect(),
            clock_gate: ClockGate::default(),
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

    /// Stops the clock of a running VM, none of whose VCPUs runs any more. False if it was not
    /// running.
    pub fn pause(&self) -> bool {
        let mut paused_at = self.paused_at.lock();
        if self.state() != State::Running {
            return false;
        }
        *paused_at = host_now();
        self.set_state(State::Paused);
        true
    }

    /// Lets the clock of a paused VM go on, before its VCPUs do. False if it was not paused.
    pub fn resume(&self) -> bool {
        let paused_at = self.paused_at.lock();
        if self.state() != State::Paused {
            return false;
        }
        self.clock_gate.change(&self.bells, None, smp::kick, || {
            self.board.lock().clock.skip(*paused_at, host_now());
        });
        self.set_state(State::Running);
        true
    }

    /// Whether any VCPU may be in the guest.
    #[must_use]
    pub fn is_on_a_cpu(&self) -> bool {
        self.bells.iter().any(|bell| bell.place().is_some())
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
    /// Other CPUs' translations are dropped soon, not at once. That is enough: to a VCPU that
    /// still wants the page it does no harm, and the one that does not is the caller.
    ///
    /// # Errors
    /// If there is no memory for tables.
    pub fn set_apic_access_page_mapped(&self, index: u32, wanted: bool) -> Result<(), EptError> {
        let bit = 1u32 << (index & 31);
        let all = u32::MAX >> (32 - self.vcpus.clamp(1, 32));
        let before = if wanted {
            self.apic_page_users.fetch_or(bit, Ordering::AcqRel)
        } else {
            self.apic_page_users.fetch_and(!bit, Ordering::AcqRel)
        };
        let after = if wanted { before | bit } else { before & !bit };
        if (before == all) == (after == all) {
            return Ok(());
        }
        let page = GuestPhysAddr(arch::apic::DEFAULT_ADDRESS);
        let mut ept = self.ept.lock();
        let mut tables = || self.pages.allocate();
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
        drop(ept);
        self.memory_changed();
        Ok(())
    }

    /// Has every VCPU drop the translations of the memory map that its CPU has cached, before it
    /// enters the guest for the next time; those in the guest are called out of it.
    pub fn memory_changed(&self) {
        self.memory_generation.fetch_add(1, Ordering::SeqCst);
        for index in 0..self.vcpus {
            self.ring(index, MEMORY);
        }
    }

    /// Differs from what it was if the memory map has [changed](Vm::memory_changed).
    #[must_use]
    #[inline]
    pub fn memory_generation(&self) -> u64 {
        self.memory_generation.load(Ordering::SeqCst)
    }

    /// What others ring for VCPU `index`.
    ///
    /// # Panics
    /// If there is no such VCPU.
    #[must_use]
    #[inline]
    pub fn bell(&self, index: u32) -> &Bell {
        &self.bells[index as usize]
    }

    /// Makes VCPU `index` look for `reasons`: at once if it is in the guest, when it gets a
    /// CPU if it waits for one, and soon if it sleeps.
    #[inline]
    pub fn ring(&self, index: u32, reasons: u32) {
        if let Some(bell) = self.bells.get(index as usize)
            && bell.set(reasons)
        {
            match bell.place() {
                Some(cpu) => smp::kick(cpu),
                None => scheduler::hub::wake(VcpuRef { vm: self.id, index }),
            }
        }
    }

    /// As [`Vm::ring`], but for one who waits for it: calls again a VCPU that has been called
    /// before, and leaves one that sleeps alone.
    pub fn interrupt(&self, index: u32, reasons: u32) {
        if let Some(bell) = self.bells.get(index as usize) {
            bell.set(reasons);
            if let Some(cpu) = bell.place() {
                smp::kick(cpu);
            }
        }
    }

    /// Lets the VM's time go on at the rates that its suppression has decided on last, for all
    /// VCPUs at one moment: see [`clock_gate`]. `own` is the VCPU that runs this code, if one
    /// does. The caller holds no lock.
    ///
    /// Of two VCPUs that bring decisions at once, each carries out the later one.
    pub fn follow_suppression(&self, own: Option<u32>) {
        self.clock_gate.change(&self.bells, own, smp::kick, || {
            let rates = self.suppression.lock().decision().rates;
            let clock = &mut self.board.lock().clock;
            if self.trace.is_on() && rates != clock.rates() {
                self.trace.record(None, Event::Rates(rates), host_now);
            }
            clock.set_rates(host_now(), rates);
        });
    }

    /// The gate at which VCPUs wait for changes of the clock.
    #[must_use]
    #[inline]
    pub const fn clock_gate(&self) -> &ClockGate {
        &self.clock_gate
    }

    /// Sends `message` to the local APICs that it is for.
    #[inline]
    pub fn route(&self, message: &ApicMessage) {
        self.router
            .route(&self.ports, message, |index| self.ring(index as u32, MAIL));
    }

    /// Tells VCPU 0, which keeps time for the chipset, that another VCPU has changed when the
    /// chipset's first timer is due.
    pub fn chipset_deadline_changed(&self) {
        self.ring(0, TIMERS);
    }

    /// A page for the VM, zeroed.
    pub fn allocate_page(&self) -> Option<&'static mut vmx::page::Page> {
        self.pages.allocate()
    }

    /// The level of the PIC's output.
    #[must_use]
    #[inline]
    pub fn pic_output(&self) -> bool {
        self.pic_output.load(Ordering::SeqCst)
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
        self.vm.pic_output.store(asserted, Ordering::SeqCst);
        // LINT0 of VCPU 0 is where the PIC's output goes.
        self.vm.ring(0, MAIL);
    }

    fn serial_transmit(&mut self, byte: u8) {
        self.vm.output.put(byte);
    }

    fn power(&mut self, request: PowerRequest) {
        self.power_requested = true;
        *self.vm.power.lock() = Some(request);
    }
}
