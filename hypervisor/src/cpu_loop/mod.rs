//! What each physical CPU does all day: ask the scheduler what to run, run it, say what came of
//! it. The boot CPU looks after the console and the VMs besides.

mod tenants;
mod wake_latency;

use alloc::sync::Arc;

use devices::time::HostTicks;

use crate::ids::VcpuId;
use crate::machine::fatal::fatal;
use crate::machine::host_time::host_now;
use crate::machine::host_timer::HostTimer;
use crate::machine::smp::{self, kick};
use crate::machine::speculation::Remedies;
use crate::machine::{line_interrupts, paging, power, serial};
use crate::manager::VmManager;
use crate::operator::Session;
use crate::options::OnEnd;
use crate::scheduler::{Decision, Scheduler, VcpuCell};
use crate::vcpu::{HostCpu, RunExit};
use crate::vm::requests::{Requests, VcpuRequests};
use tenants::Tenants;
use wake_latency::WakeLatency;

/// The number of times a second that the operator's session is looked after: its line's FIFO of 16 bytes fills, or empties,
/// in 1.4 ms.
const POLLS_PER_SECOND: u64 = 1000;
/// The same where the line interrupts when something comes in, and nothing goes on: VMs come to their end, and others have
/// something to tell. Not so much less that a VM here notices when others print: each look takes some 1,700 ticks of it.
const IDLE_POLLS_PER_SECOND: u64 = 600;

/// The time for which another VM that has waited for a CPU is taken to want it, as a divisor of a
/// second: a tenth.
const CONTENTION_PER_SECOND: u64 = 10;

/// The loop of one physical CPU.
pub(crate) struct CpuLoop {
    tables: HostCpu,
    manager: &'static VmManager,
    scheduler: Arc<Scheduler>,
    on_end: OnEnd,
    timer: HostTimer,
    /// The measures that keep VMs from each other's traces in this processor.
    remedies: Remedies,
    tenants: Tenants,
    /// The time that it takes this CPU to wake.
    wake_latency: WakeLatency,
    /// The time until which it has slept, when it has done nothing since.
    slept_until: Option<HostTicks>,
    /// The VCPU whose state is in the processor.
    loaded: Option<(VcpuId, Arc<VcpuCell>)>,
    /// The operator's session, on the boot CPU.
    session: Option<Session>,
    /// The time at which the session is to be looked after next; the end of time on other CPUs.
    next_poll: HostTicks,
    polled_at: HostTicks,
    poll_interval: u64,
    /// The same while nothing goes on in the session.
    idle_poll_interval: u64,
}

/// The CPU comes back from the VCPU that it runs. One that does not run is not asked for anything: who wakes it would
/// take it to have been woken.
impl line_interrupts::Listener for VcpuRequests {
    fn something_came(&self) {
        if self.running_on().is_some() {
            self.make(Requests::YIELD);
        }
    }
}

impl CpuLoop {
    /// Makes the loop of the CPU that `tables` describe, with its timer. `remedies` keep VMs from each
    /// other's traces. The boot CPU has the operator's session; `lines_interrupt` when something comes in for that.
    #[must_use]
    pub(crate) fn new(
        tables: HostCpu,
        manager: &'static VmManager,
        on_end: OnEnd,
        timer: HostTimer,
        remedies: Remedies,
        session: Option<Session>,
        lines_interrupt: bool,
    ) -> Self {
        let idle_polls = if lines_interrupt {
            IDLE_POLLS_PER_SECOND
        } else {
            POLLS_PER_SECOND
        };
        Self {
            tables,
            manager,
            scheduler: manager.scheduler().clone(),
            on_end,
            next_poll: if session.is_some() {
                host_now()
            } else {
                HostTicks(u64::MAX)
            },
            session,
            polled_at: HostTicks(0),
            poll_interval: timer.tsc().get() / POLLS_PER_SECOND,
            idle_poll_interval: timer.tsc().get() / idle_polls,
            wake_latency: WakeLatency::new(timer.tsc()),
            slept_until: None,
            timer,
            remedies,
            tenants: Tenants::default(),
            loaded: None,
        }
    }

    /// Runs for ever.
    ///
    /// # Safety
    /// The tables are those of the CPU that runs this, which is in VMX operation with
    /// interrupts off, has no VCPU loaded, and can do what the remedies ask for.
    pub(crate) unsafe fn run(mut self) -> ! {
        loop {
            kick::begin_to_look();
            let now = host_now();
            if self.session.is_some() && line_interrupts::take() {
                // No more often than without interrupts, whatever comes.
                let soon = self.polled_at.saturating_add(self.poll_interval);
                self.next_poll = self.next_poll.min(soon);
            }
            if now >= self.next_poll {
                self.poll(now);
                if self.manager.has_work() {
                    self.work();
                }
            }
            let lead = self.wake_latency.ticks();
            match self.scheduler.next(self.tables.index, now, lead) {
                Decision::Run {
                    vcpu,
                    until,
                    contended,
                    not_before,
                } => self.run_vcpu(vcpu, until, contended.then_some(now), not_before),
                Decision::Release(vcpu) => {
                    self.release();
                    // Also if it had gone before.
                    self.scheduler.released(self.tables.index, vcpu);
                }
                Decision::Idle { until } => {
                    let until = until.min(self.next_poll);
                    self.slept_until = (until > host_now()).then_some(until);
                    self.timer.sleep_until(until);
                }
            }
        }
    }

    /// Looks after the operator's session.
    // Apart from what a wake-up goes through.
    #[cold]
    fn poll(&mut self, now: HostTicks) {
        self.slept_until = None;
        self.tenants.mix();
        if let Some(session) = &mut self.session
            && session.poll(self.manager).is_break()
        {
            power_off();
        }
        if self.loaded.is_none() {
            paging::leave_windows();
        }
        let goes_on = self.manager.has_work()
            || self
                .session
                .as_ref()
                .is_some_and(|session| session.goes_on(self.manager));
        let interval = if goes_on {
            self.poll_interval
        } else {
            self.idle_poll_interval
        };
        self.polled_at = now;
        self.next_poll = now.saturating_add(interval);
    }

    /// Looks after the VMs that are to be made or cleared away.
    fn work(&mut self) {
        // Making a VM needs a processor without a VCPU.
        self.release();
        self.manager.work();
        if self.on_end == OnEnd::PowerOff && self.manager.all_stopped() {
            if let Some(session) = &mut self.session {
                session.report_stops(self.manager);
            }
            power_off();
        }
    }

    /// Runs a VCPU, from `not_before` on, until the scheduler has to be asked again. `contended` tells
    /// when another VM was seen to wait for this CPU, if one was.
    fn run_vcpu(
        &mut self,
        target: VcpuId,
        until: HostTicks,
        contended: Option<HostTicks>,
        not_before: HostTicks,
    ) {
        let Some(cell) = self.switch_to(target) else {
            return;
        };
        if let Some(slept_until) = self.slept_until.take() {
            self.wake_latency.note(slept_until, host_now());
        }
        if let Some(now) = contended {
            let memory = self.poll_interval * POLLS_PER_SECOND / CONTENTION_PER_SECOND;
            cell.vm().look.note_contention(now.saturating_add(memory));
        }
        // No longer than the lead; and if somebody wants it or the CPU, not at all.
        while host_now() < not_before && !cell.requests().are_pending() {
            core::hint::spin_loop();
        }
        loop {
            if self.tenants.take_mixed() {
                // SAFETY: by the contract of `run`.
                unsafe { self.remedies.forget_data() };
            }
            // Locked for each turn only: what others ask of it is looked at in between.
            let mut vcpu = cell.vcpu.lock();
            let exit = vcpu.run(until.min(self.next_poll));
            let suppression_time = vcpu.take_suppression_time();
            if suppression_time > 0 {
                // Who pays for it is not the customer whose VM it is done to.
                self.scheduler.waive(self.tables.index, suppression_time);
            }
            match exit {
                RunExit::Preempted => {}
                RunExit::Yielded => return,
                RunExit::Loaded => self.manager.loaded(target.vm),
                RunExit::Halted => {
                    let wake_at = vcpu.deadline();
                    drop(vcpu);
                    self.scheduler.block(self.tables.index, &cell, wake_at);
                    return;
                }
                RunExit::Delayed(until) => {
                    drop(vcpu);
                    self.scheduler.block(self.tables.index, &cell, until);
                    return;
                }
                RunExit::Stopped(reason) => {
                    self.manager.ended(target, reason, || vcpu.dump());
                    drop(vcpu);
                    self.scheduler
                        .block(self.tables.index, &cell, HostTicks(u64::MAX));
                    return;
                }
            }
            drop(vcpu);
            let now = host_now();
            if now >= self.next_poll {
                self.poll(now);
                if self.manager.has_work() {
                    // Not before the loop's next round: the VCPU is ours here.
                    self.next_poll = now;
                    return;
                }
            }
            if now >= until {
                return;
            }
        }
    }

    /// Puts the VCPU `target` into this processor, if it is not there already.
    fn switch_to(&mut self, target: VcpuId) -> Option<Arc<VcpuCell>> {
        if let Some((loaded, cell)) = &self.loaded
            && *loaded == target
        {
            return Some(cell.clone());
        }
        self.release();
        let cell = self.scheduler.cell(target)?;
        // SAFETY: the tables are this CPU's, which is in VMX operation, by the contract of
        // `run`; what was loaded has just been released.
        if unsafe { cell.vcpu.lock().load(&self.tables) }.is_err() {
            refuses_vmcs()
        }
        if self.tenants.turn_to(target.vm) {
            // SAFETY: by the contract of `run`.
            unsafe { self.remedies.forget_branches() };
        }
        smp::note_task(self.tables.index, Some(target));
        if self.session.is_some() {
            // SAFETY: the cell is kept until `release`.
            unsafe { line_interrupts::listen(cell.requests()) };
        }
        self.loaded = Some((target, cell.clone()));
        Some(cell)
    }

    /// Takes the VCPU out of this processor, if there is one.
    fn release(&mut self) {
        if let Some((target, cell)) = self.loaded.take() {
            let unloaded = cell.vcpu.lock().unload();
            if unloaded.is_err() {
                refuses_vmcs()
            }
            smp::note_task(self.tables.index, None);
            if self.session.is_some() {
                line_interrupts::stop_listening();
            }
            // Before others know that it may go elsewhere, or away.
            drop(cell);
            paging::leave_windows();
            self.scheduler.released(self.tables.index, target);
        }
    }
}

fn power_off() -> ! {
    serial::flush();
    serial::DETECTORS.flush();
    power::off()
}

fn refuses_vmcs() -> ! {
    fatal(format_args!(
        "the processor refuses a VMCS: a bug of tarpit's"
    ))
}
