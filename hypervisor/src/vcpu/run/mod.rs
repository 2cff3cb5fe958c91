//! The loop: into the guest, out, handle, again.

use core::convert::Infallible;

use devices::chipset::PowerRequest;
use devices::lapic::LocalPin;
use devices::time::HostTicks;

use super::backend::GuestCpu;
use super::{Activity, StopReason, Vcpu};
use crate::machine::host_time::host_now;
use crate::suppression::Stay;
use crate::vm::requests::{Requests, VcpuRequests};

/// The reason why a VCPU comes off its CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RunExit {
    /// The end of its time.
    Preempted,
    /// A request that its CPU ask the scheduler.
    Yielded,
    /// A halt: it waits for an event.
    Halted,
    /// A delay until then, whatever its guest would like to do.
    Delayed(HostTicks),
    /// The end of loading: the guest is to be entered for the first time.
    Loaded,
    /// The end of its VM.
    Stopped(StopReason),
}

impl From<StopReason> for RunExit {
    fn from(reason: StopReason) -> Self {
        Self::Stopped(reason)
    }
}

/// The requests that are made seldom: apart from those on the way of every wake-up.
const SELDOM: Requests = Requests::SUPPRESSION
    .union(Requests::INPUT)
    .union(Requests::REGISTERS)
    .union(Requests::ROOT);

impl<C: GuestCpu> Vcpu<C> {
    /// Runs the guest until host time `until`, or until it halts or ends. The VCPU is loaded
    /// on this CPU and not halted.
    pub(crate) fn run(&mut self, until: HostTicks) -> RunExit {
        let vm = self.vm.clone();
        let requests = vm.requests(self.index);
        requests.set_running_on(self.residence.cpu);
        vm.look.set_sleeper(self.index, None);
        if !self.observer.on_cpu {
            self.note_cpu(true);
        }
        // What has changed since the last time was not followed: the clock above all.
        self.pending |= Requests::EVENT | Requests::TIMERS | Requests::CLOCK | Requests::MEMORY;
        let Err(exit) = self.run_guest(until, requests);
        self.statistics.end_exit(host_now());
        let runs_on = match self.observer.directive.stay {
            Stay::Run => true,
            // It is held by the clock, which goes on while it waits, but not while the CPU does something else.
            Stay::Hold => !matches!(exit, RunExit::Delayed(_)),
            Stay::Park(_) => false,
        };
        if self.observer.directive.target_in && runs_on {
            // Whatever the CPU does now, it does not run the target: the clock is not to be fast.
            self.note_cpu(false);
        }
        if self.observer.watching && matches!(exit, RunExit::Halted | RunExit::Delayed(_)) {
            vm.look.set_sleeper(self.index, self.time.next_timer);
        }
        requests.set_running_on(None);
        self.statistics.set_exit_cost(self.pace.exit_cost());
        if let Some(published) = self.vm.statistics.get(self.index as usize) {
            published.lock().clone_from(&self.statistics);
        }
        exit
    }

    /// Prepares the entry, enters, and handles the exit, over and over.
    ///
    /// # Errors
    /// There is no other way out: why the VCPU comes off its CPU.
    fn run_guest(
        &mut self,
        until: HostTicks,
        requests: &VcpuRequests,
    ) -> Result<Infallible, RunExit> {
        let mut left_guest_at = host_now();
        self.statistics.resume(left_guest_at);
        self.load_guest(until, requests)?;
        loop {
            let now = self.prepare_entry(left_guest_at, until, requests)?;
            self.statistics.end_exit(now);
            // SAFETY: the VCPU is loaded on this CPU, whose interrupts are off.
            unsafe { self.cpu.enter() }.map_err(StopReason::EntryRefused)?;
            left_guest_at = host_now();
            requests.note_clock_use(left_guest_at);
            let reason = self.cpu.exit_reason();
            let stay = self.statistics.count_exit(reason.number(), left_guest_at);
            self.pace.note_stay(stay);
            self.note_interrupted_delivery();
            self.handle(reason, left_guest_at)?;
            self.observe(left_guest_at);
        }
    }

    /// Brings everything up to date that an entry depends on: what was requested, and how long the
    /// guest may stay. Returns the host time right before the entry. The last exit, or the beginning
    /// of the VCPU's time on this CPU, was at `since`.
    ///
    /// # Errors
    /// If the VCPU is to come off its CPU instead.
    #[inline]
    fn prepare_entry(
        &mut self,
        mut since: HostTicks,
        until: HostTicks,
        requests: &VcpuRequests,
    ) -> Result<HostTicks, RunExit> {
        // Whether deadlines that passed have been seen to.
        let mut timers_served = false;
        loop {
            while !self.pending.is_empty() {
                self.process_requests(since, requests)?;
            }
            if self.activity != Activity::Running {
                self.update_deadline_of_halt(since);
                return Err(RunExit::Halted);
            }
            if self.is_kept_out() {
                let now = host_now();
                if now >= self.next_timer() && !timers_served {
                    // What it sends may let it run, or be what the clock is fast for. It has come due since the exit.
                    timers_served = true;
                    self.pending |= Requests::TIMERS;
                    since = now;
                    continue;
                }
                // Time that it is kept out is no exit's.
                self.statistics.end_exit(host_now());
                let exit = self.stay_out(until, requests);
                since = host_now();
                self.statistics.resume(since);
                match exit {
                    Some(exit) => return Err(exit),
                    None => continue,
                }
            }
            let now = host_now();
            let mut limit = self.next_timer().min(until);
            if now >= limit {
                if now >= until {
                    return Err(RunExit::Preempted);
                }
                if !timers_served {
                    timers_served = true;
                    self.pending |= Requests::TIMERS;
                    // No later than it has to be: a clock that is fast has gone on since the exit, for nobody.
                    if self.next_timer() > since {
                        since = now;
                    }
                    continue;
                }
                // A timer's next deadline passes while the one before it is seen to. The guest comes
                // first now, or it would never get on, however large its share of the CPU.
                limit = now.saturating_add(self.pace.least_stay()).min(until);
            }
            self.limit_stay(now, limit);
            // No request is pending when it enters the guest. A kick for one that is made from now on finds the
            // limit set, and cuts it short; before, that would have been written over.
            if !requests.are_pending() {
                return Ok(now);
            }
            // VCPUs on other CPUs may make requests on and on, but its time is over when it is.
            self.pending |= requests.take();
        }
    }

    /// Has the guest, which is entered at `now`, leave at `limit`, or when it is to be observed, whichever
    /// is first.
    #[inline]
    fn limit_stay(&mut self, now: HostTicks, limit: HostTicks) {
        let limit = if self.observer.watching {
            self.limit_of_observed_stay(now, limit)
        } else {
            limit
        };
        self.stay_limit = limit;
        self.cpu.set_time_limit(limit.since(now));
    }

    /// Returns when a stay is to end that is observed, which begins at `now` and is to end at `limit`.
    // Apart from the stays of those without a target.
    #[cold]
    fn limit_of_observed_stay(&mut self, now: HostTicks, limit: HostTicks) -> HostTicks {
        self.note_own_time(now);
        self.observer.entered_at = now;
        let undisturbed = now.saturating_add(self.pace.least_run());
        let observation = self.next_observation().max(undisturbed);
        let end = self.observer.directive.stop_at;
        limit.min(observation).min(end)
    }

    /// Does what this VCPU and others have asked for: follows the clock, the memory map and what is
    /// suppressed, lets timers expire, takes incoming interrupts in and prepares events for the entry.
    ///
    /// # Errors
    /// If the VCPU is to come off its CPU.
    pub(super) fn process_requests(
        &mut self,
        now: HostTicks,
        requests: &VcpuRequests,
    ) -> Result<(), RunExit> {
        let mut wanted = core::mem::replace(&mut self.pending, Requests::empty()) | requests.take();
        if wanted.contains(Requests::CLOCK) && self.follow_clock() {
            // Another VCPU has changed it: timers are due at other host times, and what this one is
            // to do may be different.
            wanted |= Requests::TIMERS;
            self.observer.directive.look_at = now;
        }
        if wanted.contains(Requests::MEMORY) {
            self.follow_memory_map();
        }
        if wanted.intersects(SELDOM) {
            wanted |= self.process_seldom_requests(wanted, now);
        }
        if wanted.contains(Requests::TIMERS) {
            self.stop_fast_clock_for_timers(now);
        }
        self.observer.timer_expired = wanted.contains(Requests::TIMERS) && self.update_timers(now);
        if self.observer.timer_expired || wanted.contains(Requests::EVENT) {
            // Timers send interrupts, which are looked at now.
            requests.clear(Requests::EVENT);
            self.process_events(now)?;
        }
        if wanted.contains(Requests::FAST_CLOCK) {
            // As late as can be: what is done before is not to pass at a fast rate.
            if self.pending.is_empty() {
                self.follow_suppression();
            } else {
                self.pending |= Requests::FAST_CLOCK;
            }
        }
        if wanted.contains(Requests::YIELD) {
            return Err(RunExit::Yielded);
        }
        if self.waits_for_line {
            self.waits_for_line = !self.vm.output.has_room();
            if self.waits_for_line {
                let delay = self.vm.output.delay();
                return Err(RunExit::Delayed(now.saturating_add(delay)));
            }
        }
        Ok(())
    }

    /// Does what is seldom asked for. Returns what is to be done as well.
    #[cold]
    fn process_seldom_requests(&mut self, wanted: Requests, now: HostTicks) -> Requests {
        let mut more = Requests::empty();
        if wanted.contains(Requests::SUPPRESSION) {
            self.follow(now);
        }
        if wanted.contains(Requests::INPUT) {
            self.vm
                .with_chipset(now, |chipset, env| chipset.pci_input_arrived(env));
            // The devices take it in as if a timer had expired.
            more |= Requests::TIMERS;
        }
        if wanted.contains(Requests::REGISTERS) {
            self.copy_registers();
        }
        if wanted.contains(Requests::ROOT) {
            self.observer.sample_due = true;
            self.observe(now);
        }
        more
    }

    /// Takes in what the local APIC and the board have for the guest: messages of INIT and start-up,
    /// interrupts, and the guest's wish for its power to be switched.
    ///
    /// # Errors
    /// If the VM stops.
    fn process_events(&mut self, now: HostTicks) -> Result<(), StopReason> {
        self.lapic
            .set_pin(LocalPin::Lint0, self.index == 0 && self.vm.pic_output());
        self.lapic.accept_incoming();
        if self.lapic.reset_pending() {
            self.handle_reset(now)?;
        }
        let highest = self.lapic.highest();
        if self.activity == Activity::Halted && self.wakes(highest) {
            self.activity = Activity::Running;
            self.note_wake(now);
        }
        if self.activity == Activity::Running {
            let wants_window = self.prepare_interrupt(highest, now);
            self.prepare_events(highest, wants_window);
        }
        match self.vm.take_power_request() {
            None => Ok(()),
            Some(PowerRequest::Off) => Err(StopReason::PowerOff),
            Some(PowerRequest::Reset) => Err(StopReason::Reset),
            Some(PowerRequest::DebugExit(code)) => Err(StopReason::DebugExit(code)),
        }
    }
}

#[cfg(test)]
mod tests;
