//! The loop: into the guest, out, handle, again.

use core::sync::atomic::Ordering;

use devices::time::HostTicks;

use super::backend::GuestCpu;
use super::{Activity, StopReason, Vcpu};
use crate::machine::host_time::host_now;
use crate::suppression::Stay;
use crate::vm::requests::{Requests, VcpuRequests};

/// Why a VCPU comes off its CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunExit {
    /// Its time is over.
    Preempted,
    /// Somebody wants its CPU to ask the scheduler.
    Yielded,
    /// It waits for an event.
    Halted,
    /// It is to wait until then, whatever its guest would like to do.
    Delayed(HostTicks),
    /// The guest has been loaded, and is to be entered for the first time.
    Loaded,
    /// Its VM has ended.
    Stopped(StopReason),
}

impl<C: GuestCpu> Vcpu<C> {
    /// Runs the guest until host time `until`, or until it halts or ends. The VCPU is loaded
    /// on this CPU and not halted.
    pub fn run(&mut self, until: HostTicks) -> RunExit {
        let vm = self.vm.clone();
        let requests = vm.requests(self.index);
        requests.set_running_on(self.host_cpu);
        vm.look.set_sleeper(self.index, None);
        if !self.observer.on_cpu {
            self.note_cpu(true);
        }
        // What has changed since the last time was not followed: the clock above all.
        self.attention = true;
        let exit = match self.run_until(until, requests) {
            Ok(exit) => exit,
            Err(reason) => RunExit::Stopped(reason),
        };
        if self.observer.directive.target_in && self.observer.directive.stay == Stay::Run {
            // Whatever the CPU does now, it does not run the target: the clock is not to be fast.
            self.note_cpu(false);
        }
        if self.observer.watching && matches!(exit, RunExit::Halted | RunExit::Delayed(_)) {
            vm.look.set_sleeper(self.index, self.next_timer);
        }
        requests.set_running_on(None);
        if let Some(published) = self.vm.statistics.get(self.index as usize) {
            published.lock().clone_from(&self.statistics);
        }
        exit
    }

    fn run_until(
        &mut self,
        until: HostTicks,
        requests: &VcpuRequests,
    ) -> Result<RunExit, StopReason> {
        if self.loading.is_some()
            && let Some(exit) = self.go_on_loading(until, requests)?
        {
            return Ok(exit);
        }
        let mut left_guest_at = host_now();
        // Whether deadlines that passed have been seen to since the guest ran last.
        let mut timers_served = false;
        loop {
            // No request is pending when it enters the guest: the next one kicks it out.
            while self.attention || requests.are_pending() {
                if let Some(exit) = self.attend(left_guest_at, requests)? {
                    return Ok(exit);
                }
                // VCPUs on other CPUs may make requests on and on, but its time is over when it is.
                if requests.are_pending() && host_now() >= until {
                    return Ok(RunExit::Preempted);
                }
            }
            if self.activity != Activity::Running {
                self.update_deadline_of_halt(left_guest_at);
                return Ok(RunExit::Halted);
            }
            if self.is_kept_out() {
                if let Some(exit) = self.stay_out(until, requests) {
                    return Ok(exit);
                }
                left_guest_at = host_now();
                continue;
            }
            let now = host_now();
            if now >= until {
                return Ok(RunExit::Preempted);
            }
            let mut limit = self.next_timer().min(until);
            if now >= limit {
                if !timers_served {
                    timers_served = true;
                    self.attention = true;
                    left_guest_at = now;
                    continue;
                }
                // A timer's next deadline passes while the one before it is seen to. The guest
                // comes first now, or it would never get on, however large its share of the CPU.
                limit = now.saturating_add(self.pace.least_stay());
            }
            timers_served = false;
            let undisturbed = now.saturating_add(self.pace.least_run());
            let look = self.next_observation().max(undisturbed);
            let limit = limit.min(look);
            self.cpu.set_time_limit(limit.since(now));
            self.look_at = limit;
            let entered_at = now;
            if core::mem::take(&mut self.observer.reported) {
                self.observer.own_time = now.since(left_guest_at);
            }
            // SAFETY: the VCPU is loaded on this CPU, whose interrupts are off.
            unsafe { self.cpu.enter() }.map_err(StopReason::EntryRefused)?;
            left_guest_at = host_now();
            let reason = self.cpu.exit_reason();
            let stay = left_guest_at.since(entered_at);
            self.pace.note_stay(stay);
            self.statistics.count_exit(reason.number(), stay);
            self.note_interrupted_delivery();
            self.handle(reason, left_guest_at)?;
            self.observe(left_guest_at);
            self.statistics
                .add_root_ticks(reason.number(), host_now().since(left_guest_at));
            if self.activity != Activity::Running {
                // An event may be pending already: HLT ends at once then.
                self.attention = true;
            }
        }
    }

    /// Brings everything that an entry depends on up to date: clock, memory map, timers,
    /// messages, events. Tells if the VCPU is to leave its CPU, and why.
    fn attend(
        &mut self,
        now: HostTicks,
        requests: &VcpuRequests,
    ) -> Result<Option<RunExit>, StopReason> {
        self.attention = false;
        let taken = requests.take();
        if self.clock_seen != self.vm.clock_gate().state() {
            self.follow_clock();
            // Another VCPU has changed it: what this one is to do may be different now.
            self.observer.directive.look_at = now;
        }
        if self.memory_seen != self.vm.memory_map.generation() {
            self.flush_memory_map();
        }
        self.update_timers(now);
        // Timers send interrupts, which are looked at now.
        requests.clear(Requests::EVENT);
        self.lapic.set_pin(
            devices::lapic::LocalPin::Lint0,
            self.index == 0 && self.vm.pic_output(),
        );
        self.lapic.accept_incoming();
        if self.lapic.reset_pending() {
            self.handle_reset(now)?;
        }
        if taken.contains(Requests::SUPPRESSION) {
            let generation = self.vm.suppression_generation.load(Ordering::Acquire);
            self.follow(now, generation);
        }
        if self.activity == Activity::Halted && self.wakes() {
            self.activity = Activity::Running;
            self.note_wake(now);
        }
        if self.activity == Activity::Running {
            let wants_window = self.prepare_interrupt();
            self.prepare_events(wants_window);
        }
        if let Some(request) = self.vm.take_power_request() {
            use devices::chipset::PowerRequest;
            return Err(match request {
                PowerRequest::Off => StopReason::PowerOff,
                PowerRequest::Reset => StopReason::Reset,
                PowerRequest::DebugExit(code) => StopReason::DebugExit(code),
            });
        }
        if taken.contains(Requests::YIELD) {
            return Ok(Some(RunExit::Yielded));
        }
        if self.waits_for_line {
            self.waits_for_line = !self.vm.output.has_room();
            if self.waits_for_line {
                let delay = self.vm.output.delay();
                return Ok(Some(RunExit::Delayed(now.saturating_add(delay))));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
