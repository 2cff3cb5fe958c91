//! What the operator is told without having asked: that a family grows, that a target comes to its end,
//! and that its suppression is not what it was to be.
//!
//! Notices are made where VCPUs report, and wait in a short queue until somebody takes them who has the
//! time. A guest can cause as many as it likes, so only some in a second are kept, and the rest counted.

#![forbid(unsafe_code)]

use devices::time::{Hertz, HostTicks};

use super::address_space::Root;
use super::allowance::Allowance;
use super::member::Sign;

/// The notices that wait at most.
const CAPACITY: usize = 32;
/// The notices that may be made in a second in the long run.
const PER_SECOND: u64 = 8;
/// The seconds whose notices may come at once.
const SECONDS_AT_ONCE: u64 = 16;

/// The way in which a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The end of the process: its address space was emptied.
    Died,
    /// The loss of its trace: its root is somebody else's now.
    Lost,
}

impl End {
    /// Returns its name, for programs.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Lost => "lost",
        }
    }
}

/// The subject of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A process that has come into the family.
    Joined {
        /// The first root of it that was seen.
        member: Root,
        /// The member that it descends from, by its first root.
        parent: Root,
        /// The sign by which it was known.
        sign: Sign,
        /// Whether no other member lives: it has taken over.
        takes_over: bool,
    },
    /// A member that has come to its end.
    MemberEnded {
        /// Its first root.
        member: Root,
        /// The way in which it ended.
        end: End,
        /// The number of members that live on.
        living: usize,
    },
    /// The end of the last member, of which no descendant was seen: the target is released.
    Ended(End),
    /// A descendant that is not followed: the family has as many members as it may have.
    Full {
        /// The first root of the descendant.
        root: Root,
        /// The bound.
        bound: usize,
    },
    /// The suppression has been without effect for two seconds.
    WithoutEffect {
        /// The CPU time that the target had in that time, in millionths of one CPU.
        share: u64,
    },
    /// The target has come to the bound of its budget.
    LimitedByBudget,
    /// Notices that were left out, as there were too many.
    LeftOut(u32),
}

/// A notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// The time of its cause.
    pub at: HostTicks,
    /// The target, by the root that the operator named.
    pub target: Root,
    /// The subject.
    pub subject: Subject,
}

/// The notices that wait to be told.
#[derive(Clone, Debug)]
pub(super) struct Notices {
    /// The waiting ones, in their order, and nothing behind them.
    queue: [Option<Notice>; CAPACITY],
    count: usize,
    /// The number of those at the front that the trace has been told of.
    traced: usize,
    left_out: u32,
    allowance: Allowance,
    second: u64,
}

impl Notices {
    pub(super) const fn new(tsc: Hertz, now: HostTicks) -> Self {
        let second = tsc.get();
        Self {
            queue: [None; CAPACITY],
            count: 0,
            traced: 0,
            left_out: 0,
            // A notice is a tick of the allowance.
            allowance: Allowance::new(
                second / PER_SECOND,
                second.saturating_mul(SECONDS_AT_ONCE),
                now,
            ),
            second,
        }
    }

    /// Returns whether none waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds one, or counts it as left out.
    pub(super) fn add(&mut self, notice: Notice) {
        let may_be = self.allowance.there_at(1, notice.at) <= notice.at;
        // The last place is for the number of those left out.
        if !may_be || self.count >= CAPACITY - 1 {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.allowance.charge(1, notice.at);
        if self.left_out > 0 && self.count < CAPACITY - 2 {
            self.note_left_out(notice);
        }
        self.push(notice);
    }

    fn note_left_out(&mut self, notice: Notice) {
        let left_out = core::mem::take(&mut self.left_out);
        self.push(Notice {
            subject: Subject::LeftOut(left_out),
            ..notice
        });
    }

    fn push(&mut self, notice: Notice) {
        if let Some(place) = self.queue.get_mut(self.count) {
            *place = Some(notice);
            self.count += 1;
        }
    }

    /// Returns those that were not returned before, for the trace.
    pub(super) fn untraced(&mut self) -> impl Iterator<Item = Notice> + '_ {
        let from = core::mem::replace(&mut self.traced, self.count).min(self.count);
        self.queue[from..self.count].iter().flatten().copied()
    }

    /// Takes all that wait at `now`.
    pub(super) fn take(&mut self, now: HostTicks) -> impl Iterator<Item = Notice> + use<> {
        if let Some(last) = self.count.checked_sub(1).and_then(|last| self.queue[last])
            && self.left_out > 0
            && now.since(last.at) >= self.second
        {
            self.note_left_out(last);
        }
        self.count = 0;
        self.traced = 0;
        core::mem::replace(&mut self.queue, [None; CAPACITY])
            .into_iter()
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::address_space::RootFormat;
    use super::*;

    const TSC: Hertz = Hertz::new(1_000_000_000);
    const SECOND: u64 = 1_000_000_000;

    fn notice(at: u64) -> Notice {
        Notice {
            at: HostTicks(at),
            target: Root::new(0x1000, RootFormat::Long),
            subject: Subject::LimitedByBudget,
        }
    }

    fn taken(notices: &mut Notices, now: u64) -> Vec<Subject> {
        notices.take(HostTicks(now)).map(|it| it.subject).collect()
    }

    #[test]
    fn they_are_taken_once_in_their_order_and_traced_before() {
        let mut notices = Notices::new(TSC, HostTicks(0));
        notices.add(notice(1));
        notices.add(notice(2));
        let at = |it: Notice| it.at.0;
        assert_eq!(notices.untraced().map(at).collect::<Vec<_>>(), [1, 2]);
        notices.add(notice(3));
        assert_eq!(notices.untraced().map(at).collect::<Vec<_>>(), [3]);
        assert_eq!(notices.untraced().count(), 0);
        let all: Vec<_> = notices.take(HostTicks(4)).map(at).collect();
        assert_eq!(all, [1, 2, 3]);
        assert!(notices.is_empty());
        notices.add(notice(5));
        assert_eq!(notices.untraced().count(), 1);
    }

    #[test]
    fn a_flood_is_counted_and_not_kept() {
        let mut notices = Notices::new(TSC, HostTicks(0));
        for at in 0..1000 {
            notices.add(notice(at));
        }
        let first = taken(&mut notices, 1000).len();
        assert_eq!(first, CAPACITY - 1);
        notices.add(notice(2 * SECOND));
        let then = taken(&mut notices, 2 * SECOND);
        let left_out = (1000 - first) as u32;
        assert_eq!(then, [Subject::LeftOut(left_out), Subject::LimitedByBudget]);
        let mut kept = 0;
        for n in 0..10_000 {
            notices.add(notice(2 * SECOND + n * SECOND / 100));
            kept += taken(&mut notices, 0)
                .iter()
                .filter(|it| **it == Subject::LimitedByBudget)
                .count();
        }
        let most = 100 * PER_SECOND + SECONDS_AT_ONCE * PER_SECOND;
        assert!((500..=most).contains(&(kept as u64)), "{kept}");
    }
}
