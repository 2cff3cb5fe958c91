//! A machine with a VM of one or more VCPUs, whose guest has a scheduler, a tick, timers and
//! interrupt handlers; and the part of a hypervisor that reports to [`Suppression`] and carries out
//! what it says. Times are in ticks of a TSC of 1 GHz: nanoseconds.

use std::vec::Vec;

use devices::clock::{Course, VirtualClock};
use devices::time::{Hertz, HostTicks, TimerTicks};

use super::scheduler::{Kind, Scheduler};
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::handler::Context;
use crate::suppression::kernel_thread::Thread;
use crate::suppression::order::{Defaults, Order};
use crate::suppression::pace::Pace;
use crate::suppression::{Directive, Event, Observation, Stay, Suppression};
use crate::test_ram::TestRam;

pub(crate) const TSC: Hertz = Hertz::new(1_000_000_000);
pub(crate) const US: u64 = 1_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;

/// The guest's tick, in guest time.
const TICK: u64 = 4 * MS;
/// The time that a tick's handler takes, and each timer more that it finds due.
const HANDLER: u64 = 4 * US;
const TIMER: u64 = US / 2;
/// The time that the guest's kernel takes to switch.
const SWITCH: u64 = 3 * US / 2;
/// The time that a change of rate takes from another VCPU, besides its exit.
const RENDEZVOUS: u64 = US;
/// The time of the hypervisor between an exit and an entry.
const ROOT: u64 = US / 2;
/// The time for which a VCPU or a neighbor has a physical CPU that others want.
const CPU_SLICE: u64 = 10 * MS;

/// The behavior of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behavior {
    /// Computation without end.
    Hog,
    /// System calls of this length, in which the kernel looks whether others are to run every so
    /// often.
    SystemCalls { length: u64, point: u64 },
    /// Computation for so long, and then sleep for so much guest time.
    Sleeper { run: u64, sleep: u64 },
    /// Computation, with a timer that expires every so much guest time.
    Timer { period: u64 },
    /// Computation for so long, and then a yield to others.
    Yields { run: u64 },
}

/// A process of a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) vcpu: usize,
    pub(crate) behavior: Behavior,
    pub(crate) weight: u64,
}

impl Plan {
    pub(crate) const fn new(behavior: Behavior) -> Self {
        Self {
            vcpu: 0,
            behavior,
            weight: 1024,
        }
    }
}

/// A machine to be.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) scheduler: Kind,
    pub(crate) vcpus: usize,
    /// Physical CPUs: VCPU `n` is on CPU `n` modulo their number.
    pub(crate) cpus: usize,
    pub(crate) processes: Vec<Plan>,
    /// The time that an exit and the entry after it take.
    pub(crate) exit_cost: u64,
    /// Whether VCPUs see at once that an interrupted frame goes on.
    pub(crate) exact_resume: bool,
    /// Whether another VM computes on CPU 0.
    pub(crate) neighbor: bool,
}

impl Setup {
    pub(crate) fn new(scheduler: Kind, processes: Vec<Plan>) -> Self {
        let vcpus = processes
            .iter()
            .map(|plan| plan.vcpu + 1)
            .max()
            .unwrap_or(1);
        Self {
            scheduler,
            vcpus,
            cpus: vcpus,
            processes,
            exit_cost: 0,
            exact_resume: true,
            neighbor: false,
        }
    }

    pub(crate) fn start(&self) -> Machine {
        Machine::new(self)
    }
}

/// `count` hogs on VCPU 0.
pub(crate) fn hogs(count: usize) -> Vec<Plan> {
    std::vec![Plan::new(Behavior::Hog); count]
}

#[derive(Clone, Debug)]
pub(crate) struct Process {
    behavior: Behavior,
    root: Root,
    /// Its number in its VCPU's queue.
    local: usize,
    /// Real time until it does something else, in its present mode.
    left: u64,
    in_kernel: bool,
    to_point: u64,
    wake_due: Option<u64>,
    timer_due: Option<u64>,
    /// The host time since which it has been runnable without running.
    waits_since: Option<u64>,
    /// Real time of its own that it ran, in either mode.
    pub(crate) ran: u64,
    /// The stays on a CPU, as host times from and to.
    pub(crate) stays: Vec<(u64, u64)>,
    pub(crate) longest_wait: u64,
    /// The delay of each wake-up after its timer was due, in guest time.
    pub(crate) latencies: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Idle,
    /// Execution of the current process, in its own mode.
    Run,
    Handler {
        left: u64,
        frame_in_kernel: bool,
    },
    Switch {
        left: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cause {
    /// Time: a timer, or a look.
    Timer,
    LoadedRoot,
    Halt,
    Resumed,
    /// A change of the clock.
    Called,
    /// A request to leave its CPU.
    Preempted,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Guest,
    /// The way out of the guest, which is seen at its end.
    Leaving {
        at: u64,
        cause: Cause,
    },
    Entering {
        at: u64,
    },
    /// Held on its CPU, or parked without one.
    Held,
    Parked {
        until: u64,
    },
    Halted,
    /// A wait for a CPU.
    Waiting,
}

#[derive(Debug)]
struct Vcpu {
    scheduler: Scheduler,
    /// Processes by their number in the queue.
    processes: Vec<usize>,
    current: Option<usize>,
    mode: Mode,
    place: Place,
    directive: Directive,
    tick_due: Option<u64>,
    needs_switch: bool,
    loaded: Option<Root>,
    cpu: usize,
}

#[derive(Debug, Default)]
struct Cpu {
    /// A VCPU, or the neighbor behind the last.
    occupant: Option<usize>,
    since: u64,
    slice_end: u64,
}

pub(crate) struct Machine {
    ram: TestRam,
    pub(crate) now: u64,
    clock: VirtualClock,
    pub(crate) suppression: Suppression,
    vcpus: Vec<Vcpu>,
    cpus: Vec<Cpu>,
    pub(crate) processes: Vec<Process>,
    exit_cost: u64,
    exact_resume: bool,
    neighbor: bool,
    pace: Pace,
    pub(crate) neighbor_ran: u64,
    /// The clock's largest distance from real time since it was last reset.
    pub(crate) furthest: i64,
    latest_guest_time: u64,
    pub(crate) rate_changes: u64,
    pub(crate) exits: u64,
}

const FORMAT: RootFormat = RootFormat::Long;

impl Machine {
    fn new(setup: &Setup) -> Self {
        let ram = TestRam::new(0x1000 * (setup.processes.len() + 2));
        let mut processes = Vec::new();
        let mut queues: Vec<Vec<usize>> = std::vec![Vec::new(); setup.vcpus];
        for (id, plan) in setup.processes.iter().enumerate() {
            let root = 0x1000 * (id as u64 + 1);
            ram.write_u64(root, (0x10_0000 + root) | 0x67);
            processes.push(Process {
                behavior: plan.behavior,
                root: Root::new(root, FORMAT),
                local: queues[plan.vcpu].len(),
                left: 0,
                in_kernel: false,
                to_point: u64::MAX,
                wake_due: None,
                timer_due: match plan.behavior {
                    Behavior::Timer { period } => Some(period),
                    _ => None,
                },
                waits_since: Some(0),
                ran: 0,
                stays: Vec::new(),
                longest_wait: 0,
                latencies: Vec::new(),
            });
            queues[plan.vcpu].push(id);
        }
        let mut pace = Pace::new(TSC);
        pace.note_stay(setup.exit_cost.max(1));
        let mut suppression = Suppression::new(Defaults::default(), setup.vcpus, TSC, HostTicks(0));
        suppression.set_contended(setup.neighbor);
        suppression.adapt(&pace);
        let vcpus = queues
            .into_iter()
            .enumerate()
            .map(|(index, queue)| {
                let weights: Vec<u64> =
                    queue.iter().map(|&id| setup.processes[id].weight).collect();
                let mut scheduler = Scheduler::new(setup.scheduler, &weights);
                for local in 0..queue.len() {
                    scheduler.wake(local, 0);
                }
                Vcpu {
                    scheduler,
                    processes: queue,
                    current: None,
                    mode: Mode::Switch { left: SWITCH },
                    place: Place::Waiting,
                    directive: suppression
                        .clone()
                        .report(&ram, index, Event::Time, HostTicks(0)),
                    tick_due: Some(TICK),
                    needs_switch: false,
                    loaded: None,
                    cpu: index % setup.cpus,
                }
            })
            .collect();
        let mut machine = Self {
            ram,
            now: 0,
            clock: VirtualClock::new(HostTicks(0)),
            suppression,
            vcpus,
            cpus: (0..setup.cpus).map(|_| Cpu::default()).collect(),
            processes,
            exit_cost: setup.exit_cost,
            exact_resume: setup.exact_resume,
            neighbor: setup.neighbor,
            pace,
            neighbor_ran: 0,
            furthest: 0,
            latest_guest_time: 0,
            rate_changes: 0,
            exits: 0,
        };
        for cpu in 0..machine.cpus.len() {
            machine.schedule(cpu);
        }
        machine
    }

    // ---- what the operator does ----

    pub(crate) fn suppress(&mut self, process: usize, order: Order) {
        let root = self.processes[process].root;
        let now = HostTicks(self.now);
        self.suppression
            .suppress(&self.ram, root, FORMAT, order, &[], now)
            .expect("it is a process");
        self.call_all();
    }

    pub(crate) fn release(&mut self, process: usize) {
        self.suppression.release(self.processes[process].root);
        self.call_all();
    }

    fn call_all(&mut self) {
        for vcpu in 0..self.vcpus.len() {
            match self.vcpus[vcpu].place {
                Place::Guest => self.leave(vcpu, Cause::Called),
                Place::Held | Place::Parked { .. } | Place::Halted => self.see(vcpu, false),
                _ => {}
            }
        }
    }

    // ---- what is measured ----

    /// How far the guest's clock is ahead of real time.
    pub(crate) fn lead(&self) -> i64 {
        let guest = self.clock.now(HostTicks(self.now)).counter.0;
        guest as i64 - self.now as i64
    }

    pub(crate) fn forget(&mut self) {
        for process in &mut self.processes {
            process.ran = 0;
            process.stays.clear();
            process.longest_wait = 0;
            process.latencies.clear();
            process.waits_since = process.waits_since.map(|_| self.now);
        }
        self.neighbor_ran = 0;
        self.furthest = 0;
        self.rate_changes = 0;
        self.exits = 0;
    }

    /// What each process has had of the time that passes from now on, in parts of one CPU.
    pub(crate) fn shares(&mut self, seconds: f64) -> Vec<f64> {
        self.forget();
        let length = (seconds * SECOND as f64) as u64;
        self.run(length);
        self.processes
            .iter()
            .map(|process| process.ran as f64 / length as f64)
            .collect()
    }

    // ---- time passes ----

    pub(crate) fn run(&mut self, length: u64) {
        let end = self.now + length;
        while self.now < end {
            self.step(end);
        }
    }

    fn step(&mut self, end: u64) {
        let mut next = end;
        let mut who = None;
        for vcpu in 0..self.vcpus.len() {
            let at = self.next_event(vcpu);
            if at < next {
                next = at;
                who = Some(Actor::Vcpu(vcpu));
            }
        }
        for cpu in 0..self.cpus.len() {
            if self.cpus[cpu].slice_end < next && self.contenders(cpu) > 1 {
                next = self.cpus[cpu].slice_end;
                who = Some(Actor::Cpu(cpu));
            }
        }
        self.advance(next.max(self.now));
        match who {
            None => {}
            Some(Actor::Vcpu(vcpu)) => self.act(vcpu),
            Some(Actor::Cpu(cpu)) => self.end_slice(cpu),
        }
        let lead = self.lead();
        if lead.abs() > self.furthest.abs() {
            self.furthest = lead;
        }
        let guest = self.clock.now(HostTicks(self.now)).counter.0;
        assert!(
            guest >= self.latest_guest_time,
            "the guest's time goes back"
        );
        self.latest_guest_time = guest;
    }

    fn advance(&mut self, to: u64) {
        let elapsed = to - self.now;
        for vcpu in &mut self.vcpus {
            if vcpu.place != Place::Guest {
                continue;
            }
            match &mut vcpu.mode {
                Mode::Idle => {}
                Mode::Handler { left, .. } | Mode::Switch { left } => *left -= elapsed,
                Mode::Run => {
                    if let Some(current) = vcpu.current {
                        let process = &mut self.processes[current];
                        process.ran += elapsed;
                        process.left -= elapsed;
                        process.to_point = process.to_point.saturating_sub(elapsed);
                        match process.stays.last_mut() {
                            Some(stay) if stay.1 == self.now => stay.1 = to,
                            _ if elapsed > 0 => process.stays.push((self.now, to)),
                            _ => {}
                        }
                    }
                }
            }
        }
        for cpu in &self.cpus {
            if cpu.occupant == Some(self.vcpus.len()) {
                self.neighbor_ran += elapsed;
            }
        }
        self.now = to;
    }

    /// When the guest does something of itself.
    fn completion(&self, vcpu: usize) -> u64 {
        let vcpu = &self.vcpus[vcpu];
        let left = match vcpu.mode {
            Mode::Idle => 0,
            Mode::Handler { left, .. } | Mode::Switch { left } => left,
            Mode::Run => vcpu.current.map_or(0, |current| {
                let process = &self.processes[current];
                if process.in_kernel {
                    process.left.min(process.to_point)
                } else {
                    process.left
                }
            }),
        };
        self.now + left
    }

    /// When the first timer of a VCPU's guest is due, in guest time.
    fn first_timer(&self, vcpu: usize) -> Option<u64> {
        let vcpu = &self.vcpus[vcpu];
        let processes = vcpu.processes.iter().map(|&id| &self.processes[id]);
        let timers = processes.flat_map(|process| [process.wake_due, process.timer_due]);
        // A timer of a process counts its running time, as a profiler's does: asleep, it stands.
        timers.chain([vcpu.tick_due]).flatten().min()
    }

    fn timer_at(&self, vcpu: usize) -> u64 {
        let due = self.first_timer(vcpu).unwrap_or(u64::MAX);
        let at = self.clock.host_deadline(TimerTicks(due)).0;
        at.max(self.vcpus[vcpu].directive.timers_from.0)
            .max(self.now)
    }

    fn look_at(&self, vcpu: usize) -> u64 {
        let directive = &self.vcpus[vcpu].directive;
        directive.look_at.min(directive.vm_look_at).0.max(self.now)
    }

    fn next_event(&self, vcpu: usize) -> u64 {
        match self.vcpus[vcpu].place {
            Place::Guest => {
                let interruptible = self.is_interruptible(vcpu);
                let timer = if interruptible {
                    self.timer_at(vcpu)
                } else {
                    u64::MAX
                };
                self.completion(vcpu).min(timer).min(self.look_at(vcpu))
            }
            Place::Leaving { at, .. } | Place::Entering { at } => at,
            Place::Held => self.timer_at(vcpu).min(self.look_at(vcpu)),
            Place::Parked { until } => self.timer_at(vcpu).min(until).max(self.now),
            Place::Halted => self.timer_at(vcpu),
            Place::Waiting => u64::MAX,
        }
    }

    /// Whether the guest takes an interrupt now.
    fn is_interruptible(&self, vcpu: usize) -> bool {
        matches!(self.vcpus[vcpu].mode, Mode::Run | Mode::Idle)
    }

    fn act(&mut self, vcpu: usize) {
        match self.vcpus[vcpu].place {
            Place::Guest => {
                if self.completion(vcpu) <= self.now {
                    self.complete(vcpu);
                } else {
                    self.leave(vcpu, Cause::Timer);
                }
            }
            Place::Leaving { cause, .. } => self.left(vcpu, cause),
            Place::Entering { .. } => self.vcpus[vcpu].place = Place::Guest,
            Place::Held => self.go_on(vcpu),
            Place::Parked { .. } => self.wake(vcpu),
            Place::Halted => self.wake(vcpu),
            Place::Waiting => {}
        }
    }

    // ---- the guest ----

    fn guest_now(&self) -> u64 {
        self.clock.now(HostTicks(self.now)).counter.0
    }

    /// The guest has come to the end of what it was doing.
    fn complete(&mut self, vcpu: usize) {
        match self.vcpus[vcpu].mode {
            Mode::Idle => self.leave(vcpu, Cause::Halt),
            Mode::Handler {
                frame_in_kernel, ..
            } => self.end_handler(vcpu, frame_in_kernel),
            Mode::Switch { .. } => self.switch(vcpu),
            Mode::Run => self.go_on_with_process(vcpu),
        }
    }

    fn end_handler(&mut self, vcpu: usize, frame_in_kernel: bool) {
        let this = &mut self.vcpus[vcpu];
        if this.needs_switch && !frame_in_kernel {
            this.mode = Mode::Switch { left: SWITCH };
            return;
        }
        this.mode = if this.current.is_some() {
            Mode::Run
        } else {
            Mode::Idle
        };
        if this.directive.handler_runs && self.exact_resume {
            self.leave(vcpu, Cause::Resumed);
        } else if this.directive.report_when_interruptible {
            self.leave(vcpu, Cause::Timer);
        }
    }

    fn switch(&mut self, vcpu: usize) {
        let guest_now = self.guest_now();
        let now = self.now;
        let this = &mut self.vcpus[vcpu];
        this.needs_switch = false;
        let before = this.current;
        let next = this.scheduler.pick(guest_now);
        this.current = next.map(|local| this.processes[local]);
        if let Some(before) = before
            && this.current != Some(before)
            && self.processes[before].wake_due.is_none()
        {
            self.processes[before].waits_since = Some(now);
        }
        let this = &mut self.vcpus[vcpu];
        let Some(current) = this.current else {
            this.mode = Mode::Idle;
            this.tick_due = None;
            return;
        };
        this.mode = Mode::Run;
        let process = &mut self.processes[current];
        if let Some(since) = process.waits_since.take() {
            process.longest_wait = process.longest_wait.max(now - since);
        }
        if process.left == 0 {
            process.start_over();
        }
        let root = process.root;
        if this.loaded != Some(root) {
            this.loaded = Some(root);
            if self.suppression.is_active() {
                self.leave(vcpu, Cause::LoadedRoot);
            }
        } else if this.directive.report_when_interruptible {
            self.leave(vcpu, Cause::Timer);
        } else if this.directive.handler_runs && self.exact_resume {
            // The scheduler has thought better of it.
            self.leave(vcpu, Cause::Resumed);
        }
    }

    fn go_on_with_process(&mut self, vcpu: usize) {
        let guest_now = self.guest_now();
        let Some(current) = self.vcpus[vcpu].current else {
            return;
        };
        let process = &mut self.processes[current];
        let this = &mut self.vcpus[vcpu];
        if process.in_kernel && process.left > 0 {
            // A place where the kernel looks whether others are to run.
            if let Behavior::SystemCalls { point, .. } = process.behavior {
                process.to_point = point;
            }
            if this.needs_switch {
                this.mode = Mode::Switch { left: SWITCH };
            }
            return;
        }
        match process.behavior {
            Behavior::Hog | Behavior::Timer { .. } => process.start_over(),
            Behavior::SystemCalls { length, point } => {
                if process.in_kernel {
                    process.start_over();
                    if this.needs_switch {
                        this.mode = Mode::Switch { left: SWITCH };
                    }
                } else {
                    process.in_kernel = true;
                    process.left = length;
                    process.to_point = point;
                }
            }
            Behavior::Sleeper { sleep, .. } => {
                process.wake_due = Some(guest_now + sleep);
                this.scheduler.sleep(process.local, guest_now);
                this.mode = Mode::Switch { left: SWITCH };
            }
            Behavior::Yields { .. } => {
                process.start_over();
                this.scheduler.yield_now(guest_now);
                this.mode = Mode::Switch { left: SWITCH };
            }
        }
    }

    /// The guest takes the interrupt of its timer.
    fn take_interrupt(&mut self, vcpu: usize) {
        let guest_now = self.guest_now();
        let this = &mut self.vcpus[vcpu];
        let mut left = HANDLER;
        if this.tick_due.is_none() {
            // The tick goes on when the processor is not idle any more.
            this.tick_due = Some((guest_now / TICK + 1) * TICK);
        }
        if this.tick_due.is_some_and(|due| due <= guest_now) {
            this.tick_due = Some((guest_now / TICK + 1) * TICK);
            this.needs_switch |= this.scheduler.tick(guest_now);
        }
        for &id in &this.processes {
            let process = &mut self.processes[id];
            if let Some(due) = process.wake_due
                && due <= guest_now
            {
                process.wake_due = None;
                process.latencies.push(guest_now - due);
                process.waits_since = Some(self.now);
                this.needs_switch |= this.scheduler.wake(process.local, guest_now);
                left += TIMER;
            }
            if let (Some(due), Behavior::Timer { period }) = (process.timer_due, process.behavior)
                && due <= guest_now
            {
                process.timer_due = Some((guest_now / period + 1) * period);
                left += TIMER;
            }
        }
        let frame_in_kernel = this
            .current
            .is_some_and(|current| self.processes[current].in_kernel);
        this.mode = Mode::Handler {
            left,
            frame_in_kernel,
        };
    }

    // ---- the hypervisor ----

    fn leave(&mut self, vcpu: usize, cause: Cause) {
        self.exits += 1;
        self.vcpus[vcpu].place = Place::Leaving {
            at: self.now + self.exit_cost / 2,
            cause,
        };
    }

    fn context(&self, vcpu: usize) -> Context {
        let this = &self.vcpus[vcpu];
        let in_kernel = match this.mode {
            Mode::Run => this
                .current
                .is_none_or(|current| self.processes[current].in_kernel),
            _ => true,
        };
        let stack = 0xffff_c900_0000_0000 + this.current.unwrap_or(0x1000) as u64 * 0x1_0000;
        let depth = if matches!(this.mode, Mode::Handler { .. }) {
            0x400
        } else {
            0x200
        };
        Context {
            user_mode: !in_kernel,
            interruptible: self.is_interruptible(vcpu),
            rsp: if in_kernel {
                stack + 0x4000 - depth
            } else {
                0x7fff_0000_0000
            },
        }
    }

    fn left(&mut self, vcpu: usize, cause: Cause) {
        match cause {
            Cause::Timer | Cause::Called => self.see(vcpu, false),
            Cause::LoadedRoot => self.see(vcpu, true),
            Cause::Resumed => {
                let context = self.context(vcpu);
                self.report(vcpu, Event::Resumed(context));
            }
            Cause::Halt => {
                self.vcpus[vcpu].place = Place::Halted;
                self.see(vcpu, false);
                if self.vcpus[vcpu].place == Place::Halted {
                    self.give_up_cpu(vcpu);
                }
                return;
            }
            Cause::Preempted => {
                self.vcpus[vcpu].place = Place::Waiting;
                self.report(vcpu, Event::OffCpu);
                let cpu = self.vcpus[vcpu].cpu;
                self.cpus[cpu].occupant = None;
                self.schedule(cpu);
                return;
            }
        }
        self.go_on(vcpu);
    }

    fn see(&mut self, vcpu: usize, loaded: bool) {
        let this = &self.vcpus[vcpu];
        let observation = Observation {
            root: this.loaded.map(|root| (root, FORMAT)),
            loaded,
            halted: this.place == Place::Halted,
            context: self.context(vcpu),
            thread: if this.current.is_some() {
                Thread::User
            } else {
                Thread::Kernel
            },
            not_resumed: false,
        };
        if self.suppression.stop_fast_clock(vcpu, HostTicks(self.now)) {
            self.change_clock(vcpu, self.suppression.clock());
        }
        self.report(vcpu, Event::Seen(observation));
    }

    fn report(&mut self, vcpu: usize, event: Event) {
        self.suppression.adapt(&self.pace);
        let directive = self
            .suppression
            .report(&self.ram, vcpu, event, HostTicks(self.now));
        self.vcpus[vcpu].directive = directive;
        for other in &mut self.vcpus {
            other.directive.vm_look_at = directive.vm_look_at;
        }
        if directive.clock != self.clock.course() {
            self.change_clock(vcpu, directive.clock);
        }
    }

    fn change_clock(&mut self, own: usize, course: Course) {
        self.rate_changes += 1;
        let mut lost = 0;
        for other in 0..self.vcpus.len() {
            if other == own {
                continue;
            }
            match self.vcpus[other].place {
                Place::Guest => {
                    lost += self.exit_cost + RENDEZVOUS;
                    self.exits += 1;
                    self.vcpus[other].place = Place::Leaving {
                        at: self.now + self.exit_cost / 2 + RENDEZVOUS,
                        cause: Cause::Called,
                    };
                }
                Place::Entering { at } => {
                    self.vcpus[other].place = Place::Entering {
                        at: at + RENDEZVOUS,
                    };
                }
                _ => {}
            }
        }
        self.clock.set_course(HostTicks(self.now), course);
        self.suppression.clock_changed(HostTicks(self.now), lost);
    }

    /// After an exit has been handled: into the guest, or not.
    fn go_on(&mut self, vcpu: usize) {
        if self.vcpus[vcpu].place == Place::Held && self.timer_at(vcpu) > self.now {
            self.report(vcpu, Event::Time);
        }
        if self.is_interruptible(vcpu) && self.timer_at(vcpu) <= self.now {
            let thread = if self.vcpus[vcpu].current.is_some() {
                Thread::User
            } else {
                Thread::Kernel
            };
            let context = self.context(vcpu);
            self.report(vcpu, Event::Interrupted(context, thread));
            self.take_interrupt(vcpu);
            self.enter(vcpu);
            return;
        }
        match self.vcpus[vcpu].directive.stay {
            Stay::Run => self.enter(vcpu),
            Stay::Hold => self.vcpus[vcpu].place = Place::Held,
            Stay::Park(until) => {
                self.vcpus[vcpu].place = Place::Parked { until: until.0 };
                self.give_up_cpu(vcpu);
            }
        }
    }

    fn enter(&mut self, vcpu: usize) {
        self.vcpus[vcpu].place = Place::Entering {
            at: self.now + self.exit_cost / 2 + ROOT,
        };
    }

    // ---- physical CPUs ----

    fn give_up_cpu(&mut self, vcpu: usize) {
        let cpu = self.vcpus[vcpu].cpu;
        if self.cpus[cpu].occupant == Some(vcpu) {
            self.cpus[cpu].occupant = None;
            self.schedule(cpu);
        }
    }

    /// A VCPU that was halted or parked has something to do.
    fn wake(&mut self, vcpu: usize) {
        let cpu = self.vcpus[vcpu].cpu;
        if self.cpus[cpu].occupant.is_none() {
            self.give_cpu(cpu, vcpu);
            return;
        }
        // Whoever wakes replaces the neighbor, which does not wait for anything.
        if self.cpus[cpu].occupant == Some(self.vcpus.len()) {
            self.give_cpu(cpu, vcpu);
            return;
        }
        if self.vcpus[vcpu].place == Place::Halted {
            self.report(vcpu, Event::Woke);
        }
        self.vcpus[vcpu].place = Place::Waiting;
    }

    fn contenders(&self, cpu: usize) -> usize {
        let vcpus = self.vcpus.iter().filter(|vcpu| {
            vcpu.cpu == cpu && !matches!(vcpu.place, Place::Halted | Place::Parked { .. })
        });
        vcpus.count() + usize::from(self.neighbor && cpu == 0)
    }

    fn end_slice(&mut self, cpu: usize) {
        let Some(occupant) = self.cpus[cpu].occupant else {
            self.schedule(cpu);
            return;
        };
        if occupant == self.vcpus.len() {
            self.cpus[cpu].occupant = None;
            self.schedule(cpu);
            return;
        }
        match self.vcpus[occupant].place {
            Place::Guest | Place::Held => self.leave(occupant, Cause::Preempted),
            // As soon as it is in.
            _ => self.cpus[cpu].slice_end = self.now + US,
        }
    }

    /// Gives a free CPU to the next one that waits for it.
    fn schedule(&mut self, cpu: usize) {
        if self.cpus[cpu].occupant.is_some() {
            return;
        }
        let last = self.cpus[cpu].since as usize;
        let count = self.vcpus.len() + 1;
        for step in 1..=count {
            let candidate = (last + step) % count;
            if candidate == self.vcpus.len() {
                if self.neighbor && cpu == 0 {
                    self.cpus[cpu].occupant = Some(candidate);
                    self.cpus[cpu].since = candidate as u64;
                    self.cpus[cpu].slice_end = self.now + CPU_SLICE;
                    return;
                }
            } else if self.vcpus[candidate].cpu == cpu
                && self.vcpus[candidate].place == Place::Waiting
            {
                self.give_cpu(cpu, candidate);
                return;
            }
        }
    }

    fn give_cpu(&mut self, cpu: usize, vcpu: usize) {
        self.cpus[cpu].occupant = Some(vcpu);
        self.cpus[cpu].since = vcpu as u64;
        self.cpus[cpu].slice_end = self.now + CPU_SLICE;
        let was = self.vcpus[vcpu].place;
        self.vcpus[vcpu].place = Place::Held;
        self.report(vcpu, Event::OnCpu(self.context(vcpu)));
        match was {
            Place::Halted => self.report(vcpu, Event::Woke),
            _ => self.report(vcpu, Event::Time),
        }
        self.go_on(vcpu);
    }
}

enum Actor {
    Vcpu(usize),
    Cpu(usize),
}

impl Process {
    /// Begins to compute in user mode.
    fn start_over(&mut self) {
        self.in_kernel = false;
        self.to_point = u64::MAX;
        self.left = match self.behavior {
            Behavior::Hog | Behavior::Timer { .. } => 10 * SECOND,
            Behavior::SystemCalls { .. } => US,
            Behavior::Sleeper { run, .. } | Behavior::Yields { run } => run,
        };
    }

    /// The most that it ran within any second.
    pub(crate) fn most_in_a_second(&self) -> u64 {
        let mut most = 0;
        let mut first = 0;
        let mut sum = 0;
        for (index, &(from, to)) in self.stays.iter().enumerate() {
            sum += to - from;
            let start = to.saturating_sub(SECOND);
            while first < index && self.stays[first].1 <= start {
                sum -= self.stays[first].1 - self.stays[first].0;
                first += 1;
            }
            let cut = start.saturating_sub(self.stays[first].0.min(start));
            most = most.max(sum - cut.min(self.stays[first].1 - self.stays[first].0));
        }
        most
    }
}
