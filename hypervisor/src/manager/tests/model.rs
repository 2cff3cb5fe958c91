//! The table of VMs while two operators and the CPUs' loops use it at once.

use core::sync::atomic as unseen;

use shuttle::thread;
use unseen::Ordering::SeqCst;

use super::*;
use crate::model;
use crate::vm::requests::Requests;

/// Who has the RAM of a VM: seen by nobody but assertions.
#[derive(Default)]
struct Ledger {
    /// How many VMs have been made in it.
    made: unseen::AtomicU32,
    /// The VCPUs in processors: a bit for each.
    loaded: unseen::AtomicU32,
    /// Which of them is paused, and has not been told to go on.
    paused: unseen::AtomicU32,
}

/// A VCPU that computes, but for its third turn, in which its guest resets if it does.
struct Owner {
    vm: Arc<Vm>,
    index: u32,
    cpu: Option<u32>,
    generation: u32,
    ledger: Arc<Ledger>,
    turns: u32,
    resets: bool,
}

impl Runnable for Owner {
    unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), Refused> {
        let made = self.ledger.made.load(SeqCst);
        assert_eq!(made, self.generation, "another VM has its RAM");
        let others = self.ledger.loaded.fetch_or(1 << self.index, SeqCst);
        assert_eq!(others & 1 << self.index, 0, "it is on two CPUs");
        self.cpu = Some(cpu.index);
        Ok(())
    }

    fn unload(&mut self) -> Result<(), Refused> {
        self.cpu = None;
        self.ledger.loaded.fetch_and(!(1 << self.index), SeqCst);
        Ok(())
    }

    fn run(&mut self, _: HostTicks) -> RunExit {
        let requests = self.vm.requests(self.index);
        requests.set_running_on(self.cpu);
        let exit = if requests.take().contains(Requests::YIELD) {
            RunExit::Yielded
        } else {
            // In the guest.
            for _ in 0..2 {
                let paused = self.ledger.paused.load(SeqCst);
                assert_ne!(paused, self.generation, "it is paused");
                let _ = requests.are_pending();
            }
            self.turns += 1;
            match (self.index, self.turns) {
                (0, 1) => RunExit::Loaded,
                (_, 3) if self.resets => RunExit::Stopped(StopReason::Reset),
                _ => RunExit::Preempted,
            }
        };
        requests.set_running_on(None);
        exit
    }

    fn deadline(&self) -> HostTicks {
        HostTicks(u64::MAX)
    }

    fn dump(&self) -> String {
        String::new()
    }
}

/// Makes VMs whose VCPUs are owners.
struct Owners {
    scheduler: Arc<Scheduler>,
    ledger: Arc<Ledger>,
    resets: bool,
}

impl VmFactory for Owners {
    fn ticks_per_second(&self) -> u64 {
        test_vm::TSC.get()
    }

    fn allocate_ram(&self, size: u64) -> Result<GuestRam, CreateError> {
        assert_eq!(self.ledger.made.load(SeqCst), 0, "it has RAM");
        Ok(test_vm::ram(size))
    }

    fn make_vm(
        &self,
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
        disks: Vec<VmDisk>,
    ) -> Result<NewVm, CreateError> {
        let loaded = self.ledger.loaded.load(SeqCst);
        assert_eq!(loaded, 0, "its predecessor is on a CPU");
        self.ledger.made.fetch_add(1, SeqCst);
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
        Ok(Box::new(Owner {
            vm: vm.clone(),
            index,
            cpu: None,
            generation: self.ledger.made.load(SeqCst),
            ledger: self.ledger.clone(),
            turns: 0,
            resets: self.resets,
        }))
    }
}

/// The boot CPU takes a turn, and works if there is something to do.
fn boot_turn(cpu: &mut Cpu, manager: &VmManager) {
    if manager.has_work() {
        cpu.release(manager.scheduler());
        manager.work();
    }
    cpu.turn(manager);
}

/// Two operators make their requests, each its own, while two CPUs take turns.
fn table_in_use(resets: bool, requests: [&'static [&'static str]; 2]) {
    fake::set(HostTicks(0));
    let settings = Settings::for_tsc(test_vm::TSC);
    let scheduler = Arc::new(Scheduler::new(settings, 2, |_| {}));
    let ledger = Arc::<Ledger>::default();
    let factory = Owners {
        scheduler: scheduler.clone(),
        ledger: ledger.clone(),
        resets,
    };
    let small = VmConfig {
        memory: 64 << 10,
        ..config("web", 2)
    };
    let manager = VmManager::new(Box::new(factory), scheduler, vec![small]);
    let mut cpus = [Cpu::new(0), Cpu::new(1)];
    assert_eq!(manager.start_all(), []);
    thread::scope(|scope| {
        let (manager, ledger) = (&manager, &ledger);
        let [boot, other] = &mut cpus;
        scope.spawn(move || (0..5).for_each(|_| boot_turn(boot, manager)));
        scope.spawn(move || (0..4).for_each(|_| other.turn(manager)));
        for requests in requests {
            scope.spawn(move || {
                for &request in requests {
                    if request == "resume" {
                        ledger.paused.store(0, SeqCst);
                    }
                    let before = ledger.made.load(SeqCst);
                    // In some orders it is refused.
                    let answer = ask(manager, request);
                    let made = ledger.made.load(SeqCst);
                    if request == "pause" && answer.is_ok() && made == before {
                        ledger.paused.store(made, SeqCst);
                    }
                }
            });
        }
    });
    // Whatever has come of it, it can be ended.
    let state = || manager.state(WEB).unwrap();
    for _ in 0..5 {
        if state().is_live() {
            manager.stop(WEB).unwrap();
        }
        let [boot, other] = &mut cpus;
        other.turn(&manager);
        boot_turn(boot, &manager);
    }
    assert_eq!(state().name(), "ended");
    // Each has one end; and one that is stopped before it is made has an end, too.
    let made = ledger.made.load(SeqCst) as usize;
    let stops = requests.iter().flat_map(|requests| requests.iter());
    let unmade = stops.filter(|request| **request == "stop").count();
    let ends = manager.take_stops().len();
    assert!((made..=made + unmade).contains(&ends), "{ends} of {made}");
    assert_eq!(ledger.loaded.load(SeqCst), 0, "its VCPUs are in processors");
    assert!(!manager.has_work());
}

#[test]
fn a_vm_that_is_restarted_and_stopped_at_once_has_its_ram_for_itself() {
    model::check(1, 1_000, || {
        table_in_use(false, [&["restart"], &["stop", "start"]]);
    });
}

#[test]
fn a_guest_that_resets_as_it_is_restarted_is_made_once() {
    model::check(1, 1_000, || table_in_use(true, [&["restart"], &[]]));
}

#[test]
fn a_paused_vm_is_out_of_the_guest_until_it_is_resumed_whoever_stops_it() {
    model::check(1, 1_000, || {
        table_in_use(false, [&["pause", "resume"], &["restart"]]);
    });
    model::check(1, 1_000, || {
        table_in_use(false, [&["pause"], &["restart"]]);
    });
}
