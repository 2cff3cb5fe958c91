//! What the operator orders for a target.

#![forbid(unsafe_code)]

use core::fmt;

use devices::time::Hertz;

use super::Factors;
use super::budget::Share;
use crate::numbers::decimal;

/// The way in which a target is suppressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The paper's way: while the target runs, the guest's clock is fast, and stays ahead by what it
    /// gained. Nothing else holds the target.
    Paper,
    /// Bounds and a budget: the clock's gain is bounded and given back, the target has a budget of
    /// real CPU time, and is parked where nobody else could be given its time.
    #[default]
    Bounded,
}

impl Policy {
    /// All policies.
    pub(crate) const ALL: [Self; 2] = [Self::Bounded, Self::Paper];

    /// Returns its name, as the operator writes it.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Bounded => "bounded",
        }
    }

    /// Returns the policy of this name.
    #[must_use]
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The descendants of a process that become targets with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Follow {
    /// All: copies, and the programs that it or they become.
    #[default]
    All,
    /// None.
    None,
    /// Its copies, and theirs.
    Fork,
    /// The programs that it becomes.
    Exec,
}

impl Follow {
    /// All there are.
    pub(crate) const ALL: [Self; 4] = [Self::All, Self::None, Self::Fork, Self::Exec];

    /// Returns its name, as the operator writes it.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::None => "none",
            Self::Fork => "fork",
            Self::Exec => "exec",
        }
    }

    /// Returns what has this name.
    #[must_use]
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|follow| follow.name() == name)
    }

    /// Returns whether copies are followed.
    #[must_use]
    pub(crate) const fn forks(self) -> bool {
        matches!(self, Self::All | Self::Fork)
    }

    /// Returns whether programs that it becomes are followed.
    #[must_use]
    pub(crate) const fn execs(self) -> bool {
        matches!(self, Self::All | Self::Exec)
    }
}

/// The most that a guest's clock may be ahead of real time, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The bound while another VM wants the CPU: what a target's guest cannot be given in true time
    /// is that VM's.
    pub contended: u32,
    /// The bound while none does: better a clock that wobbles than an idle CPU.
    pub uncontended: u32,
}

impl Bounds {
    /// The smallest bound: two ticks of a guest that ticks 250 times a second.
    pub(crate) const LEAST: u32 = 8;
    /// The largest bound. A lead of this size can still be given back within the second after the
    /// release.
    pub(crate) const MOST: u32 = 1000;

    /// Returns the bound that holds, in ticks of a TSC that counts at `tsc`.
    #[must_use]
    pub(crate) const fn ticks(self, contended: bool, tsc: Hertz) -> u64 {
        let milliseconds = if contended {
            self.contended
        } else {
            self.uncontended
        };
        tsc.get() / 1000 * milliseconds as u64
    }
}

/// A text that is no [`Bounds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoBounds;

impl core::str::FromStr for Bounds {
    type Err = NoBounds;

    /// Reads one number of milliseconds for both, or two separated by a comma, the contended one
    /// first.
    fn from_str(text: &str) -> Result<Self, NoBounds> {
        let number = |digits: &str| {
            let in_range = |value: &u32| (Self::LEAST..=Self::MOST).contains(value);
            decimal(digits).filter(in_range).ok_or(NoBounds)
        };
        let (contended, uncontended) = text.split_once(',').unwrap_or((text, text));
        Ok(Self {
            contended: number(contended)?,
            uncontended: number(uncontended)?,
        })
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            contended: 250,
            uncontended: 1000,
        }
    }
}

/// The settings of a VM's targets for which the operator orders nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// The policy.
    pub policy: Policy,
    /// The bounds of the lead.
    pub bounds: Bounds,
}

/// The operator's order for the suppression of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The factors of suppression.
    pub factors: Factors,
    /// The policy of suppression.
    pub policy: Policy,
    /// The CPU time that it may have; by default `1/N` of one CPU. The paper's policy knows none.
    pub cap: Option<Share>,
    /// The bounds of the clock's lead.
    pub bounds: Bounds,
    /// The descendants that are suppressed with it.
    pub follow: Follow,
}

impl Order {
    /// Makes an order of suppression by `factors`, all else by `defaults`.
    #[must_use]
    pub(crate) const fn new(factors: Factors, defaults: Defaults) -> Self {
        Self {
            factors,
            policy: defaults.policy,
            cap: None,
            bounds: defaults.bounds,
            follow: Follow::All,
        }
    }

    /// Returns the CPU time that the target may have; `None` for any.
    #[must_use]
    pub(crate) fn share(&self) -> Option<Share> {
        if self.policy == Policy::Paper {
            return None;
        }
        let strongest = self.factors.interval.max(self.factors.clock).get();
        let by_factor = (strongest > 1).then(|| Share::of_one_cpu(strongest));
        self.cap.or(by_factor)
    }

    /// Returns whether a clock that can run at `fastest` times real time is much slower than the order
    /// asks for.
    #[must_use]
    pub(crate) fn wants_much_more_than(&self, fastest: u64) -> bool {
        let strongest = self.factors.interval.max(self.factors.clock).get();
        self.policy != Policy::Paper && u64::from(strongest) > fastest.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Factor;
    use super::*;

    fn order(n: u32, policy: Policy) -> Order {
        let factors = Factors::both(Factor::new(n).unwrap());
        Order::new(
            factors,
            Defaults {
                policy,
                ..Defaults::default()
            },
        )
    }

    #[test]
    fn names_lead_back_to_their_policies() {
        for policy in Policy::ALL {
            assert_eq!(Policy::from_name(policy.name()), Some(policy));
        }
        assert_eq!(Policy::from_name("none"), None);
        for follow in Follow::ALL {
            assert_eq!(Follow::from_name(follow.name()), Some(follow));
        }
        assert_eq!(Follow::from_name("paper"), None);
    }

    #[test]
    fn bounds_are_one_number_or_two() {
        let bounds = |contended, uncontended| {
            Ok(Bounds {
                contended,
                uncontended,
            })
        };
        assert_eq!("250".parse(), bounds(250, 250));
        assert_eq!("8,1000".parse(), bounds(8, 1000));
        for text in ["", "7", "1001", "250,", ",250", "+250", "1,2,3", "250ms"] {
            assert_eq!(text.parse::<Bounds>(), Err(NoBounds), "{text}");
        }
    }

    #[test]
    fn a_target_may_have_a_part_of_one_cpu() {
        let order = order(1000, Policy::Bounded);
        assert_eq!(order.share(), Share::from_millionths(1000));
        let capped = Order {
            cap: Share::from_millionths(5000),
            ..order
        };
        assert_eq!(capped.share(), Share::from_millionths(5000));
    }

    #[test]
    fn the_paper_has_no_budget_and_a_factor_of_one_is_no_suppression() {
        assert_eq!(order(1000, Policy::Paper).share(), None);
        assert_eq!(order(1, Policy::Bounded).share(), None);
    }
}
