//! Whether suppression does what it is to do, and what is told to the operator of that.

#![forbid(unsafe_code)]

use devices::time::HostTicks;

use super::Suppression;
use super::notice::Subject;
use super::order::Order;
use super::record::Limit;

/// The time over which the effect is measured, in seconds.
const WINDOW: u64 = 2;
/// The multiple of what a target is to have at which its suppression is without effect.
const TOO_MUCH: u64 = 10;
/// The share of one CPU, in millionths, from which on that is so however much it is to have.
const NEARLY_ALL: u64 = 900_000;
const ONE_CPU: u64 = 1_000_000;

impl Suppression {
    /// Looks whether the suppression of the target that `vcpu` runs has an effect, and what limits it.
    pub(super) fn see_effect(&mut self, vcpu: usize, now: HostTicks) {
        let second = self.tsc.get();
        let Some(slot) = self.vcpus[vcpu].target else {
            return;
        };
        let Some(target) = self.targets.get_mut(slot) else {
            return;
        };
        let named = target.root();
        if target.record.limit().0 == Limit::Budget && !target.told_budget {
            target.told_budget = true;
            self.notices.add(super::Notice {
                at: now,
                target: named,
                subject: Subject::LimitedByBudget,
            });
        }
        let (since, used) = target.effect_since;
        let elapsed = now.since(since);
        if elapsed < WINDOW * second {
            return;
        }
        let had = target.record.used.saturating_sub(used);
        let share = u128::from(had) * u128::from(ONE_CPU) / u128::from(elapsed.max(1));
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        let is_without = share >= too_much(target.order());
        target.effect_since = (now, target.record.used);
        if is_without && !target.told_no_effect {
            self.notify(named, Subject::WithoutEffect { share }, now);
        }
        if let Some(target) = self.targets.get_mut(slot) {
            target.told_no_effect = is_without;
        }
    }
}

/// Returns the share of one CPU, in millionths, from which on `order` has no effect.
fn too_much(order: &Order) -> u64 {
    let strongest = order.factors.interval.max(order.factors.clock).get();
    let wanted = match order.share() {
        Some(share) => u64::from(share.millionths()),
        None => ONE_CPU / u64::from(strongest),
    };
    if strongest == 1 {
        // It is not to be slowed down.
        return u64::MAX;
    }
    (wanted * TOO_MUCH).min(NEARLY_ALL)
}
