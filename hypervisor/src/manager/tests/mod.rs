//! The life of VMs whose VCPUs are scripts, on a real scheduler with CPUs that the tests turn.

#[cfg(feature = "model")]
mod model;

use alloc::collections::VecDeque;
use std::string::ToString;
use std::sync::mpsc;
use std::thread;
use std::vec;

use devices::lapic::LocalApic;
use devices::time::HostTicks;
use devices::virtio::device::Budget;
use devices::virtio::disk::image::DiskImage;

use super::factory::{CreateError, NewVm};
use super::*;
use crate::guest_boot::LoadError;
use crate::machine::host_time::fake;
use crate::scheduler::{Decision, PinError, Runnable, Settings, VcpuCell};
use crate::vcpu::backend::Refused;
use crate::vcpu::{HostCpu, RunExit, StopReason};
use crate::vm::ram::GuestRam;
use crate::vm::test_vm;
use crate::vm::{AfterPause, VmDisk};
use crate::vm_config::{GuestDisk, RestartPolicy};

const MIB: u64 = 1 << 20;

/// The actions of a VCPU at its next turns; when there are none left, its time is over.
type Script = Arc<Mutex<VecDeque<Turn>>>;
type Turn = Box<dyn FnOnce(&Vm) -> RunExit + Send>;

struct ScriptedVcpu {
    vm: Arc<Vm>,
    index: u32,
    cpu: Option<u32>,
    script: Script,
}

impl Runnable for ScriptedVcpu {
    unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), Refused> {
        assert_eq!(self.cpu, None, "on two CPUs");
        self.cpu = Some(cpu.index);
        Ok(())
    }

    fn unload(&mut self) -> Result<(), Refused> {
        self.cpu = None;
        Ok(())
    }

    fn run(&mut self, _: HostTicks) -> RunExit {
        let requests = self.vm.requests(self.index);
        requests.set_running_on(self.cpu);
        requests.take();
        let turn = self.script.lock().pop_front();
        let exit = turn.map_or(RunExit::Preempted, |turn| turn(&self.vm));
        requests.set_running_on(None);
        exit
    }

    fn deadline(&self) -> HostTicks {
        HostTicks(u64::MAX)
    }

    fn dump(&self) -> String {
        "what it was doing".to_string()
    }
}

/// The state of the factory that the tests see and set.
#[derive(Default)]
struct Workshop {
    /// The numbers of times that RAM was allocated, and VMs were made.
    allocated: usize,
    made: usize,
    /// The errors that the next attempts fail with.
    failures: VecDeque<CreateError>,
    /// The number of the VCPU that cannot be made.
    no_vcpu: Option<u32>,
    /// The scripts of the VCPUs made last, by VM.
    scripts: Vec<Vec<Script>>,
}

struct ScriptedFactory {
    workshop: Arc<Mutex<Workshop>>,
    scheduler: Arc<Scheduler>,
}

impl VmFactory for ScriptedFactory {
    fn ticks_per_second(&self) -> u64 {
        test_vm::TSC.get()
    }

    fn allocate_ram(&self, size: u64) -> Result<GuestRam, CreateError> {
        self.workshop.lock().allocated += 1;
        Ok(test_vm::ram(size))
    }

    fn make_vm(
        &self,
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
        disks: Vec<VmDisk>,
    ) -> Result<NewVm, CreateError> {
        let mut workshop = self.workshop.lock();
        if let Some(error) = workshop.failures.pop_front() {
            return Err(error);
        }
        workshop.made += 1;
        let count = workshop.scripts.len().max(id.0 + 1);
        workshop.scripts.resize(count, Vec::new());
        workshop.scripts[id.0] = Vec::new();
        let waker = self.scheduler.clone();
        let output = Box::new(test_vm::Written::default());
        Ok(NewVm::for_test(id, config, ram, disks, waker, output))
    }

    fn make_vcpu(
        &self,
        vm: &Arc<Vm>,
        index: u32,
        _: LocalApic,
        _: Load,
    ) -> Result<Box<dyn Runnable>, CreateError> {
        let mut workshop = self.workshop.lock();
        if workshop.no_vcpu == Some(index) {
            return Err(CreateError::Vpids);
        }
        let script = Script::default();
        workshop.scripts[vm.id.0].push(script.clone());
        Ok(Box::new(ScriptedVcpu {
            vm: vm.clone(),
            index,
            cpu: None,
            script,
        }))
    }
}

/// A physical CPU: its part of [`crate::cpu_loop`], a turn at a time.
struct Cpu {
    index: u32,
    loaded: Option<(VcpuId, Arc<VcpuCell>)>,
}

impl Cpu {
    const fn new(index: u32) -> Self {
        Self {
            index,
            loaded: None,
        }
    }

    fn release(&mut self, scheduler: &Scheduler) {
        if let Some((id, cell)) = self.loaded.take() {
            cell.vcpu.lock().unload().unwrap();
            drop(cell);
            scheduler.released(self.index, id);
        }
    }

    fn turn(&mut self, manager: &VmManager) {
        let scheduler = manager.scheduler();
        match scheduler.next(self.index, host_now(), 0) {
            Decision::Idle { .. } => {}
            Decision::Release(id) => {
                self.release(scheduler);
                scheduler.released(self.index, id);
            }
            Decision::Run { vcpu: id, .. } => {
                if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != id) {
                    self.release(scheduler);
                    let cell = scheduler.cell(id).unwrap();
                    let tables = HostCpu::without_tables(self.index);
                    // SAFETY: a scripted VCPU is on no processor.
                    unsafe { cell.vcpu.lock().load(&tables) }.unwrap();
                    self.loaded = Some((id, cell));
                }
                let cell = self.loaded.as_ref().unwrap().1.clone();
                let mut vcpu = cell.vcpu.lock();
                match vcpu.run(HostTicks(u64::MAX)) {
                    RunExit::Loaded => manager.loaded(id.vm),
                    RunExit::Stopped(reason) => {
                        manager.ended(id, reason, || vcpu.dump());
                        drop(vcpu);
                        scheduler.block(self.index, &cell, HostTicks(u64::MAX));
                    }
                    RunExit::Halted | RunExit::Delayed(_) => {
                        drop(vcpu);
                        scheduler.block(self.index, &cell, HostTicks(u64::MAX));
                    }
                    RunExit::Preempted | RunExit::Yielded => {}
                }
            }
        }
    }
}

struct Host {
    manager: VmManager,
    workshop: Arc<Mutex<Workshop>>,
    cpus: Vec<Cpu>,
}

const WEB: VmId = VmId(0);
const DB: VmId = VmId(1);

fn config(name: &str, vcpus: u32) -> VmConfig<'static> {
    VmConfig {
        name: name.to_string(),
        memory: 2 * MIB,
        vcpus,
        pins: vec![],
        weight: 100,
        cap: None,
        suppression: crate::suppression::order::Defaults::default(),
        rules: Vec::new(),
        restart: RestartPolicy::default(),
        test_devices: false,
        disks: Vec::new(),
        nics: Vec::new(),
        entropy: false,
        console: false,
        kernel: &[],
        firmware: None,
        initrd: None,
        modules: vec![],
        command_line: String::new(),
    }
}

impl Host {
    fn new(cpus: u32, configs: Vec<VmConfig<'static>>) -> Self {
        // All takes no time, unless a test says otherwise.
        fake::set(HostTicks(0));
        let settings = Settings::for_tsc(test_vm::TSC);
        let scheduler = Arc::new(Scheduler::new(settings, cpus, |_| {}));
        let workshop = Arc::<Mutex<Workshop>>::default();
        let factory = ScriptedFactory {
            workshop: workshop.clone(),
            scheduler: scheduler.clone(),
        };
        Self {
            manager: VmManager::new(Box::new(factory), scheduler, configs),
            workshop,
            cpus: (0..cpus).map(Cpu::new).collect(),
        }
    }

    /// One CPU, one VM of one VCPU.
    fn with_web() -> Self {
        Self::new(1, vec![config("web", 1)])
    }

    fn state(&self, id: VmId) -> VmState {
        self.manager.state(id).unwrap()
    }

    /// All CPUs take a turn.
    fn turn(&mut self) {
        for cpu in &mut self.cpus {
            cpu.turn(&self.manager);
        }
    }

    /// The boot CPU has its VCPU released, and works.
    fn work(&mut self) {
        self.cpus[0].release(self.manager.scheduler());
        self.manager.work();
    }

    /// What VCPU `index` of `id` does after all that it is to do already.
    fn next(&self, id: VmId, index: usize, turn: impl FnOnce(&Vm) -> RunExit + Send + 'static) {
        let script = self.workshop.lock().scripts[id.0][index].clone();
        script.lock().push_back(Box::new(turn));
    }

    /// Brings `web` from its definition to a state.
    fn bring_to(&mut self, state: &str) {
        let steps: &[&str] = match state {
            "defined" => &[],
            "starting" => &["start"],
            "loading" => &["start", "work"],
            "running" => &["start", "work", "load"],
            "paused" => &["start", "work", "load", "pause"],
            "stopping" => &["start", "work", "load", "turn", "stop"],
            "ended" => &["start", "work", "load", "stop", "turn", "work"],
            _ => unreachable!(),
        };
        for step in steps {
            match *step {
                "work" => self.work(),
                "turn" => self.turn(),
                "load" => {
                    self.next(WEB, 0, |_| RunExit::Loaded);
                    self.turn();
                }
                request => ask(&self.manager, request).unwrap(),
            }
        }
        assert_eq!(self.state(WEB).name(), state);
    }
}

fn ask(manager: &VmManager, request: &str) -> Result<(), RequestError> {
    match request {
        "start" => manager.start(WEB),
        "stop" => manager.stop(WEB),
        "pause" => manager.pause(WEB),
        "resume" => manager.resume(WEB, AfterPause::Stands),
        "restart" => manager.restart(WEB),
        _ => unreachable!(),
    }
}

#[test]
fn a_guest_that_resets_is_started_again_and_one_that_crashes_is_not() {
    let mut host = Host::with_web();
    host.bring_to("running");
    host.next(WEB, 0, |_| RunExit::Stopped(StopReason::Reset));
    host.turn();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
    assert_eq!(host.workshop.lock().made, 2);
    // The operator is told all the same.
    assert_eq!(host.manager.take_stops()[0].reason, StopReason::Reset);
    host.next(WEB, 0, |_| RunExit::Stopped(StopReason::TripleFault));
    host.turn();
    host.work();
    assert_eq!(
        host.state(WEB),
        VmState::Stopped(StopCause::Ended(StopReason::TripleFault))
    );
}

#[test]
fn a_guest_that_does_nothing_but_reset_is_given_up() {
    let mut host = Host::with_web();
    host.bring_to("running");
    for _ in 0..20 {
        if host.state(WEB).is_live() {
            host.next(WEB, 0, |_| RunExit::Stopped(StopReason::Reset));
        }
        host.turn();
        host.work();
    }
    assert_eq!(
        host.state(WEB),
        VmState::Stopped(StopCause::Ended(StopReason::Reset))
    );
    assert_eq!(host.workshop.lock().made, 6);
    host.manager.start(WEB).unwrap();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
}

#[test]
fn each_request_leads_to_the_next_state_or_is_refused_without_effect() {
    const REQUESTS: [&str; 5] = ["start", "stop", "pause", "resume", "restart"];
    const NO: &str = "refused";
    let table = [
        ("defined", ["starting", NO, NO, NO, "starting"]),
        ("starting", [NO, "stopping", NO, NO, "starting"]),
        ("loading", [NO, "stopping", "paused", NO, "stopping"]),
        ("running", [NO, "stopping", "paused", NO, "stopping"]),
        ("paused", [NO, "stopping", NO, "running", "stopping"]),
        ("stopping", [NO, NO, NO, NO, "stopping"]),
        ("ended", ["starting", NO, NO, NO, "starting"]),
    ];
    for (state, next) in table {
        for (request, expected) in REQUESTS.into_iter().zip(next) {
            let mut host = Host::with_web();
            host.bring_to(state);
            let before = host.state(WEB);
            let answer = ask(&host.manager, request);
            if expected == NO {
                let error = answer.unwrap_err();
                assert_eq!(error.kind(), "wrong_state", "{request} when {state}");
                let text = error.to_string();
                assert!(text.contains("web is") && text.contains(state), "{text}");
                assert_eq!(host.state(WEB), before, "{request} when {state}");
            } else {
                answer.unwrap();
                assert_eq!(host.state(WEB).name(), expected, "{request} when {state}");
            }
        }
    }
}

#[test]
fn a_vm_that_does_not_exist_is_refused_everything() {
    let manager = Host::with_web().manager;
    for error in [
        manager.start(DB),
        manager.stop(DB),
        manager.pause(DB),
        manager.resume(DB, AfterPause::Stands),
        manager.restart(DB),
        manager.pin(DB, 0, None),
        manager.name(DB).map(drop),
        manager.state(DB).map(drop),
        manager.vm(DB).map(drop),
        manager.info(DB).map(drop),
    ] {
        assert_eq!(error, Err(RequestError::NoVm));
    }
    assert_eq!(manager.find("db"), None);
    assert_eq!(manager.find("web"), Some(WEB));
}

#[test]
fn a_vm_that_never_ran_has_nothing_to_look_at() {
    let mut host = Host::with_web();
    let error = host.manager.vm(WEB).map(drop).unwrap_err();
    assert_eq!(error, RequestError::NeverRan("web".to_string()));
    host.bring_to("ended");
    // But one that has ended has.
    assert_eq!(host.manager.vm(WEB).unwrap().name, "web");
}

#[test]
fn a_vcpu_runs_only_while_its_vm_does() {
    let mut host = Host::with_web();
    host.bring_to("running");
    let turns = |host: &mut Host| {
        let ran = Arc::new(AtomicBool::new(false));
        let seen = ran.clone();
        host.next(WEB, 0, move |_| {
            seen.store(true, Ordering::SeqCst);
            RunExit::Preempted
        });
        host.turn();
        host.turn();
        let ran = ran.load(Ordering::SeqCst);
        host.workshop.lock().scripts[0][0].lock().clear();
        ran
    };
    assert!(turns(&mut host));
    host.manager.pause(WEB).unwrap();
    assert!(!turns(&mut host));
    host.manager.resume(WEB, AfterPause::Stands).unwrap();
    assert!(turns(&mut host));
    host.manager.stop(WEB).unwrap();
    assert!(!turns(&mut host));
}

#[test]
fn a_paused_vms_clock_stands() {
    let mut host = Host::with_web();
    host.bring_to("running");
    let vm = host.manager.vm(WEB).unwrap();
    let now = || vm.board.lock().clock.now(host_now()).timer.0;
    let before = now();
    host.manager.pause(WEB).unwrap();
    fake::advance(50_000_000);
    host.manager.resume(WEB, AfterPause::Stands).unwrap();
    assert_eq!(now(), before);
    fake::advance(1_000);
    assert_eq!(now(), before + 1_000);
}

#[test]
fn a_paused_vms_clock_follows_real_time_if_that_is_wanted() {
    let mut host = Host::with_web();
    host.bring_to("running");
    let vm = host.manager.vm(WEB).unwrap();
    let now = || vm.board.lock().clock.now(host_now());
    let before = now();
    host.manager.pause(WEB).unwrap();
    fake::advance(50_000_000);
    host.manager.resume(WEB, AfterPause::Follows).unwrap();
    let after = now();
    assert_eq!(after.timer.since(before.timer), 50_000_000);
    assert_eq!(after.counter.since(before.counter), 50_000_000);
    assert_eq!(vm.suppression.lock().lead(host_now()).most(), 0);
}

#[test]
fn a_paused_vms_rtc_shows_the_time_of_day_whatever_its_clock_does() {
    for clock in [AfterPause::Stands, AfterPause::Follows] {
        fake::set(HostTicks(1_000_000));
        let mut host = Host::with_web();
        host.bring_to("running");
        let vm = host.manager.vm(WEB).unwrap();
        let hours = || {
            vm.with_chipset(host_now(), |chipset, env| {
                chipset.port_write(0x70, 1, 4, env);
                chipset.port_read(0x71, 1, env)
            })
        };
        assert_eq!(hours(), 0);
        host.manager.pause(WEB).unwrap();
        fake::advance(3 * 3600 * test_vm::TSC.get());
        host.manager.resume(WEB, clock).unwrap();
        assert_eq!(hours(), 3, "{clock:?}");
    }
}

#[test]
fn a_vm_paused_while_it_loads_goes_on_loading() {
    let mut host = Host::with_web();
    host.bring_to("loading");
    host.manager.pause(WEB).unwrap();
    host.manager.resume(WEB, AfterPause::Stands).unwrap();
    assert_eq!(host.state(WEB), VmState::Loading);
    host.next(WEB, 0, |_| RunExit::Loaded);
    host.turn();
    assert_eq!(host.state(WEB), VmState::Running);
}

#[test]
fn a_vm_whose_guest_is_loaded_as_it_is_paused_runs_when_it_is_resumed() {
    let mut host = Host::with_web();
    host.bring_to("loading");
    host.manager.pause(WEB).unwrap();
    // Its VCPU was on its way out.
    host.manager.loaded(WEB);
    assert_eq!(host.state(WEB), VmState::Paused);
    host.manager.resume(WEB, AfterPause::Stands).unwrap();
    assert_eq!(host.state(WEB), VmState::Running);
}

#[test]
fn a_guest_that_ends_takes_its_vm_off_all_cpus_and_is_told_of_once() {
    let mut host = Host::new(2, vec![config("web", 2)]);
    host.bring_to("running");
    host.turn();
    assert!(host.cpus.iter().all(|cpu| cpu.loaded.is_some()));
    host.next(WEB, 0, |_| RunExit::Stopped(StopReason::TripleFault));
    host.cpus[0].turn(&host.manager);
    // The other VCPU came to the same end at the same time.
    let other = VcpuId { vm: WEB, index: 1 };
    host.manager
        .ended(other, StopReason::TripleFault, || unreachable!());
    assert_eq!(host.state(WEB).name(), "stopping");
    let stops = host.manager.take_stops();
    assert_eq!(stops.len(), 1);
    assert_eq!(
        stops[0],
        VmStop {
            vm: WEB,
            reason: StopReason::TripleFault,
            dump: Some((0, "what it was doing".to_string())),
        }
    );
    assert_eq!(host.manager.take_stops(), []);
    // CPU 1 has it still.
    host.work();
    assert_eq!(host.state(WEB).name(), "stopping");
    assert!(host.manager.has_work());
    host.turn();
    host.work();
    assert_eq!(
        host.state(WEB),
        VmState::Stopped(StopCause::Ended(StopReason::TripleFault))
    );
    assert!(!host.manager.has_work());
    assert!(host.manager.all_stopped());
    assert_eq!(host.manager.cpu_usage(WEB), []);
}

#[test]
fn an_orderly_end_needs_no_dump() {
    let mut host = Host::with_web();
    host.bring_to("running");
    host.next(WEB, 0, |_| RunExit::Stopped(StopReason::PowerOff));
    host.turn();
    let stops = host.manager.take_stops();
    assert_eq!((stops.len(), stops[0].dump.as_ref()), (1, None));
}

#[test]
fn a_guest_that_ends_while_it_is_being_paused_ends() {
    let mut host = Host::with_web();
    host.bring_to("running");
    let (entered, in_guest) = mpsc::channel();
    host.next(WEB, 0, move |vm| {
        entered.send(()).unwrap();
        // In the guest until it is kicked; and what it did last was to switch itself off.
        while !vm.requests(0).are_pending() {
            thread::yield_now();
        }
        RunExit::Stopped(StopReason::PowerOff)
    });
    let Host { manager, cpus, .. } = &mut host;
    let manager = &*manager;
    thread::scope(|scope| {
        scope.spawn(|| cpus[0].turn(manager));
        in_guest.recv().unwrap();
        manager.pause(WEB).unwrap();
    });
    assert_eq!(host.state(WEB).name(), "stopping");
    assert_eq!(
        host.manager
            .resume(WEB, AfterPause::Stands)
            .unwrap_err()
            .kind(),
        "wrong_state"
    );
    host.work();
    assert_eq!(
        host.state(WEB),
        VmState::Stopped(StopCause::Ended(StopReason::PowerOff))
    );
}

#[test]
fn a_restart_waits_until_the_vm_is_off_its_cpus_and_keeps_its_ram() {
    let mut host = Host::new(2, vec![config("web", 2)]);
    host.bring_to("running");
    host.turn();
    let old = host.manager.vm(WEB).unwrap();
    host.manager.restart(WEB).unwrap();
    host.work();
    assert_eq!(host.state(WEB).name(), "stopping", "CPU 1 has it still");
    host.turn();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
    assert!(!Arc::ptr_eq(&old, &host.manager.vm(WEB).unwrap()));
    let workshop = host.workshop.lock();
    assert_eq!((workshop.allocated, workshop.made), (1, 2));
}

#[test]
fn a_restart_may_be_asked_for_while_the_vm_is_stopping() {
    let mut host = Host::with_web();
    host.bring_to("stopping");
    host.manager.restart(WEB).unwrap();
    host.turn();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
}

#[test]
fn a_vm_that_is_stopped_before_it_is_made_is_not_made() {
    let mut host = Host::with_web();
    host.bring_to("starting");
    host.manager.stop(WEB).unwrap();
    host.work();
    assert_eq!(
        host.state(WEB),
        VmState::Stopped(StopCause::Ended(StopReason::Stopped))
    );
    assert_eq!(host.workshop.lock().made, 0);
}

#[test]
fn a_vm_that_cannot_be_made_says_why_and_can_be_started_again() {
    let mut host = Host::with_web();
    let error = CreateError::Tables;
    host.workshop.lock().failures.push_back(error.clone());
    host.bring_to("starting");
    host.work();
    assert_eq!(
        host.state(WEB),
        VmState::Stopped(StopCause::NotCreated(error))
    );
    assert!(host.manager.all_stopped());
    host.manager.start(WEB).unwrap();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
}

#[test]
fn a_vm_is_made_in_steps_and_others_run_in_between() {
    let mut host = Host::new(1, vec![config("web", 8), config("db", 1)]);
    assert_eq!(host.manager.start_all(), []);
    // A step takes longer than there is time for at once.
    fake::let_looks_take(test_vm::TSC.get() / WORK_PER_SECOND);
    let old = host.manager.vm(WEB).unwrap();
    host.manager.restart(WEB).unwrap();
    let mut times = 0;
    while host.manager.has_work() {
        host.work();
        times += 1;
        host.next(DB, 0, |_| RunExit::Preempted);
        host.turn();
        assert_eq!(host.state(DB), VmState::Running);
        if times < 9 {
            assert_eq!(host.state(WEB).name(), "starting", "{times}");
            assert!(Arc::ptr_eq(&old, &host.manager.vm(WEB).unwrap()));
        }
    }
    // What the VCPUs share, each of them, adding them to the others, and clearing the old away.
    assert_eq!(times, 11);
    assert_eq!(host.state(WEB), VmState::Loading);
    assert_eq!(Arc::strong_count(&old), 1, "it is cleared away");
    let workshop = host.workshop.lock();
    assert_eq!((workshop.allocated, workshop.made), (2, 3));
    assert_eq!(workshop.scripts[WEB.0].len(), 8);
}

#[test]
fn a_vm_that_is_stopped_while_it_is_made_is_not_made_and_keeps_its_ram() {
    let mut host = Host::new(1, vec![config("web", 4)]);
    host.bring_to("starting");
    fake::let_looks_take(test_vm::TSC.get() / WORK_PER_SECOND);
    for _ in 0..3 {
        host.work();
        assert_eq!(host.state(WEB), VmState::Starting);
    }
    host.manager.stop(WEB).unwrap();
    host.work();
    let ended = VmState::Stopped(StopCause::Ended(StopReason::Stopped));
    assert_eq!(host.state(WEB), ended);
    assert!(host.manager.all_stopped() && !host.manager.has_work());
    host.manager.start(WEB).unwrap();
    while host.manager.has_work() {
        host.work();
    }
    assert_eq!(host.state(WEB), VmState::Loading);
    let workshop = host.workshop.lock();
    assert_eq!((workshop.allocated, workshop.made), (1, 2));
    assert_eq!(workshop.scripts[WEB.0].len(), 4);
}

#[test]
fn a_vm_one_of_whose_vcpus_cannot_be_made_does_not_start() {
    let mut host = Host::new(1, vec![config("web", 4)]);
    host.workshop.lock().no_vcpu = Some(2);
    let cause = StopCause::NotCreated(CreateError::Vpids);
    assert_eq!(host.manager.start_all(), [(WEB, cause.clone())]);
    assert_eq!(host.state(WEB), VmState::Stopped(cause));
    assert!(host.manager.slots[0].life.lock().ram.is_none());
    host.workshop.lock().no_vcpu = None;
    host.manager.start(WEB).unwrap();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
}

#[test]
fn a_guest_that_cannot_be_loaded_is_the_vms_end() {
    let mut host = Host::with_web();
    host.bring_to("loading");
    let reason = StopReason::NotLoaded(LoadError::ModulesForLinux);
    let end = reason.clone();
    host.next(WEB, 0, |_| RunExit::Stopped(end));
    host.turn();
    host.work();
    assert_eq!(host.state(WEB), VmState::Stopped(StopCause::Ended(reason)));
}

/// A VM with two disks, of which the second one is kept.
struct WithDisks {
    host: Host,
}

impl WithDisks {
    fn new() -> Self {
        let disk = |keeps| GuestDisk {
            image: DiskImage::Raw(&[7; 8192]),
            read_only: false,
            id: String::new(),
            keeps,
        };
        let config = VmConfig {
            disks: vec![disk(false), disk(true)],
            ..config("web", 1)
        };
        let mut host = Host::new(1, vec![config]);
        host.bring_to("running");
        Self { host }
    }

    /// What its disks begin with, and how much memory they take.
    fn see(&self) -> [(u8, u64); 2] {
        let vm = self.host.manager.vm(WEB).unwrap();
        [0, 1].map(|number| {
            let mut disk = vm.disks[number].contents.lock();
            let first = disk.read(0, 1, &mut Budget::new()).unwrap().unwrap()[0];
            (first, disk.own_bytes())
        })
    }

    fn write(&self, byte: u8) {
        let vm = self.host.manager.vm(WEB).unwrap();
        for disk in &vm.disks {
            let mut contents = disk.contents.lock();
            let place = contents.write(0, 1, &mut Budget::new());
            place.unwrap().unwrap()[0] = byte;
        }
    }

    /// Carries out requests; `turn` lets the guest go on, and `work` the manager.
    fn act(&mut self, steps: &[&str]) {
        for step in steps {
            match *step {
                "work" => self.host.work(),
                "turn" => self.host.turn(),
                request => ask(&self.host.manager, request).unwrap(),
            }
        }
    }
}

#[test]
fn a_kept_disk_is_as_the_guest_left_it_however_its_vm_has_ended() {
    let ends: [(&str, Option<StopReason>, &[&str]); 6] = [
        ("restart", None, &["restart", "turn", "work"]),
        ("pause", None, &["pause", "restart", "turn", "work"]),
        ("stop", None, &["stop", "turn", "work", "start", "work"]),
        ("reset", Some(StopReason::Reset), &["turn", "work"]),
        (
            "crash",
            Some(StopReason::TripleFault),
            &["turn", "work", "start", "work"],
        ),
        (
            "power",
            Some(StopReason::PowerOff),
            &["turn", "work", "restart", "work"],
        ),
    ];
    let mut web = WithDisks::new();
    assert_eq!(web.see(), [(7, 0); 2]);
    for (byte, (end, reason, steps)) in (100..).zip(ends) {
        let before = web.host.manager.vm(WEB).unwrap();
        web.write(byte);
        assert_eq!(web.see(), [(byte, 4096); 2], "{end}");
        if let Some(reason) = reason {
            web.host.next(WEB, 0, |_| RunExit::Stopped(reason));
        }
        web.act(steps);
        assert_eq!(web.host.state(WEB), VmState::Loading, "{end}");
        assert_eq!(web.see(), [(7, 0), (byte, 4096)], "{end}");
        let after = web.host.manager.vm(WEB).unwrap();
        let same = |number: usize| {
            let disks = [&before, &after].map(|vm| &vm.disks[number].contents);
            Arc::ptr_eq(disks[0], disks[1])
        };
        assert_eq!([same(0), same(1)], [false, true], "{end}");
    }
}

#[test]
fn a_kept_disk_outlives_vms_that_cannot_be_made() {
    let mut web = WithDisks::new();
    web.write(100);
    let mut fail = |failures: &[CreateError], no_vcpu| {
        let mut workshop = web.host.workshop.lock();
        workshop.failures.extend(failures.iter().cloned());
        workshop.no_vcpu = no_vcpu;
        drop(workshop);
        web.act(&["restart", "turn", "work"]);
        let is_made = web.host.state(WEB) == VmState::Loading;
        is_made.then(|| web.see())
    };
    assert_eq!(fail(&[CreateError::Tables], None), None);
    assert_eq!(fail(&[], Some(0)), None);
    assert_eq!(fail(&[], None), Some([(7, 0), (100, 4096)]));
}

#[test]
fn a_kept_disk_is_the_same_where_a_vm_is_stopped_while_it_is_made() {
    let mut web = WithDisks::new();
    web.write(100);
    web.act(&["stop", "turn", "work", "start"]);
    fake::let_looks_take(test_vm::TSC.get() / WORK_PER_SECOND);
    web.act(&["work"]);
    assert_eq!(web.host.state(WEB), VmState::Starting);
    web.act(&["stop", "work", "start", "work", "work", "work"]);
    assert_eq!(web.host.state(WEB), VmState::Loading);
    assert_eq!(web.see(), [(7, 0), (100, 4096)]);
}

#[test]
fn all_vms_start_with_their_guests_loaded_but_for_those_that_cannot() {
    let host = Host::new(1, vec![config("web", 1), config("db", 1)]);
    assert_eq!(host.manager.start_all(), []);
    assert_eq!(host.state(WEB), VmState::Running);
    assert_eq!(host.state(DB), VmState::Running);

    let host = Host::new(1, vec![config("web", 1), config("db", 1)]);
    host.workshop.lock().failures.push_back(CreateError::Vpids);
    let cause = StopCause::NotCreated(CreateError::Vpids);
    assert_eq!(host.manager.start_all(), [(WEB, cause.clone())]);
    assert_eq!(host.state(WEB), VmState::Stopped(cause));
    assert_eq!(host.state(DB), VmState::Running);
}

#[test]
fn a_vm_that_cannot_be_made_leaves_its_ram_to_others() {
    let mut host = Host::with_web();
    host.bring_to("ended");
    host.workshop.lock().failures.push_back(CreateError::Tables);
    host.manager.start(WEB).unwrap();
    host.work();
    assert!(host.manager.slots[0].life.lock().ram.is_none());
    host.manager.start(WEB).unwrap();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
    assert_eq!(host.workshop.lock().allocated, 2);
}

#[test]
fn what_is_asked_of_a_vm_leaves_others_alone() {
    let mut host = Host::new(1, vec![config("web", 1), config("db", 1)]);
    assert_eq!(host.manager.start_all(), []);
    host.manager.pause(DB).unwrap();
    for request in ["stop", "work", "start", "work", "restart", "work"] {
        match request {
            "work" => host.work(),
            request => ask(&host.manager, request).unwrap(),
        }
        assert_eq!(host.state(DB), VmState::Paused, "{request}");
    }
    assert!(!host.manager.all_stopped());
    assert_eq!(host.manager.cpu_usage(DB).len(), 1);
}

#[test]
fn pins_hold_over_restarts() {
    let mut host = Host::new(2, vec![config("web", 2)]);
    host.bring_to("running");
    host.manager.pin(WEB, 1, Some(0)).unwrap();
    let no_cpu = host.manager.pin(WEB, 0, Some(7)).unwrap_err();
    assert_eq!(no_cpu, PinError::NoCpu { cpu: 7, cpus: 2 }.into());
    assert_eq!(no_cpu.kind(), "no_cpu");
    assert_eq!(
        host.manager.pin(WEB, 2, Some(0)),
        Err(PinError::NoVcpu.into())
    );
    host.manager.restart(WEB).unwrap();
    host.turn();
    host.turn();
    host.work();
    assert_eq!(host.state(WEB), VmState::Loading);
    let usage = host.manager.cpu_usage(WEB);
    assert!(usage[1].pinned && usage[1].cpu == 0);
    assert!(!usage[0].pinned);
}

#[test]
fn a_vm_pinned_to_a_cpu_that_does_not_exist_does_not_start() {
    let mut pinned = config("web", 1);
    pinned.pins = vec![3];
    let host = Host::new(2, vec![pinned]);
    let cause = StopCause::Pin(PinError::NoCpu { cpu: 3, cpus: 2 });
    assert_eq!(host.manager.start_all(), [(WEB, cause)]);
}

#[test]
fn input_waits_for_the_vm_to_run_and_has_its_limit() {
    let mut host = Host::with_web();
    for _ in 0..INPUT_CAPACITY + 10 {
        host.manager.type_to(WEB, b'x');
    }
    let waiting = |host: &Host| host.manager.slots[0].input.lock().len();
    host.manager.pass_input_on();
    assert_eq!(waiting(&host), INPUT_CAPACITY);
    host.bring_to("paused");
    host.manager.pass_input_on();
    assert_eq!(waiting(&host), INPUT_CAPACITY);
    host.manager.resume(WEB, AfterPause::Stands).unwrap();
    host.manager.pass_input_on();
    let taken = INPUT_CAPACITY - waiting(&host);
    assert!((1..=64).contains(&taken), "{taken} bytes in a UART");
}
