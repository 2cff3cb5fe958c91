//! A virtual machine: what its VCPUs share.

pub(crate) mod clock_gate;
pub(crate) mod host;
pub(crate) mod memory_map;
pub(crate) mod ram;
pub(crate) mod registers;
pub(crate) mod requests;
pub(crate) mod rom;
pub(crate) mod statistics;
pub(crate) mod suppressing;
#[cfg(test)]
pub(crate) mod test_vm;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use devices::apic_message::ApicMessage;
use devices::bandwidth::Bandwidth;
use devices::chipset::{Chipset, ChipsetHost, Environment, PendingWork, PowerRequest};
use devices::clock::VirtualClock;
use devices::lapic::{ApicPort, Router};
use devices::switch::{Mac, Traffic};
use devices::time::{Hertz, HostTicks, Now};
use devices::virtio::console::ConsoleInput;
use devices::virtio::disk::SharedDisk;
use spin::Mutex;
use vmx::ept::EptError;

use crate::cpuid::GuestCpuid;
use crate::emulate::Unsupported;
use crate::ids::{VcpuId, VmId};
use crate::machine::host_time::host_now;
use crate::suppression::Suppression;
use crate::suppression::order::Defaults;
use crate::suppression::usage::Usage;
use crate::trace::Trace;
use clock_gate::ClockGate;
use host::{SerialOutput, Waker};
use memory_map::MemoryMap;
use ram::GuestRam;
use registers::RegisterCopy;
use requests::{Requests, VcpuRequests};
use statistics::Statistics;
use suppressing::Look;

/// The devices that all VCPUs of a VM reach, and the clock that they run on.
pub(crate) struct Board {
    /// All devices but the local APICs.
    pub chipset: Chipset,
    /// The VM's time.
    pub clock: VirtualClock,
}

/// The part of a VM that its VCPUs share.
pub(crate) struct Vm {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its devices and its time.
    pub board: Mutex<Board>,
    /// The values that CPUID shows.
    pub cpuid: GuestCpuid,
    /// The state of the suppression in it.
    pub suppression: Mutex<Suppression>,
    /// The times at which its VCPUs are to report to the suppression.
    pub look: Look,
    /// The events that its VCPUs record while the operator wants it.
    pub trace: Trace,
    /// The generation of the targets: changes with them, and when tracing begins or ends; VCPUs
    /// look at them anew then.
    pub suppression_generation: AtomicU32,
    /// The generation of the targets whose roots the memory map guards.
    guarded_targets: AtomicU32,
    /// The generation of the lookout for children that its VCPUs have been told of.
    lookout_generation: AtomicU32,
    /// Whether its suppression has something to tell the operator.
    has_notices: AtomicBool,
    /// The address spaces seen, by VCPU.
    pub usages: Vec<Mutex<Usage>>,
    /// The statistics of its VCPUs, as of the last time each came off its CPU.
    pub statistics: Vec<Mutex<Statistics>>,
    /// The copies of its VCPUs' registers, as of when each was last [asked](Requests::REGISTERS) to make
    /// one; `None` before it has.
    pub registers: Vec<Mutex<Option<RegisterCopy>>>,
    /// The format of its paging, as last seen: a `suppression::address_space::RootFormat` in its
    /// order, zero for long mode.
    pub root_format: AtomicU8,
    /// The time at which its clock was stopped, if it stands.
    stopped_clock_at: Mutex<Option<HostTicks>>,
    /// The destination of its serial port's output.
    pub output: Box<dyn SerialOutput>,
    /// Its disks, in their order on the PCI bus.
    pub disks: Vec<VmDisk>,
    /// Its network devices, behind them.
    pub nics: Vec<Nic>,
    /// The input of its virtio console, if it has one.
    pub console: Option<Arc<ConsoleInput>>,
    waker: Arc<dyn Waker>,
    /// The map of its RAM and the APIC-access page.
    pub memory_map: MemoryMap,
    router: Router,
    ports: Vec<Arc<ApicPort>>,
    /// The requests to each VCPU.
    requests: Vec<VcpuRequests>,
    clock_gate: ClockGate,
    pic_output: AtomicBool,
    power: Mutex<Option<PowerRequest>>,
    /// The number of instructions that were refused to its guest.
    refused_instructions: AtomicU32,
}

/// A disk of a VM.
#[derive(Clone, Debug)]
pub(crate) struct VmDisk {
    /// Its name, by which the guest can tell disks apart; may be empty.
    pub id: String,
    /// Whether its contents outlive the VM: `snapshot=keep`.
    pub keeps: bool,
    /// Its contents.
    pub contents: SharedDisk,
}

/// A network device of a VM, as the operator sees it.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    /// The network that it is plugged into.
    pub network: String,
    /// Its address.
    pub mac: Mac,
    /// The most that it may send, if there is a limit.
    pub rate: Option<Bandwidth>,
    /// Its traffic.
    pub traffic: Arc<Traffic>,
}

/// The parts that a VM is made of.
pub(crate) struct VmParts {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its RAM.
    pub ram: GuestRam,
    /// The map of its RAM and the APIC-access page.
    pub memory_map: MemoryMap,
    /// Its devices.
    pub chipset: Chipset,
    /// Its time.
    pub clock: VirtualClock,
    /// The values that CPUID shows.
    pub cpuid: GuestCpuid,
    /// Its local APICs' shared sides, by VCPU.
    pub ports: Vec<Arc<ApicPort>>,
    /// The destination of its serial port's output.
    pub output: Box<dyn SerialOutput>,
    /// Its disks, in their order on the PCI bus.
    pub disks: Vec<VmDisk>,
    /// Its network devices, behind them.
    pub nics: Vec<Nic>,
    /// The input of its virtio console, if it has one.
    pub console: Option<Arc<ConsoleInput>>,
    /// The means to bring its VCPUs to look at their requests.
    pub waker: Arc<dyn Waker>,
    /// The frequency of the host's TSC.
    pub tsc: Hertz,
    /// The defaults for its targets of suppression, unless the operator says otherwise.
    pub suppression: Defaults,
}

impl Vm {
    /// Makes a VM of these parts.
    #[must_use]
    pub(crate) fn new(parts: VmParts) -> Self {
        let now = host_now();
        // Shares of the CPU are those of the last half second.
        let usage_window = parts.tsc.get() / 2;
        Self {
            id: parts.id,
            name: parts.name,
            ram: parts.ram,
            board: Mutex::new(Board {
                chipset: parts.chipset,
                clock: parts.clock,
            }),
            cpuid: parts.cpuid,
            suppression: Mutex::new(Suppression::new(
                parts.suppression,
                parts.ports.len(),
                parts.tsc,
                now,
            )),
            look: Look::default(),
            trace: Trace::default(),
            suppression_generation: AtomicU32::new(0),
            guarded_targets: AtomicU32::new(0),
            lookout_generation: AtomicU32::new(0),
            has_notices: AtomicBool::new(false),
            statistics: parts.ports.iter().map(|_| Mutex::default()).collect(),
            registers: parts.ports.iter().map(|_| Mutex::new(None)).collect(),
            root_format: AtomicU8::new(0),
            stopped_clock_at: Mutex::new(None),
            usages: parts
                .ports
                .iter()
                .map(|_| Mutex::new(Usage::new(now, usage_window)))
                .collect(),
            output: parts.output,
            disks: parts.disks,
            nics: parts.nics,
            console: parts.console,
            waker: parts.waker,
            memory_map: parts.memory_map,
            router: Router::default(),
            requests: parts
                .ports
                .iter()
                .map(|_| VcpuRequests::default())
                .collect(),
            clock_gate: ClockGate::default(),
            ports: parts.ports,
            pic_output: AtomicBool::new(false),
            power: Mutex::new(None),
            refused_instructions: AtomicU32::new(0),
        }
    }

    /// Tells the operator of an instruction at `rip` that touches a device in a way that tarpit does not
    /// do, so that the guest has #UD for it: of the first few, as a guest can have any number.
    #[cold]
    pub(crate) fn tell_refused(&self, instruction: &Unsupported, rip: u64) {
        const TOLD: u32 = 8;
        let count = self.refused_instructions.load(Ordering::Relaxed);
        if count < TOLD {
            self.refused_instructions
                .store(count + 1, Ordering::Relaxed);
            let rest = if count + 1 == TOLD {
                "; no more of these are told"
            } else {
                ""
            };
            log::warn!(
                "vm {}: {instruction}, at RIP {rip:#x}: the guest gets #UD{rest}",
                self.name
            );
        }
    }

    /// Stops the clock, when no VCPU runs any more.
    pub(crate) fn stop_clock(&self) {
        let mut stopped_at = self.stopped_clock_at.lock();
        debug_assert!(stopped_at.is_none(), "the clock stands already");
        *stopped_at = Some(host_now());
    }

    /// Lets the clock go on, before VCPUs run again, as `clock` says. The RTC, which has a battery, shows the time
    /// of day in either case.
    pub(crate) fn continue_clock(&self, clock: AfterPause) {
        let stopped_at = self.stopped_clock_at.lock().take();
        debug_assert!(stopped_at.is_some(), "the clock does not stand");
        let Some(stopped_at) = stopped_at else {
            return;
        };
        let now = self.change_clock(None, || {
            let mut suppression = self.suppression.lock();
            let now = host_now();
            let mut board = self.board.lock();
            match clock {
                AfterPause::Stands => board.clock.skip(stopped_at, now),
                AfterPause::Follows => board.clock.pass(stopped_at, now),
            }
            // What passes as in real time is no lead either.
            suppression.paused(stopped_at, now);
            now
        });
        if clock == AfterPause::Stands {
            let paused = now.since(stopped_at);
            self.with_chipset(now, |chipset, env| chipset.run_rtc_on(paused, env));
        }
    }

    /// Changes the clock by `change` while no VCPU is in the guest; see [`ClockGate::change`].
    fn change_clock<R>(&self, own: Option<u32>, change: impl FnOnce() -> R) -> R {
        let request = |index| self.request(index, Requests::CLOCK);
        self.clock_gate.change(&self.requests, own, request, change)
    }

    /// Returns whether any VCPU may be in the guest.
    #[must_use]
    pub(crate) fn is_on_a_cpu(&self) -> bool {
        self.requests
            .iter()
            .any(|requests| requests.running_on().is_some())
    }

    /// Returns the number of its VCPUs.
    #[must_use]
    pub(crate) fn vcpus(&self) -> usize {
        self.ports.len()
    }

    /// Says whether VCPU `index` wants the [APIC-access page](MemoryMap::want_apic_access_page).
    ///
    /// Other CPUs' translations are dropped soon, not at once. That is enough: to a VCPU that
    /// still wants the page it does no harm, and the one that does not is the caller.
    ///
    /// # Errors
    /// If there is no memory for tables.
    pub(crate) fn want_apic_access_page(&self, index: u32, wanted: bool) -> Result<(), EptError> {
        if self.memory_map.want_apic_access_page(index, wanted)? {
            self.flush_memory_map();
        }
        Ok(())
    }

    /// Has every VCPU drop the translations of the memory map that its CPU has cached, before it
    /// enters the guest for the next time; those in the guest are kicked out of it.
    fn flush_memory_map(&self) {
        for index in 0..self.vcpus() as u32 {
            self.request(index, Requests::MEMORY);
        }
    }

    /// Returns the requests to VCPU `index`.
    ///
    /// # Panics
    /// If there is no such VCPU.
    #[must_use]
    #[inline]
    pub(crate) fn requests(&self, index: u32) -> &VcpuRequests {
        &self.requests[index as usize]
    }

    /// Makes requests to VCPU `index`, which looks at them at once if it is in the guest, when
    /// it gets a CPU if it waits for one, and soon if it sleeps.
    #[inline]
    pub(crate) fn request(&self, index: u32, wanted: Requests) {
        if let Some(requests) = self.requests.get(index as usize)
            && requests.make(wanted)
        {
            match requests.running_on() {
                Some(cpu) => self.waker.kick(cpu),
                None => self.waker.wake(VcpuId { vm: self.id, index }),
            }
        }
    }

    /// Returns the gate at which VCPUs wait for changes of the clock.
    #[must_use]
    #[inline]
    pub(crate) const fn clock_gate(&self) -> &ClockGate {
        &self.clock_gate
    }

    /// Sends `message` to the local APICs that it is for.
    #[inline]
    pub(crate) fn route(&self, message: &ApicMessage) {
        self.router.route(&self.ports, message, |index| {
            self.request(index as u32, Requests::EVENT);
        });
    }

    /// Tells VCPU 0, which keeps time for the chipset, that another VCPU has changed when the
    /// chipset's first timer is due.
    pub(crate) fn chipset_deadline_changed(&self) {
        self.request(0, Requests::TIMERS);
    }

    /// Tells VCPU 0 that something has come from outside for a device.
    pub(crate) fn input_arrived(&self) {
        self.request(0, Requests::INPUT);
    }

    /// Returns the level of the PIC's output.
    #[must_use]
    #[inline]
    pub(crate) fn pic_output(&self) -> bool {
        self.pic_output.load(Ordering::SeqCst)
    }

    /// Locks the board and calls `access` with the chipset and what surrounds it at host time `at`.
    pub(crate) fn with_chipset<R>(
        &self,
        at: HostTicks,
        access: impl FnOnce(&mut Chipset, &mut Environment<'_>) -> R,
    ) -> R {
        let mut board = self.board.lock();
        let now = board.clock.now(at);
        let mut host = BoardHost::new(self);
        let result = access(&mut board.chipset, &mut host.environment(now));
        let work = board.chipset.take_work();
        drop(board);
        if let Some(work) = work
            && self.run_device_work(&work, at)
        {
            self.chipset_deadline_changed();
        }
        result
    }

    /// Runs the work of a device that a call at host time `at` has left. The board is not locked meanwhile: other
    /// VCPUs use it. Returns whether it has changed when the chipset's first timer is due.
    #[inline(never)]
    pub(crate) fn run_device_work(&self, work: &PendingWork, at: HostTicks) -> bool {
        if !work.run(&self.ram) {
            return false;
        }
        let mut board = self.board.lock();
        let now = board.clock.now(at);
        let changes = board.chipset.deadline_changes();
        let mut host = BoardHost::new(self);
        let mut environment = host.environment(now);
        board.chipset.finish_work(work, &mut environment);
        changes != board.chipset.deadline_changes()
    }

    /// Takes a request of the guest's for its power to be switched.
    pub(crate) fn take_power_request(&self) -> Option<PowerRequest> {
        self.power.lock().take()
    }
}

/// The course of a guest's clock over a pause of its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AfterPause {
    /// A course on from where it stood: for the guest there was no pause.
    #[default]
    Stands,
    /// A course on from the time that it would show without the pause.
    Follows,
}

/// The chipset's connections.
pub(crate) struct BoardHost<'a> {
    vm: &'a Vm,
    /// Whether the guest asked for its power to be switched.
    pub power_requested: bool,
}

impl<'a> BoardHost<'a> {
    /// Makes the connections of `vm`'s chipset.
    #[must_use]
    #[inline]
    pub(crate) const fn new(vm: &'a Vm) -> Self {
        Self {
            vm,
            power_requested: false,
        }
    }

    /// Returns what surrounds the chipset at guest time `now`.
    #[inline]
    pub(crate) fn environment(&mut self, now: Now) -> Environment<'_> {
        Environment { now, host: self }
    }
}

impl ChipsetHost for BoardHost<'_> {
    fn interrupt_message(&mut self, message: ApicMessage) {
        self.vm.route(&message);
    }

    fn pic_output(&mut self, asserted: bool) {
        self.vm.pic_output.store(asserted, Ordering::SeqCst);
        // LINT0 of VCPU 0 is where the PIC's output goes.
        self.vm.request(0, Requests::EVENT);
    }

    fn serial_transmit(&mut self, byte: u8) {
        if let Some(console) = &self.vm.console {
            console.set_in_use(false);
        }
        self.vm.output.write(&self.vm.name, byte);
    }

    fn report(&mut self, message: core::fmt::Arguments<'_>) {
        log::warn!("vm {}: {message}", self.vm.name);
    }

    fn power(&mut self, request: PowerRequest) {
        self.power_requested = true;
        *self.vm.power.lock() = Some(request);
    }
}
