//! Follows the address spaces of a VM's VCPUs: what they load goes in, events for the policy
//! come of it, and the policy's decision goes out.
//!
//! That CR3 holds a target's root does not say that the target runs: an idle processor, and
//! kernel threads, keep the last process's. A VCPU that has halted is *dormant* therefore: its
//! CR3 counts for nothing until it is loaded again, or user code is seen to run.

use devices::time::HostTicks;

use super::Factors;
use super::address_space::{Root, RootFormat};
use super::policy::{Decision, Event, Paper, Policy, Suppression};
use super::target::{Target, TargetError, Targets};
use crate::guest_memory::GuestMemory;
use crate::ids::MAX_VCPUS;

/// What a VCPU is seen to do after a VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The root of its address space; `None` without paging.
    pub root: Option<(Root, RootFormat)>,
    /// CR3 has been loaded since the last observation, even if with the same root.
    pub loaded: bool,
    /// It is in user mode.
    pub user_mode: bool,
    /// It has halted.
    pub halted: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    root: Option<Root>,
    dormant: bool,
    halted: bool,
}

/// How many roots are remembered as no target's.
const INNOCENTS: usize = 64;

/// Roots that have been looked at and are no target's: the next switch to one of them costs
/// one comparison. Good until the targets change: the roots of a process are made together.
#[derive(Clone, Debug)]
struct Innocents([Option<Root>; INNOCENTS]);

impl Innocents {
    const fn slot(root: Root) -> usize {
        (root.address().0 >> 12) as usize % INNOCENTS
    }

    fn has(&self, root: Root) -> bool {
        self.0[Self::slot(root)] == Some(root)
    }

    fn add(&mut self, root: Root) {
        self.0[Self::slot(root)] = Some(root);
    }

    fn clear(&mut self) {
        self.0.fill(None);
    }
}

/// The suppression in a VM: its targets, what its VCPUs do, and the policy.
#[derive(Clone, Debug)]
pub struct Watch<P = Paper> {
    targets: Targets,
    innocents: Innocents,
    vcpus: [Watched; MAX_VCPUS],
    suppression: Suppression<P>,
}

impl<P: Policy> Watch<P> {
    /// No targets, in a VM of `vcpus` VCPUs.
    #[must_use]
    pub const fn new(policy: P, vcpus: usize, now: HostTicks) -> Self {
        Self {
            targets: Targets::new(),
            innocents: Innocents([None; INNOCENTS]),
            vcpus: [Watched {
                root: None,
                dormant: false,
                halted: false,
            }; MAX_VCPUS],
            suppression: Suppression::new(policy, vcpus, now),
        }
    }

    /// The targets.
    #[must_use]
    pub const fn targets(&self) -> &Targets {
        &self.targets
    }

    /// What the policy has decided last.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.suppression.decision()
    }

    /// How far the guest's time is ahead of real time, in ticks.
    #[must_use]
    pub fn lead(&self, now: HostTicks) -> i64 {
        self.suppression.lead(now)
    }

    /// Whether a target is taken to run on `vcpu`.
    #[must_use]
    pub fn target_is_in(&self, vcpu: usize) -> bool {
        self.suppression.target_is_in(vcpu)
    }

    /// Makes the address space of `root` a target, or changes its factors. `seen` are roots
    /// among which its aliases are looked for.
    ///
    /// # Errors
    /// If it is no process's, or there are too many targets; nothing has changed then.
    pub fn suppress(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
        factors: Factors,
        seen: impl Iterator<Item = Root>,
    ) -> Result<(), TargetError> {
        self.targets.add(memory, root, format, factors, seen)?;
        self.innocents.clear();
        Ok(())
    }

    /// Ends the suppression of the target that has `root`.
    pub fn release(&mut self, root: Root) -> Option<Target> {
        self.targets.release(root)
    }

    /// Ends all suppression, and returns how many targets there were.
    pub fn release_all(&mut self) -> usize {
        self.targets.release_all()
    }

    /// How long interrupt handlers are waited for: see [`Suppression::set_longest_handler`].
    pub const fn set_longest_handler(&mut self, ticks: u64) {
        self.suppression.set_longest_handler(ticks);
    }

    /// An interrupt is on its way to the guest of `vcpu`.
    pub fn interrupted(&mut self, vcpu: usize, now: HostTicks) -> Decision {
        self.suppression.handle(now, vcpu, Event::InterruptInjected)
    }

    /// `vcpu` has been taken off its CPU: no target runs on it, whatever its address space.
    pub fn off_cpu(&mut self, vcpu: usize, now: HostTicks) -> Decision {
        self.suppression.handle(now, vcpu, Event::Halt)
    }

    /// `vcpu` is on a CPU again, and goes on where it was.
    pub fn on_cpu(&mut self, vcpu: usize, now: HostTicks) -> Decision {
        let halted = self.vcpus.get(vcpu).is_some_and(|watched| watched.halted);
        let event = if halted { Event::Time } else { Event::Wake };
        self.suppression.handle(now, vcpu, event)
    }

    /// Takes note of what `vcpu` does at `now`, and tells what is to be done.
    pub fn observe(
        &mut self,
        memory: &impl GuestMemory,
        vcpu: usize,
        now: HostTicks,
        observation: &Observation,
    ) -> Decision {
        let Some(&before) = self.vcpus.get(vcpu) else {
            return self.suppression.decision();
        };
        let root = observation.root.map(|(root, _)| root);
        let mut watched = before;
        watched.root = root;
        watched.halted = observation.halted;
        if observation.halted {
            watched.dormant = true;
        } else if observation.loaded || observation.user_mode || root != before.root {
            watched.dormant = false;
        }
        self.vcpus[vcpu] = watched;

        if let Some(left) = before.root
            && root != before.root
        {
            self.targets.drop_if_gone(memory, left);
        }
        let factors = match root {
            Some(root) if !watched.dormant => {
                self.factors_of(memory, root, root_changed(&before, &watched))
            }
            _ => None,
        };
        let was_in = self.suppression.target_is_in(vcpu);
        let mut decision = self.suppression.decision();
        if watched.halted != before.halted {
            let event = if watched.halted {
                Event::Halt
            } else {
                Event::Wake
            };
            decision = self.suppression.handle(now, vcpu, event);
        }
        match factors {
            Some(factors) => {
                self.suppression.handle(now, vcpu, Event::TargetIn(factors));
                let event = if observation.user_mode {
                    Event::UserMode
                } else if !was_in && !observation.loaded {
                    // It has become a target while the kernel works, maybe in the middle of a
                    // handler that measures how long it takes.
                    Event::InterruptInjected
                } else {
                    Event::Time
                };
                decision = self.suppression.handle(now, vcpu, event);
            }
            None if was_in => decision = self.suppression.handle(now, vcpu, Event::TargetOut),
            None => {}
        }
        decision
    }

    /// The factors of the target that `root` belongs to, if any.
    fn factors_of(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        switched_in: bool,
    ) -> Option<Factors> {
        if self.targets.is_empty() || self.innocents.has(root) {
            return None;
        }
        if self.targets.of(root).is_some() {
            if switched_in {
                self.targets.drop_if_gone(memory, root);
            }
        } else {
            self.targets.learn(memory, root);
        }
        let factors = self.targets.of(root).map(Target::factors);
        if factors.is_none() {
            self.innocents.add(root);
        }
        factors
    }
}

fn root_changed(before: &Watched, now: &Watched) -> bool {
    before.root != now.root
}

#[cfg(test)]
mod tests {
    use devices::clock::Rates;

    use super::super::Factor;
    use super::*;
    use crate::test_ram::TestRam;

    const FORMAT: RootFormat = RootFormat::Long;
    const TARGET: u64 = 0x1000;
    const ALIAS: u64 = 0x2000;
    const INNOCENT: u64 = 0x3000;

    fn root(cr3: u64) -> Root {
        Root::new(cr3, FORMAT)
    }

    fn factors() -> Factors {
        Factors::both(Factor::new(1000).unwrap())
    }

    fn running(cr3: u64) -> Observation {
        Observation {
            root: Some((root(cr3), FORMAT)),
            loaded: true,
            user_mode: false,
            halted: false,
        }
    }

    /// A target with two roots, and an innocent process.
    fn scene() -> (TestRam, Watch) {
        let ram = TestRam::new(0x10000);
        for at in [TARGET, ALIAS] {
            ram.write_u64(at + 8 * 85, 0xa067);
        }
        ram.write_u64(INNOCENT + 8 * 85, 0xb067);
        let mut watch = Watch::new(Paper, 1, HostTicks(0));
        watch
            .suppress(&ram, root(TARGET), FORMAT, factors(), core::iter::empty())
            .unwrap();
        (ram, watch)
    }

    #[test]
    fn the_clock_is_fast_while_the_target_runs_under_either_root() {
        let (ram, mut watch) = scene();
        let mut rates = |at, observation| watch.observe(&ram, 0, HostTicks(at), &observation).rates;
        assert_eq!(rates(1, running(INNOCENT)), Rates::REAL_TIME);
        assert_eq!(rates(2, running(TARGET)), factors().rates());
        assert_eq!(rates(3, running(ALIAS)), factors().rates());
        assert_eq!(rates(4, running(INNOCENT)), Rates::REAL_TIME);
        assert_eq!(rates(5, running(ALIAS)), factors().rates());
    }

    #[test]
    fn a_handler_that_runs_when_its_process_becomes_a_target_ends_in_real_time() {
        let (ram, mut watch) = scene();
        let mut rates = |at, user_mode| {
            let observation = Observation {
                loaded: false,
                user_mode,
                ..running(TARGET)
            };
            watch.observe(&ram, 0, HostTicks(at), &observation).rates
        };
        assert_eq!(rates(1, false), Rates::REAL_TIME);
        assert_eq!(rates(2, false), Rates::REAL_TIME);
        assert_eq!(rates(3, true), factors().rates());
    }

    #[test]
    fn a_target_whose_processor_waits_for_a_cpu_does_not_speed_the_clock_up() {
        let (ram, mut watch) = scene();
        let fast = factors().rates();
        watch.observe(&ram, 0, HostTicks(1), &running(TARGET));
        assert_eq!(watch.off_cpu(0, HostTicks(2)).rates, Rates::REAL_TIME);
        assert_eq!(watch.on_cpu(0, HostTicks(3)).rates, fast);
        let halted = Observation {
            loaded: false,
            halted: true,
            ..running(TARGET)
        };
        watch.observe(&ram, 0, HostTicks(4), &halted);
        watch.off_cpu(0, HostTicks(5));
        assert_eq!(watch.on_cpu(0, HostTicks(6)).rates, Rates::REAL_TIME);
    }

    #[test]
    fn a_handler_whose_processor_waits_for_a_cpu_goes_on_in_real_time() {
        let (ram, mut watch) = scene();
        watch.observe(&ram, 0, HostTicks(1), &running(TARGET));
        watch.interrupted(0, HostTicks(2));
        watch.off_cpu(0, HostTicks(3));
        let long = 10_000_000;
        let back = watch.on_cpu(0, HostTicks(long));
        assert_eq!(back.rates, Rates::REAL_TIME, "it is still in its handler");
        let in_kernel = Observation {
            loaded: false,
            ..running(TARGET)
        };
        let mut rates = |at| watch.observe(&ram, 0, HostTicks(at), &in_kernel).rates;
        assert_eq!(rates(long + 40_000), Rates::REAL_TIME);
        assert_eq!(
            rates(long + 60_000),
            factors().rates(),
            "no handler takes so long"
        );
    }

    #[test]
    fn a_halted_processor_that_keeps_the_targets_cr3_runs_in_real_time() {
        let (ram, mut watch) = scene();
        let halted = Observation {
            loaded: false,
            halted: true,
            ..running(TARGET)
        };
        let idle = Observation {
            loaded: false,
            ..running(TARGET)
        };
        let back = Observation {
            user_mode: true,
            ..idle
        };
        let mut rates = |at, observation| watch.observe(&ram, 0, HostTicks(at), &observation).rates;
        assert_eq!(rates(1, running(TARGET)), factors().rates());
        assert_eq!(rates(2, halted), Rates::REAL_TIME);
        assert_eq!(
            rates(3, idle),
            Rates::REAL_TIME,
            "an interrupt handler of an idle CPU"
        );
        assert_eq!(
            rates(4, back),
            factors().rates(),
            "the target, without a load of CR3"
        );
    }

    #[test]
    fn release_ends_it_at_the_next_observation() {
        let (ram, mut watch) = scene();
        watch.observe(&ram, 0, HostTicks(1), &running(TARGET));
        assert!(watch.release(root(TARGET)).is_some());
        let decision = watch.observe(&ram, 0, HostTicks(2), &running(TARGET));
        assert_eq!(decision.rates, Rates::REAL_TIME);
    }

    #[test]
    fn the_page_of_a_dead_target_does_not_slow_its_next_owner() {
        let (ram, mut watch) = scene();
        watch.observe(&ram, 0, HostTicks(1), &running(TARGET));
        ram.write_u64(TARGET + 8 * 85, 0);
        watch.observe(&ram, 0, HostTicks(2), &running(INNOCENT));
        assert!(
            watch.targets().is_empty(),
            "seen to be gone when it was left"
        );
        ram.write_u64(TARGET + 8 * 85, 0xc067);
        let decision = watch.observe(&ram, 0, HostTicks(3), &running(TARGET));
        assert_eq!(decision.rates, Rates::REAL_TIME);
    }
}
