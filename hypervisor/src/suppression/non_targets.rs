//! The roots that have been looked at and are no target's.
//!
//! A switch to one of them costs one comparison, for a moment. Then it is looked at again, as its page
//! may be another process's by then.

#![forbid(unsafe_code)]

use devices::time::HostTicks;

use super::address_space::Root;

/// The number of roots that are remembered.
const CAPACITY: usize = 64;
/// The time for which it is not asked again whether a root is a target's, as a divisor of a second.
pub(super) const GOOD_FOR: u64 = 500;

/// The cache of such roots, each with the time until which it is known.
#[derive(Clone, Debug)]
pub(super) struct NonTargets([Option<(Root, HostTicks)>; CAPACITY]);

impl NonTargets {
    pub(super) const fn new() -> Self {
        Self([None; CAPACITY])
    }

    const fn slot(root: Root) -> usize {
        (root.address().0 >> 12) as usize % CAPACITY
    }

    /// Returns whether `root` is known to be no target's at `now`.
    pub(super) fn has(&self, root: Root, now: HostTicks) -> bool {
        self.0[Self::slot(root)].is_some_and(|(known, until)| known == root && now < until)
    }

    /// Takes note that `root` is no target's until `until`.
    pub(super) fn add(&mut self, root: Root, until: HostTicks) {
        self.0[Self::slot(root)] = Some((root, until));
    }

    /// Has all roots looked at again: what is a target's has changed.
    pub(super) fn clear(&mut self) {
        self.0.fill(None);
    }
}
