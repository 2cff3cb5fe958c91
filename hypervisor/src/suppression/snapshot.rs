//! What the operator sees of suppression: plain values, good at one moment.

#![forbid(unsafe_code)]

use alloc::vec::Vec;

use devices::time::HostTicks;

use super::Suppression;
use super::address_space::Root;
use super::member::Sign;
use super::notice::End;
use super::order::Order;

pub(crate) use super::budget::BudgetUse;
pub(crate) use super::lead::Lead;
pub(crate) use super::record::Limit;

/// A target, as the operator sees it. Times are in host ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetSnapshot {
    /// The roots of the process that the operator named, that one first.
    pub named_roots: Vec<Root>,
    /// The roots of all members that live.
    pub roots: Vec<Root>,
    /// The members, those that came first at the front.
    pub members: Vec<MemberSnapshot>,
    /// The operator's order.
    pub order: Order,
    /// The CPU time that it may have of each second, and what it has had; `None` if that is not
    /// limited.
    pub budget: Option<BudgetUse>,
    /// The number of times that a VCPU was seen to switch to it since it is a target.
    pub switch_ins: u64,
    /// The CPU time that it has had since it is a target.
    pub used: u64,
    /// The time for which its VCPUs were kept from running it.
    pub stopped: u64,
    /// The time for which it has been a target.
    pub age: u64,
    /// The largest lead of its guest's clock in that time.
    pub highest_lead: i64,
    /// The limit that is in effect now.
    pub limit: Limit,
    /// The time for which that limit has been in effect.
    pub limit_age: u64,
}

/// A member of a target, as the operator sees it. Times are in host ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberSnapshot {
    /// Its first root.
    pub root: Root,
    /// The first root of the member that it descends from.
    pub parent: Option<Root>,
    /// The sign by which it was known.
    pub sign: Sign,
    /// The time for which it has been a member.
    pub age: u64,
    /// The CPU time that it has had since then.
    pub used: u64,
    /// Its end, if that has come.
    pub ended: Option<End>,
}

/// The suppression in a VM, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Its targets.
    pub targets: Vec<TargetSnapshot>,
    /// The lead of its clock, which is to be given back.
    pub lead: Lead,
    /// The distance by which its clock is ahead for good.
    pub drift: Lead,
}

impl Suppression {
    /// Returns what the operator sees at `now`.
    #[must_use]
    pub(crate) fn snapshot(&mut self, now: HostTicks) -> Snapshot {
        let lead = self.lead(now);
        let drift = self.drift(now);
        let targets = self
            .targets
            .iter_mut()
            .map(|target| {
                let roots = target.roots().collect();
                let named_roots = target.named_roots().collect();
                let mut members: Vec<_> = target.members().iter().collect();
                members.sort_unstable_by_key(|member| member.id);
                let format = target.format();
                let members = members
                    .into_iter()
                    .map(|member| MemberSnapshot {
                        root: member.root(format),
                        parent: member.origin.parent,
                        sign: member.origin.sign,
                        age: now.since(member.origin.at),
                        used: member.used,
                        ended: member.ended,
                    })
                    .collect();
                let order = *target.order();
                let record = &mut target.record;
                let (limit, limit_since) = record.limit();
                TargetSnapshot {
                    named_roots,
                    roots,
                    members,
                    order,
                    budget: record.budget(now),
                    switch_ins: record.switch_ins,
                    used: record.used,
                    stopped: record.stopped,
                    age: now.since(record.since),
                    highest_lead: record.highest_lead,
                    limit,
                    limit_age: now.since(limit_since),
                }
            })
            .collect();
        Snapshot {
            targets,
            lead,
            drift,
        }
    }
}
