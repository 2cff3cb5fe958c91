//! What a VCPU tells of its address space, and the one place where suppression acts on it.
//!
//! Without targets nothing here makes the guest exit: CR3 is sampled at timer exits and HLT,
//! which happen anyway, for the process list. With targets, loads of CR3 exit, except between
//! the roots of a target that runs. Tracing makes them exit even without targets.

use core::sync::atomic::Ordering;

use devices::clock::Rates;
use devices::time::HostTicks;

use super::backend::GuestCpu;
use super::{Activity, Vcpu};
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::policy::Decision;
use crate::suppression::watch::Observation;
use crate::trace::Event;

/// CR3 values between which a running target may switch without an exit.
const EXEMPT: usize = 4;

/// What a VCPU remembers between observations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observer {
    /// When the last sample for the process list was taken.
    sampled_at: HostTicks,
    /// The root that ran then.
    sampled_root: Option<Root>,
    /// CR3 at the last observation.
    cr3: u64,
    /// The state of the VM's targets at the last observation.
    generation: u32,
    /// Whether loads of CR3 exit.
    watching: bool,
    /// The operands of MOV to CR3 with which a target came in, bit 63 and PCID included.
    exempt: [u64; EXEMPT],
    exempt_count: usize,
    next_exempt: usize,
    /// The operand of the MOV to CR3 that has exited since the last observation.
    pub(super) loaded_cr3: Option<u64>,
    /// The guest computes or has halted: a time to see which process has been running.
    pub(super) sample_due: bool,
    /// The VCPU was last seen halted.
    halted: bool,
    /// The rates of the VM's clock, as it was last applied.
    pub(super) rates: Rates,
    /// A target is taken to run.
    target_in: bool,
    /// When the decision is to be looked at again.
    reconsider_at: HostTicks,
    /// A timer of the guest's expired when the timers were last looked at.
    pub(super) timer_expired: bool,
    /// The root that the trace was last told of.
    traced_root: Option<Root>,
}

impl Observer {
    pub(super) const fn new(now: HostTicks) -> Self {
        Self {
            sampled_at: now,
            sampled_root: None,
            cr3: 0,
            generation: 0,
            watching: false,
            exempt: [0; EXEMPT],
            exempt_count: 0,
            next_exempt: 0,
            loaded_cr3: None,
            sample_due: false,
            halted: false,
            rates: Rates::REAL_TIME,
            target_in: false,
            reconsider_at: HostTicks(u64::MAX),
            timer_expired: false,
            traced_root: None,
        }
    }

    fn add_exempt(&mut self, operand: u64) {
        if self.exempt[..self.exempt_count].contains(&operand) {
            return;
        }
        self.exempt[self.next_exempt] = operand;
        self.next_exempt = (self.next_exempt + 1) % EXEMPT;
        self.exempt_count = (self.exempt_count + 1).min(EXEMPT);
    }
}

impl<C: GuestCpu> Vcpu<C> {
    /// Looks at the address space after the exit at `at` has been handled.
    #[inline]
    pub(super) fn observe(&mut self, at: HostTicks) {
        let generation = self.vm.suppression_generation.load(Ordering::Acquire);
        if self.observer.watching || generation != self.observer.generation {
            self.follow(at, generation);
        } else if self.observer.sample_due {
            self.sample(at);
        }
    }

    /// Charges the guest time since the last sample to the address space that runs.
    fn sample(&mut self, at: HostTicks) {
        self.observer.sample_due = false;
        let root = self.root();
        if let Some((_, format)) = root {
            self.vm.root_format.store(
                match format {
                    RootFormat::Long => 0,
                    RootFormat::Narrow => 1,
                    RootFormat::Pae => 2,
                },
                Ordering::Relaxed,
            );
        }
        self.charge(root.map(|(root, _)| root), at);
    }

    fn charge(&mut self, root: Option<Root>, at: HostTicks) {
        let ran = at.since(self.observer.sampled_at);
        self.observer.sampled_at = at;
        self.observer.sampled_root = root;
        if let Some(root) = root
            && let Some(usage) = self.vm.usages.get(self.index as usize)
        {
            usage.lock().record(root, ran, at);
        }
    }

    /// Time that the VCPU spends halted is nobody's.
    pub(super) fn note_wake(&mut self, at: HostTicks) {
        self.observer.sampled_at = at;
        self.trace(Event::Wake);
        if self.observer.watching {
            // The idle loop still has CR3; whether a target runs is seen at the next exit.
            self.observer.halted = false;
        }
    }

    fn root(&self) -> Option<(Root, RootFormat)> {
        let cpu = &self.cpu;
        let format = RootFormat::of(cpu.cr0(), cpu.cr4(), cpu.efer())?;
        Some((Root::new(cpu.cr3(), format), format))
    }

    /// Follows the address space while there are targets, or a trace is wanted.
    fn follow(&mut self, at: HostTicks, generation: u32) {
        let loaded = self.observer.loaded_cr3.take();
        let halted = self.activity == Activity::Halted;
        let cr3 = self.cpu.cr3();
        let user_mode = self.cpu.cpl() == 3;
        let unchanged = generation == self.observer.generation
            && cr3 == self.observer.cr3
            && loaded.is_none()
            && halted == self.observer.halted
            // A target that goes on after a halt or an interrupt is seen by its running in
            // user mode.
            && (!user_mode || self.observer.rates != Rates::REAL_TIME)
            && at < self.observer.reconsider_at;
        if !core::mem::take(&mut self.observer.sample_due) && unchanged {
            return;
        }
        // Each switch is seen, so each process is charged just what it used.
        let ran = self.observer.sampled_root;
        let root = self.root();
        self.charge(ran.or(root.map(|(root, _)| root)), at);
        self.observer.sampled_root = root.map(|(root, _)| root);
        if unchanged {
            return;
        }
        let tracing = self.vm.trace.is_on();
        self.trace_switch(tracing, root.map(|(root, _)| root), halted);
        let observation = Observation {
            root,
            loaded: loaded.is_some(),
            user_mode,
            halted,
        };
        let vm = self.vm.clone();
        let (decision, target_in, active) = {
            let mut watch = vm.suppression.lock();
            watch.set_longest_handler(self.pace.longest_handler());
            let decision = watch.observe(
                &vm.ram,
                self.index as usize,
                crate::machine::host_time::host_now(),
                &observation,
            );
            (
                decision,
                watch.target_is_in(self.index as usize),
                tracing || !watch.targets().is_empty(),
            )
        };
        if generation != self.observer.generation {
            self.observer.exempt_count = 0;
            self.observer.next_exempt = 0;
        }
        self.observer.generation = generation;
        self.observer.cr3 = cr3;
        self.observer.halted = halted;
        self.observer.watching = active;
        if target_in && let Some(operand) = loaded {
            self.observer.add_exempt(operand);
        }
        let exempt = self.observer.exempt;
        let count = if target_in {
            self.observer.exempt_count
        } else {
            0
        };
        self.cpu.set_cr3_exits(active, &exempt[..count]);
        self.observer.target_in = target_in;
        self.carry_out(decision);
    }

    /// Records `event`, if events are recorded.
    #[inline]
    pub(super) fn trace(&self, event: Event) {
        if self.vm.trace.is_on() {
            self.record(event);
        }
    }

    #[cold]
    fn record(&self, event: Event) {
        let now = crate::machine::host_time::host_now;
        self.vm.trace.record(Some(self.index), event, now);
    }

    /// Tells the trace what has changed since the last observation.
    fn trace_switch(&mut self, tracing: bool, root: Option<Root>, halted: bool) {
        if !tracing {
            self.observer.traced_root = None;
            return;
        }
        let before = self.observer.traced_root;
        if root != before {
            if let Some(left) = before {
                self.record(Event::SwitchOut(left));
            }
            if let Some(entered) = root {
                self.record(Event::SwitchIn(entered));
            }
            self.observer.traced_root = root;
        }
        if halted && !self.observer.halted {
            self.record(Event::Halt);
        }
    }

    fn carry_out(&mut self, decision: Decision) {
        self.observer.reconsider_at = decision.reconsider_at.unwrap_or(HostTicks(u64::MAX));
        // The rates are those of the VM's clock: it changes for a VCPU only when that has
        // come to the gate.
        if decision.rates != self.observer.rates {
            self.follow_suppression();
        }
    }

    /// While the VCPU waits for a CPU, its target does not run, and the VM's time is real.
    pub(super) fn note_cpu(&mut self, has_cpu: bool) {
        if !self.observer.watching {
            return;
        }
        let now = crate::machine::host_time::host_now();
        let decision = {
            let mut watch = self.vm.suppression.lock();
            if has_cpu {
                watch.on_cpu(self.index as usize, now)
            } else {
                watch.off_cpu(self.index as usize, now)
            }
        };
        self.observer.reconsider_at = decision.reconsider_at.unwrap_or(HostTicks(u64::MAX));
        // Others may have changed the rates since this VCPU has last looked at them.
        let rates = self.vm.board.lock().clock.rates();
        if decision.rates != rates {
            self.vm.follow_suppression(None);
        }
    }

    /// When the guest is to be looked at again, whatever it does.
    pub(super) const fn next_observation(&self) -> HostTicks {
        self.observer.reconsider_at
    }

    /// Tells the policy that the guest is about to take an interrupt, if a target runs.
    #[inline]
    pub(super) fn note_interrupt(&mut self) {
        if self.observer.timer_expired {
            self.observer.timer_expired = false;
            self.trace(Event::Timer);
        }
        if self.observer.target_in && self.observer.rates != Rates::REAL_TIME {
            let decision = {
                let mut watch = self.vm.suppression.lock();
                watch.set_longest_handler(self.pace.longest_handler());
                watch.interrupted(self.index as usize, crate::machine::host_time::host_now())
            };
            self.carry_out(decision);
        }
    }
}

#[cfg(test)]
mod tests;
