//! A VCPU and the suppression in its VM: what it reports, and how it carries out what comes back.
//!
//! A VCPU that is held or parked is out of the guest in the middle of user code, or of a system call.
//! Timers go on, and any interrupt that the guest can take is delivered at once and handled: then the
//! VCPU stays out again, or the guest has switched to somebody else.
#![forbid(unsafe_code)]

use arch::RFlags;
use arch::gpr::RSP;
use devices::lapic::Highest;
use devices::time::HostTicks;
use vmx::addr::GuestVirtAddr;

use super::backend::{GuestCpu, Interruptibility};
use super::{RunExit, Vcpu};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::Paging;
use crate::machine::host_time::host_now;
use crate::suppression::handler::Context;
use crate::suppression::kernel_thread::{self, Thread, UserFrame};
use crate::suppression::{Event, Stay};
use crate::trace;
use crate::vm::requests::{Requests, VcpuRequests};

/// The longest time, in host ticks, for which a VCPU that is held keeps its CPU from others.
const LONGEST_SPIN: u64 = 200_000;

impl<C: GuestCpu> Vcpu<C> {
    /// Tells suppression what has happened at `now`, and carries out what it says.
    pub(super) fn report(&mut self, event: Event, now: HostTicks) {
        let vm = &self.vm;
        let (roots_changed, lookout_begins);
        let (directive, clock_changes) = {
            let mut suppression = vm.suppression.lock();
            suppression.adapt(&self.pace);
            let own_time = core::mem::take(&mut self.observer.own_time);
            suppression.note_own_time(self.index as usize, own_time);
            suppression.note_cpu_time(self.index as usize, self.statistics.cpu_ticks());
            suppression.set_contended(vm.look.is_contended(now));
            let directive = suppression.report(&vm.ram, self.index as usize, event, now);
            roots_changed = vm.roots_changed(suppression.targets());
            if suppression.has_notices() {
                vm.note_notices(&mut suppression, Some(self.index));
            }
            lookout_begins = vm.lookout_begins(&suppression);
            (directive, suppression.clock_is_to_change())
        };
        if lookout_begins {
            vm.suppression_changed();
        } else if roots_changed {
            vm.guard_roots();
        }
        self.observer.reported_at = Some(now);
        vm.look.set(directive.vm_look_at);
        if directive.handler_runs {
            self.watch_resume_point();
        } else {
            self.forget_resume_point();
        }
        if directive.stay != self.observer.directive.stay
            || directive.report_when_interruptible
                != self.observer.directive.report_when_interruptible
        {
            self.pending |= Requests::EVENT;
        }
        self.observer.directive = directive;
        self.observer.directed_at = now;
        let gets_fast = directive.clock.rates.is_fast();
        self.pending
            .set(Requests::FAST_CLOCK, clock_changes && gets_fast);
        if clock_changes && !gets_fast {
            self.follow_suppression();
        }
    }

    /// Has a clock not be fast any more for this VCPU, which has left the guest at `now`, until suppression has been
    /// told what it has done.
    #[inline]
    pub(super) fn stop_fast_clock(&mut self, now: HostTicks) {
        if self.observer.directive.has_fast_clock {
            self.leave_fast_clock(now, true);
        }
    }

    /// Has a clock that other VCPUs see not be fast any more, as [`Vcpu::stop_fast_clock`] does, if a timer is due at
    /// `now`: what it sends mostly ends the turn of a target, and takes a while to be found out and told.
    #[inline]
    pub(super) fn stop_fast_clock_for_timers(&mut self, now: HostTicks) {
        if self.observer.directive.has_fast_clock && self.next_timer() <= now {
            self.leave_fast_clock(now, false);
        }
    }

    /// Has the clock, which is fast for this VCPU's target, not be so any more as of `now`: only if other VCPUs run,
    /// unless it is to be so `alone`.
    // Apart from the exits of those without a target, which come by the callers.
    #[cold]
    fn leave_fast_clock(&mut self, now: HostTicks, alone: bool) {
        if !alone && self.vm.vcpus() == 1 {
            return;
        }
        let changes = {
            let mut suppression = self.vm.suppression.lock();
            if !alone && !suppression.others_run(self.index as usize) {
                return;
            }
            let own_time = core::mem::take(&mut self.observer.own_time);
            suppression.note_own_time(self.index as usize, own_time);
            suppression.stop_fast_clock(self.index as usize, now)
        };
        self.observer.directive.has_fast_clock = false;
        if changes {
            self.follow_suppression();
            // If nothing is told, it is asked whether the clock is to be fast again.
            self.observer.directive.look_at = now;
        }
    }

    /// Tells suppression that the VCPU has a physical CPU, or has lost it: while it waits for one, its
    /// target does not run.
    pub(super) fn note_cpu(&mut self, has_cpu: bool) {
        let now = host_now();
        if self.observer.watching {
            self.note_own_time(now);
        }
        let event = if has_cpu {
            Event::OnCpu(self.context())
        } else {
            Event::OffCpu
        };
        self.observer.on_cpu = has_cpu;
        self.report(event, now);
    }

    /// Notes that what has been reported since the guest was left has taken until `now`.
    #[inline]
    pub(super) fn note_own_time(&mut self, now: HostTicks) {
        if let Some(since) = self.observer.reported_at.take() {
            self.observer.own_time = now.since(since);
            self.observer.suppression_time += self.observer.own_time;
        }
    }

    /// Returns how long the last stay in the guest was that ended at `at`, in ticks.
    pub(super) fn stay(&self, at: HostTicks) -> u64 {
        at.since(self.observer.entered_at)
    }

    /// Returns the ticks for which exits have taken that were reported, from each to the next entry, since the last call.
    pub(crate) const fn take_suppression_time(&mut self) -> u64 {
        core::mem::replace(&mut self.observer.suppression_time, 0)
    }

    /// Returns when the guest is to be looked at again, whatever it does.
    #[inline]
    pub(super) fn next_observation(&self) -> HostTicks {
        if !self.observer.watching {
            return HostTicks(u64::MAX);
        }
        let wanted = self.observer.directive.look_at.min(self.vm.look.at());
        match self.let_through_until() {
            Some(until) => wanted.min(until),
            None => wanted,
        }
    }

    /// Returns when the guest's first timer is to end its stay.
    #[inline]
    pub(super) fn next_timer(&self) -> HostTicks {
        self.time.deadline.max(self.observer.directive.timers_from)
    }

    /// Returns where the VCPU is.
    pub(super) fn context(&self) -> Context {
        Context {
            user_mode: self.cpu.cpl() == 3,
            interruptible: self.takes_interrupts(),
            rsp: self.cpu.gpr(RSP),
        }
    }

    /// Returns whether the guest can take an interrupt.
    fn takes_interrupts(&self) -> bool {
        self.cpu.rflags() & RFlags::INTERRUPT_FLAG.bits() != 0
            && !self
                .cpu
                .interruptibility()
                .intersects(Interruptibility::SHADOW)
    }

    /// Returns whether the next entry delivers something else first.
    fn is_delivering(&self) -> bool {
        self.cpu.is_injecting()
            || self.events.exception.is_some()
            || self.events.interrupted.is_some()
            || self.cpu.has_pending_debug_exception()
    }

    /// Tells of an interrupt that the next entry delivers where a target may run, as of `now`; `highest`
    /// are the LAPIC's vectors. Returns whether the
    /// guest is to come out when it can take interrupts: that is when its interrupt will be delivered, or
    /// suppression wants to know.
    pub(super) fn prepare_interrupt(&mut self, highest: Highest, now: HostTicks) -> bool {
        let interrupt = self.lapic.pending_of(highest).is_some();
        if (interrupt || highest.requested != 0)
            && core::mem::take(&mut self.observer.timer_expired)
        {
            self.trace(trace::Event::Timer);
        }
        let directive = &self.observer.directive;
        if !directive.target_in && !directive.target_hidden {
            // A new program may be about to take interrupts.
            return directive.exchanged_at.is_some();
        }
        let nmi = self.lapic.nmi_pending()
            && !self
                .cpu
                .interruptibility()
                .contains(Interruptibility::BLOCKED_BY_NMI);
        // The frame that counts is the outermost.
        if (nmi || interrupt) && !directive.handler_runs && !self.is_delivering() {
            let context = self.context();
            if context.interruptible || nmi {
                let thread = if directive.knows_thread(self.stay(now)) {
                    Thread::Unknown
                } else {
                    self.kernel_thread()
                };
                self.report(Event::Interrupted(context, thread), now);
                return self.observer.directive.report_when_interruptible && !interrupt;
            }
            return true;
        }
        directive.report_when_interruptible
    }

    /// Returns whose thread runs, if it is in the kernel.
    pub(super) fn kernel_thread(&self) -> Thread {
        if self.cpu.cpl() == 3 {
            return Thread::User;
        }
        if !self.cpu.in_64_bit_mode() {
            return Thread::Unknown;
        }
        self.with_stack(|rsp, bits, read| kernel_thread::owner(rsp, bits, read))
    }

    /// Returns whether the thread that runs in the kernel will go back to the very point in user mode at
    /// which the interrupt came that is being handled.
    pub(super) fn is_not_resumed(&self) -> bool {
        let Some((rip, rsp)) = self.resume_point.in_user_mode() else {
            return false;
        };
        self.cpu.cpl() != 3
            && self.cpu.in_64_bit_mode()
            && self.with_stack(|top, bits, read| kernel_thread::user_frame(top, bits, read))
                == Some(UserFrame { rip, rsp })
    }

    /// Calls `search` with the stack pointer, the number of bits of linear addresses, and what reads the
    /// guest's linear memory.
    fn with_stack<R>(
        &self,
        search: impl FnOnce(u64, u32, &dyn Fn(u64, &mut [u8]) -> bool) -> R,
    ) -> R {
        let paging = Paging::new(&self.cpu);
        let ram = &self.vm.ram;
        search(
            self.cpu.gpr(RSP),
            paging.linear_address_bits(),
            &|address, buffer| {
                paging
                    .peek(ram, GuestVirtAddr(address))
                    .is_some_and(|address| ram.read(address, buffer).is_ok())
            },
        )
    }

    /// Returns whether suppression keeps the VCPU out of the guest. What is about to be delivered,
    /// the guest has to handle first.
    #[inline]
    pub(super) fn is_kept_out(&self) -> bool {
        self.observer.directive.stay != Stay::Run && !self.cpu.is_injecting()
    }

    /// Stays out of the guest as suppression says, until `until` at the latest. Returns how the VCPU
    /// comes off its CPU, or `None` if it is to look whether it may go on.
    pub(super) fn stay_out(
        &mut self,
        until: HostTicks,
        requests: &VcpuRequests,
    ) -> Option<RunExit> {
        let now = host_now();
        // Nobody runs meanwhile.
        self.observer.sampled_at = now;
        self.pending |= Requests::TIMERS;
        let end = match self.observer.directive.stay {
            Stay::Run => return None,
            Stay::Hold => self.next_observation(),
            Stay::Park(end) => end.min(self.observer.directive.look_at),
        };
        if now >= end {
            self.report(Event::Time, now);
            return None;
        }
        let first = end.min(self.next_timer());
        let is_long = first.since(now) > LONGEST_SPIN;
        if self.observer.directive.stay != Stay::Hold || is_long {
            return (now < first).then_some(RunExit::Delayed(first));
        }
        while host_now() < first.min(until) && !requests.are_pending() {
            self.cpu.pause();
        }
        (host_now() >= until).then_some(RunExit::Preempted)
    }
}

#[cfg(test)]
mod tests;
