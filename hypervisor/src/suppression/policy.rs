//! What the guest's clock does, given what its VCPUs do.
//!
//! [`Suppression`] is the mechanism: it takes [`Event`]s, keeps book of the VM's
//! [`Situation`], and tells what to do. The decision itself is a [`Policy`]: a function of
//! the situation, and the only thing to be written for another behaviour. [`Paper`] is the
//! first.
//!
//! A target that is interrupted does not run: the guest's kernel does. Under a fast clock its
//! handler would seem to take N times as long, and once that is longer than the guest's tick,
//! the next tick is due before the handler is over, and the guest does nothing but handle
//! ticks. So time is real from the interrupt on until the target is seen in user mode again,
//! is switched out, or the handler has had its time.

use devices::clock::{Rate, Rates};
use devices::time::HostTicks;

use super::Factors;
use super::pace::LEAST_FOR_A_HANDLER;
use crate::ids::MAX_VCPUS;

/// Something that has happened to a VCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The address space of a target was loaded (or the one loaded has become a target).
    TargetIn(Factors),
    /// The address space loaded is not, or no longer, that of a target.
    TargetOut,
    /// The VCPU has halted, and waits for an interrupt.
    Halt,
    /// The VCPU runs again.
    Wake,
    /// The VCPU was seen in user mode: the process of its address space does run.
    UserMode,
    /// The VCPU was seen in kernel mode.
    KernelMode,
    /// An interrupt is on its way to the guest.
    InterruptInjected,
    /// Time has passed; nothing else.
    Time,
}

/// How often, in host ticks, an interrupt handler in a target is looked at for its end.
const HANDLER_POLL: u64 = 1_000;

/// What one VCPU does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct VcpuState {
    target: Option<Factors>,
    /// Since when it has been halted, or without a CPU.
    halted_since: Option<HostTicks>,
    /// It handles an interrupt, which will be over by this host time.
    handler_until: Option<HostTicks>,
}

impl VcpuState {
    const INNOCENT: Self = Self {
        target: None,
        halted_since: None,
        handler_until: None,
    };

    /// It runs again: what its handler may take, it may take of the time that it runs.
    fn wake(&mut self, now: HostTicks) {
        if let Some(since) = self.halted_since.take()
            && let Some(until) = &mut self.handler_until
        {
            *until = until.saturating_add(now.since(since));
        }
    }
}

/// What a policy decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The factors of the targets that run on VCPUs that are not halted and do not handle an
    /// interrupt; of several, the strongest.
    pub running_targets: Option<Factors>,
    /// Whether a VCPU runs something else than a target.
    pub innocents_run: bool,
    /// The last event at the VCPU that it came from.
    pub event: Event,
    /// How far the guest's readable time is ahead of real time, in ticks.
    pub lead: i64,
}

/// What is to be done from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The rates of the VM's virtual clock.
    pub rates: Rates,
    /// The VM is not to run before this host time.
    pub pause_until: Option<HostTicks>,
    /// Come back with [`Event::Time`] at this host time.
    pub reconsider_at: Option<HostTicks>,
}

impl Decision {
    /// Run on, at `rates`.
    #[must_use]
    pub const fn run(rates: Rates) -> Self {
        Self {
            rates,
            pause_until: None,
            reconsider_at: None,
        }
    }
}

/// How suppression is done.
pub trait Policy {
    /// Decides what is to be done from `now` on.
    fn decide(&mut self, now: HostTicks, situation: &Situation) -> Decision;
}

/// The paper's way: while a target runs, the clocks run at its factors, else in real time.
/// The guest's time stays ahead by what it gained.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paper;

impl Policy for Paper {
    fn decide(&mut self, _: HostTicks, situation: &Situation) -> Decision {
        Decision::run(match situation.running_targets {
            Some(factors) => factors.rates(),
            None => Rates::REAL_TIME,
        })
    }
}

/// How far readable guest time is ahead of real time.
#[derive(Clone, Copy, Debug)]
struct Lead {
    /// In units of 2^-48 tick, the precision of the virtual clock: nothing is rounded.
    exact: i128,
    since: HostTicks,
}

impl Lead {
    fn advance(&mut self, now: HostTicks, rate: Rate) {
        let excess = i128::from(rate.bits()) - i128::from(Rate::ONE.bits());
        // At most 2^64 * 2^64, half of which fits: an uptime of 2^63 ticks is 60 years.
        let gained = excess.saturating_mul(i128::from(now.since(self.since)));
        self.exact = self.exact.saturating_add(gained);
        self.since = self.since.max(now);
    }

    fn ticks(self) -> i64 {
        let ticks = self.exact >> 48;
        ticks.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

/// The suppression of a VM: its state, and a policy.
#[derive(Clone, Debug)]
pub struct Suppression<P = Paper> {
    policy: P,
    vcpus: [VcpuState; MAX_VCPUS],
    /// How many there are of `vcpus`.
    count: usize,
    /// See [`Suppression::set_longest_handler`].
    longest_handler: u64,
    decision: Decision,
    lead: Lead,
}

impl<P: Policy> Suppression<P> {
    /// The suppression of a VM of `vcpus` VCPUs (at most [`MAX_VCPUS`] count), which all run
    /// innocent code in real time from `now` on.
    pub const fn new(policy: P, vcpus: usize, now: HostTicks) -> Self {
        Self {
            policy,
            vcpus: [VcpuState::INNOCENT; MAX_VCPUS],
            count: if vcpus < MAX_VCPUS { vcpus } else { MAX_VCPUS },
            longest_handler: LEAST_FOR_A_HANDLER,
            decision: Decision::run(Rates::REAL_TIME),
            lead: Lead {
                exact: 0,
                since: now,
            },
        }
    }

    /// From now on, an interrupt handler may run for so many host ticks before a target that has
    /// not been seen in user mode is taken to run again.
    pub const fn set_longest_handler(&mut self, ticks: u64) {
        self.longest_handler = ticks;
    }

    /// Takes note of `event` at `vcpu`, and tells what is to be done from `now` on; the
    /// caller compares it with what it does already.
    pub fn handle(&mut self, now: HostTicks, vcpu: usize, event: Event) -> Decision {
        if let Some(state) = self.vcpus.get_mut(vcpu) {
            match event {
                Event::TargetIn(factors) => state.target = Some(factors),
                Event::TargetOut => {
                    state.target = None;
                    state.handler_until = None;
                }
                Event::Halt => {
                    state.halted_since.get_or_insert(now);
                }
                Event::Wake => state.wake(now),
                Event::InterruptInjected if state.target.is_some() => {
                    state.handler_until = Some(now.saturating_add(self.longest_handler));
                }
                Event::UserMode => state.handler_until = None,
                Event::InterruptInjected | Event::KernelMode | Event::Time => {}
            }
        }
        self.lead.advance(now, self.decision.rates.counter);
        let mut situation = Situation {
            running_targets: None,
            innocents_run: false,
            event,
            lead: self.lead.ticks(),
        };
        let mut handler_seen = false;
        for state in &mut self.vcpus[..self.count] {
            if state.halted_since.is_some() {
                continue;
            }
            if state.handler_until.is_some_and(|until| now >= until) {
                state.handler_until = None;
            }
            if state.handler_until.is_some() {
                handler_seen = true;
                continue;
            }
            match (state.target, situation.running_targets) {
                (None, _) => situation.innocents_run = true,
                (Some(factors), None) => situation.running_targets = Some(factors),
                (Some(factors), Some(other)) => {
                    situation.running_targets = Some(factors.stronger(other));
                }
            }
        }
        self.decision = self.policy.decide(now, &situation);
        if handler_seen {
            let poll = now.saturating_add(HANDLER_POLL);
            let earlier = self.decision.reconsider_at.map_or(poll, |at| at.min(poll));
            self.decision.reconsider_at = Some(earlier);
        }
        self.decision
    }

    /// What was decided last.
    #[must_use]
    pub const fn decision(&self) -> Decision {
        self.decision
    }

    /// How far readable guest time is ahead of real time at `now`, in ticks.
    #[must_use]
    pub fn lead(&self, now: HostTicks) -> i64 {
        let mut lead = self.lead;
        lead.advance(now, self.decision.rates.counter);
        lead.ticks()
    }

    /// Whether a target's address space is loaded on `vcpu`.
    #[must_use]
    pub fn target_is_in(&self, vcpu: usize) -> bool {
        self.vcpus
            .get(vcpu)
            .is_some_and(|state| state.target.is_some())
    }
}
