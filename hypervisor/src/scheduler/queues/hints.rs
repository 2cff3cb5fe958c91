//! What CPUs tell each other without locks: who has nothing to run, and who has something to give.

use super::super::steps;
use crate::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A set of CPUs that each CPU puts itself into and takes itself out of, with its queue locked.
#[derive(Debug)]
pub(super) struct SharedSet(AtomicU64);

impl SharedSet {
    pub(super) const fn new(cpus: u64) -> Self {
        Self(AtomicU64::new(cpus))
    }

    /// Puts `cpu` in or takes it out. What does not change is not written.
    pub(super) fn set(&self, cpu: usize, is_in: bool) {
        let bit = 1 << cpu;
        if (self.0.load(SeqCst) & bit != 0) == is_in {
            return;
        }
        if is_in {
            self.0.fetch_or(bit, SeqCst);
        } else {
            self.0.fetch_and(!bit, SeqCst);
        }
    }

    /// Returns the first CPU in it that is not `cpu`.
    pub(super) fn first_but(&self, cpu: usize) -> Option<usize> {
        self.others(cpu, 0).next()
    }

    /// Returns the CPUs in it, without `cpu`, from `start` on.
    pub(super) fn others(&self, cpu: usize, start: u32) -> impl Iterator<Item = usize> {
        steps::count();
        let start = start % u64::BITS;
        let mut left = (self.0.load(SeqCst) & !(1 << cpu)).rotate_right(start);
        core::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(((bit + start) % u64::BITS) as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn others_come_in_a_circle() {
        let set = SharedSet::new(0);
        for cpu in [0, 5, 63] {
            set.set(cpu, true);
        }
        set.set(5, true);
        assert_eq!(set.others(5, 0).collect::<Vec<_>>(), [0, 63]);
        assert_eq!(set.others(7, 6).collect::<Vec<_>>(), [63, 0, 5]);
        assert_eq!(set.first_but(0), Some(5));
        set.set(5, false);
        set.set(63, false);
        assert_eq!(set.first_but(0), None);
    }
}
