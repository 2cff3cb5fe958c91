//! CPUs that are threads, which sleep until they are kicked: a wake-up that is lost is found.

#[cfg(feature = "model")]
mod model;

#[cfg(not(feature = "model"))]
use std::sync::{Condvar, Mutex};
#[cfg(not(feature = "model"))]
use std::thread;
use std::time::{Duration, Instant};
use std::vec;

#[cfg(feature = "model")]
use shuttle::sync::{Condvar, Mutex};
#[cfg(feature = "model")]
use shuttle::thread;

use super::*;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use crate::vcpu::backend::Refused;
use crate::vcpu::{HostCpu, RunExit};
use crate::vm::test_vm;

/// How much there is of everything.
#[derive(Clone, Copy)]
struct Size {
    cpus: u32,
    vms: usize,
    vcpus: u32,
    rounds: u64,
    senders: u64,
    /// The messages of each sender in a round.
    messages: u64,
    /// Whether VCPUs are pinned in each round.
    pins: bool,
    /// Whether a VM is paused in each round.
    pauses: bool,
}

/// A CPU's interrupt line.
struct Line {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            raised: Mutex::new(false),
            changed: Condvar::new(),
        }
    }
}

/// The lines of the CPUs that there are now.
static LINES: spin::Mutex<Vec<Arc<Line>>> = spin::Mutex::new(Vec::new());

fn line(cpu: u32) -> Arc<Line> {
    LINES.lock()[cpu as usize].clone()
}

fn raise(cpu: u32) {
    let line = line(cpu);
    *line.raised.lock().unwrap() = true;
    line.changed.notify_all();
}

/// Sleeps until the line is raised, as often as not with nothing in between.
fn wait(cpu: u32) {
    let line = line(cpu);
    let mut raised = line.raised.lock().unwrap();
    while !*raised {
        raised = line.changed.wait(raised).unwrap();
    }
    *raised = false;
}

/// What is asked of a VCPU, and what it has seen.
#[derive(Default)]
struct Mailbox {
    sent: AtomicU64,
    seen: AtomicU64,
    is_loaded: AtomicBool,
}

/// A VCPU that looks at its mailbox when it is told to, and halts.
struct Reader {
    vm: Arc<Vm>,
    index: u32,
    cpu: Option<u32>,
    mailbox: Arc<Mailbox>,
    looks: u64,
}

impl Runnable for Reader {
    unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), Refused> {
        assert!(
            !self.mailbox.is_loaded.swap(true, SeqCst),
            "it is on two CPUs"
        );
        self.cpu = Some(cpu.index);
        Ok(())
    }

    fn unload(&mut self) -> Result<(), Refused> {
        self.cpu = None;
        assert!(self.mailbox.is_loaded.swap(false, SeqCst), "it is on none");
        Ok(())
    }

    fn run(&mut self, _: HostTicks) -> RunExit {
        let requests = self.vm.requests(self.index);
        requests.set_running_on(self.cpu);
        self.looks = self.looks * 5 % 7 + 1;
        let mut exit = RunExit::Halted;
        for look in 0..self.looks {
            if look > 0 {
                thread::yield_now();
            }
            let taken = requests.take();
            if taken.contains(Requests::EVENT) {
                let sent = self.mailbox.sent.load(SeqCst);
                self.mailbox.seen.store(sent, SeqCst);
            }
            if taken.contains(Requests::YIELD) {
                exit = RunExit::Yielded;
                break;
            }
        }
        requests.set_running_on(None);
        exit
    }

    fn deadline(&self) -> HostTicks {
        HostTicks(u64::MAX)
    }

    fn dump(&self) -> alloc::string::String {
        alloc::string::String::new()
    }
}

/// The loop of [`crate::cpu_loop`], until `stop`.
fn run_cpu(index: u32, scheduler: &Scheduler, stop: &AtomicBool) {
    let tables = HostCpu::without_tables(index);
    let mut loaded: Option<(VcpuId, Arc<VcpuCell>)> = None;
    let release = |loaded: &mut Option<(VcpuId, Arc<VcpuCell>)>| {
        if let Some((id, cell)) = loaded.take() {
            cell.vcpu.lock().unload().unwrap();
            drop(cell);
            scheduler.released(index, id);
        }
    };
    while !stop.load(SeqCst) {
        match scheduler.next(index, host_now(), 0) {
            Decision::Idle { until } => {
                assert_eq!(until, HostTicks(u64::MAX), "no timer may help");
                wait(index);
            }
            Decision::Release(id) => {
                release(&mut loaded);
                scheduler.released(index, id);
            }
            Decision::Run { vcpu: id, .. } => {
                if loaded.as_ref().is_none_or(|(other, _)| *other != id) {
                    release(&mut loaded);
                    let cell = scheduler.cell(id).unwrap();
                    // SAFETY: a reader is on no processor.
                    unsafe { cell.vcpu.lock().load(&tables) }.unwrap();
                    loaded = Some((id, cell));
                }
                let cell = loaded.as_ref().unwrap().1.clone();
                let exit = cell.vcpu.lock().run(HostTicks(u64::MAX));
                if matches!(exit, RunExit::Halted) {
                    scheduler.block(index, &cell, HostTicks(u64::MAX));
                }
            }
        }
    }
    release(&mut loaded);
}

/// Waits until all that was sent has been seen.
fn wait_for_all(mailboxes: &[Vec<Arc<Mailbox>>], round: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    for (vm, mailboxes) in mailboxes.iter().enumerate() {
        for (index, mailbox) in mailboxes.iter().enumerate() {
            while mailbox.seen.load(SeqCst) != mailbox.sent.load(SeqCst) {
                assert!(
                    Instant::now() < deadline,
                    "round {round}: VCPU {index} of VM {vm} sleeps for ever"
                );
                thread::yield_now();
            }
        }
    }
}

/// Sends messages to VCPUs, which look at them and sleep again on CPUs that sleep until they are kicked.
fn messages_are_sent(size: Size) {
    *LINES.lock() = (0..size.cpus).map(|_| Arc::default()).collect();
    let settings = Settings::for_tsc(test_vm::TSC);
    let scheduler = Arc::new(Scheduler::new(settings, size.cpus, raise));
    let mut mailboxes = vec![];
    let mut vms = vec![];
    for id in (0..size.vms).map(VmId) {
        let vm = test_vm::vm(
            id,
            "readers",
            size.vcpus,
            test_vm::ram(64 << 10),
            scheduler.clone(),
            Box::new(test_vm::Written::default()),
        );
        let own: Vec<_> = (0..size.vcpus).map(|_| Arc::<Mailbox>::default()).collect();
        let vcpus = (0..).zip(&own).map(|(index, mailbox)| {
            Box::new(Reader {
                vm: vm.clone(),
                index,
                cpu: None,
                mailbox: mailbox.clone(),
                looks: u64::from(index),
            }) as Box<dyn Runnable>
        });
        let pins = vec![None; size.vcpus as usize];
        scheduler
            .add_vm(&vm, vcpus.collect(), 100, None, &pins)
            .unwrap();
        mailboxes.push(own);
        vms.push(vm);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for cpu in 0..size.cpus {
            let (scheduler, stop) = (&*scheduler, &stop);
            scope.spawn(move || run_cpu(cpu, scheduler, stop));
        }
        // Whatever comes of it, the CPUs come to an end.
        let rounds = scope.spawn(|| {
            for round in 0..size.rounds {
                run_round(size, round, &scheduler, &vms, &mailboxes);
                wait_for_all(&mailboxes, round);
                scheduler.queues.assert_consistent();
            }
            let deadline = Instant::now() + Duration::from_secs(60);
            for id in (0..size.vms).map(VmId) {
                scheduler.stop_vm(id);
                while !scheduler.is_quiescent(id) {
                    assert!(Instant::now() < deadline, "a CPU keeps a VCPU of {id:?}");
                    thread::yield_now();
                }
            }
        });
        let outcome = rounds.join();
        stop.store(true, SeqCst);
        for cpu in 0..size.cpus {
            raise(cpu);
        }
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    for id in (0..size.vms).map(VmId) {
        scheduler.remove_vm(id);
    }
}

/// Sends the messages of a round, while VCPUs are pinned and a VM is paused.
fn run_round(
    size: Size,
    round: u64,
    scheduler: &Scheduler,
    vms: &[Arc<Vm>],
    mailboxes: &[Vec<Arc<Mailbox>>],
) {
    thread::scope(|scope| {
        for sender in 0..size.senders {
            scope.spawn(move || {
                for count in 0..size.messages {
                    let number = (round * 7 + count * 5 + sender * 3) as usize;
                    let (vm, index) = (number % size.vms, number / size.vms % size.vcpus as usize);
                    mailboxes[vm][index].sent.fetch_add(1, SeqCst);
                    vms[vm].request(index as u32, Requests::EVENT);
                }
            });
        }
        let vm = VmId(round as usize % size.vms);
        if size.pins {
            let index = (round / 3 % u64::from(size.vcpus)) as u32;
            let stays = round
                .is_multiple_of(2)
                .then_some((round + 1) as u32 % size.cpus);
            for cpu in [Some(0), None, stays] {
                scheduler.pin(VcpuId { vm, index }, cpu).unwrap();
                thread::yield_now();
            }
        }
        if size.pauses {
            scheduler.set_paused(vm, true);
            thread::yield_now();
            scheduler.set_paused(vm, false);
        }
        // While all that goes on.
        scheduler.queues.assert_consistent();
    });
}

#[test]
fn no_wake_up_is_lost_while_vcpus_block_and_are_moved_and_paused() {
    messages_are_sent(Size {
        cpus: 3,
        vms: 3,
        vcpus: 2,
        rounds: 150,
        senders: 2,
        messages: 20,
        pins: true,
        pauses: true,
    });
}
