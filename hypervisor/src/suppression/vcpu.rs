//! What is known of a VCPU.

#![forbid(unsafe_code)]

use devices::clock::Rates;
use devices::time::{Hertz, HostTicks};

use super::address_space::Root;
use super::company::Company;
use super::cpu_share::CpuShare;
use super::following::Exchange;
use super::handler::{Context, FreeHandlers, Handler};

/// The reason why a VCPU that has a target does not run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// None: the VCPU runs it.
    No,
    /// A budget that is used up; the clock is fast meanwhile.
    Held,
    /// A budget that is used up until then.
    Parked(HostTicks),
    /// A lead that has to fall to this first, in ticks.
    ParkedForLead(i64),
    /// The lead has to fall to this first, in ticks, though others wait: not for long.
    ParkedBriefly(i64),
}

/// The record of a VCPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct VcpuRecord {
    /// The root of its address space.
    pub(super) root: Option<Root>,
    /// Whether the root has not been loaded since the VCPU was seen to do something else than the
    /// process that it belongs to: it says nothing then.
    pub(super) dormant: bool,
    pub(super) halted: bool,
    /// Whether it has a physical CPU.
    pub(super) on_cpu: bool,
    /// The time since which it has been out of the guest, if it has not been in it since the report before the last.
    pub(super) out_since: HostTicks,
    /// The time since which it has not been in the guest, as it has no CPU.
    pub(super) off_cpu_since: HostTicks,
    /// The slot of the target that runs, in whatever mode.
    pub(super) target: Option<usize>,
    /// The number of its member that runs.
    pub(super) member: Option<u32>,
    /// The stack pointer with which the process that has the root was seen in user mode last.
    pub(super) user_stack: Option<u64>,
    /// The exchange of a member's root for the one that it has, if it may be that of a new program.
    pub(super) exchange: Option<Exchange>,
    /// The root of the program that has become another one here, until the process is switched out.
    pub(super) replaced: Option<Root>,
    /// The time at which that target came in, and the lead at that time, in ticks.
    pub(super) target_since: HostTicks,
    pub(super) lead_then: i64,
    /// The time since then that was not spent on reports, in ticks.
    pub(super) in_guest: u64,
    /// Whether the root is a target's, but dormant, and the VCPU runs: the target may run at any
    /// time.
    pub(super) hides_target: bool,
    /// The time before the last report for which it did so, in ticks.
    pub(super) hidden: u64,
    pub(super) context: Context,
    pub(super) handler: Option<Handler>,
    pub(super) stop: Stop,
    /// The rates that it wants the VM's clock to have, if they are fast.
    pub(super) fast: Option<Rates>,
    pub(super) ration: Ration,
    /// The time up to which it is accounted for.
    pub(super) accounted: HostTicks,
    /// The time since `accounted` that reports have taken, in ticks.
    pub(super) own: u64,
    /// The CPU time that it has had since it was made, in ticks.
    pub(super) cpu_time: u64,
    /// Whether the last report was one of a load by others that has exited for the lookout.
    pub(super) looked_out: bool,
    /// Whether the clock was fast for its target until its report began ([`super::Suppression::stop_fast_clock`]).
    pub(super) was_fast: bool,
    /// Whether it is to be found out soon whose root it has.
    pub(super) judgment_waits: bool,
    /// Whether it is to report when it takes interrupts: its kernel may switch to a hidden target.
    pub(super) awaits_interrupts: bool,
    /// The time at which the last handler has ended.
    pub(super) interrupted_at: HostTicks,
    /// The number of handlers that have ended since the target was last in user mode.
    pub(super) kernel_interrupts: u32,
    /// The time since which the target, in the kernel, was to be stopped.
    pub(super) overrun_since: Option<HostTicks>,
    /// The CPU time since the target was switched in that has not been charged, in ticks, if it has not been in user mode
    /// since: that is the scheduler's time if it is stopped when it gets there.
    pub(super) arrival: Option<u64>,
    pub(super) free_handlers: FreeHandlers,
    /// The time until which timers are delayed; see [`super::Directive::timers_from`].
    pub(super) timers_from: HostTicks,
    pub(super) share: CpuShare,
    pub(super) company: Company,
}

impl VcpuRecord {
    /// Makes a VCPU that is on no CPU.
    pub(super) const fn new(tsc: Hertz, now: HostTicks) -> Self {
        Self {
            root: None,
            dormant: false,
            halted: false,
            on_cpu: false,
            out_since: now,
            off_cpu_since: now,
            target: None,
            member: None,
            user_stack: None,
            exchange: None,
            replaced: None,
            target_since: now,
            lead_then: 0,
            in_guest: 0,
            hides_target: false,
            hidden: 0,
            context: Context {
                user_mode: false,
                interruptible: false,
                rsp: 0,
            },
            handler: None,
            stop: Stop::No,
            fast: None,
            ration: Ration::EMPTY,
            accounted: now,
            own: 0,
            cpu_time: 0,
            looked_out: false,
            was_fast: false,
            judgment_waits: false,
            awaits_interrupts: false,
            interrupted_at: HostTicks(0),
            kernel_interrupts: 0,
            overrun_since: None,
            arrival: None,
            free_handlers: FreeHandlers::new(),
            timers_from: HostTicks(0),
            share: CpuShare::new(tsc),
            company: Company::new(tsc, now),
        }
    }

    /// Notes that the target is out.
    pub(super) const fn target_out(&mut self) {
        self.target = None;
        self.member = None;
        self.handler = None;
        self.stop = Stop::No;
        self.fast = None;
        self.overrun_since = None;
        self.arrival = None;
        self.kernel_interrupts = 0;
        self.timers_from = HostTicks(0);
    }

    /// Returns whether it is kept from running, and has left its CPU.
    pub(super) const fn is_parked(&self) -> bool {
        matches!(
            self.stop,
            Stop::Parked(_) | Stop::ParkedForLead(_) | Stop::ParkedBriefly(_)
        )
    }

    /// Returns whether that is for a moment, though others wait for it.
    pub(super) const fn is_parked_briefly(&self) -> bool {
        matches!(self.stop, Stop::ParkedBriefly(_))
    }

    /// Returns whether it wants a CPU, or has one.
    pub(super) const fn is_runnable(&self) -> bool {
        !self.halted && !self.is_parked()
    }

    /// Returns whether it runs its guest.
    pub(super) const fn runs(&self) -> bool {
        self.on_cpu && self.is_runnable()
    }
}

/// The part of a fast phase that a target may run.
///
/// The clock cannot always be as fast as the factor asks for: it could not be stopped in time. Then the
/// phase is longer, and the target is to have a part of it only, so that it still runs for
/// `1/factor` of the guest time that passes. Turns are short: what one turn has too much, the next one
/// has not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ration {
    /// The factor that is wanted, as a rate in fixed point.
    factor: u64,
    /// The time that the target may still run, in ticks.
    left: i64,
}

impl Ration {
    const EMPTY: Self = Self { factor: 1, left: 0 };

    /// Goes on with another factor.
    pub(super) const fn set_factor(&mut self, factor: u64) {
        self.factor = if factor == 0 { 1 } else { factor };
    }

    /// Notes that `elapsed` ticks of a fast phase have passed at `rate`, a rate in fixed point, in
    /// which the target `ran` or was held. Nothing is saved up beyond `most` ticks.
    pub(super) fn pass(&mut self, elapsed: u64, rate: u64, ran: bool, most: u64) {
        let earned = u128::from(elapsed) * u128::from(rate) / u128::from(self.factor);
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let spent = if ran {
            i64::try_from(elapsed).unwrap_or(i64::MAX)
        } else {
            0
        };
        let left = self.left.saturating_add(earned).saturating_sub(spent);
        self.left = left.clamp(most.saturating_neg(), most);
    }

    /// Returns for how many ticks at `rate` the target is to be held, if it is; `was_held` if it is
    /// held now.
    pub(super) fn wait(&self, rate: u64, was_held: bool, least: u64) -> Option<u64> {
        let least = i64::try_from(least).unwrap_or(i64::MAX);
        let limit = if was_held { 0 } else { least.saturating_neg() };
        if self.left >= limit || rate >= self.factor {
            return None;
        }
        let missing = u128::from(self.left.unsigned_abs()) * u128::from(self.factor);
        let ticks = missing.div_ceil(u128::from(rate.max(1)));
        Some(u64::try_from(ticks).unwrap_or(u64::MAX).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_phase_that_is_not_fast_enough_a_target_has_its_part() {
        const ONE: u64 = 1 << 48;
        for (factor, rate) in [(1000, 500), (4000, 500), (64, 16), (1000, 1000), (10, 20)] {
            let mut ration = Ration::EMPTY;
            ration.set_factor(factor * ONE);
            let (mut ran, mut phase, mut held) = (0, 0, false);
            while phase < 100_000_000 {
                let wait = ration.wait(rate * ONE, held, 2_000);
                held = wait.is_some();
                let elapsed = wait.unwrap_or(3_000);
                ration.pass(elapsed, rate * ONE, !held, 100_000);
                phase += elapsed;
                ran += if held { 0 } else { elapsed };
            }
            let share = ran as f64 / phase as f64;
            let wanted = (rate as f64 / factor as f64).min(1.0);
            assert!(
                (share / wanted - 1.0).abs() < 0.01,
                "{factor}, {rate}: {share}"
            );
        }
    }
}
