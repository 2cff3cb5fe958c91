//! The roots of members that have come to their end: whoever remembers something of these processes is to
//! forget it, as their pages are used again.

#![forbid(unsafe_code)]

use super::address_space::Root;

/// The departures that are remembered.
const CAPACITY: usize = 32;

/// The latest departures.
#[derive(Clone, Debug)]
pub(super) struct Departures {
    roots: [Option<Root>; CAPACITY],
    /// The number of all so far.
    count: u64,
}

/// The departures since a certain time.
#[derive(Debug)]
pub(crate) struct Departed<I> {
    /// The number of all departures up to now.
    pub count: u64,
    /// The roots, as far as they are remembered.
    pub roots: I,
    /// Whether there are more, which are not remembered any more.
    pub are_incomplete: bool,
}

impl Departures {
    pub(super) const NONE: Self = Self {
        roots: [None; CAPACITY],
        count: 0,
    };

    /// Takes note of the end of a process that had `root`.
    pub(super) fn add(&mut self, root: Root) {
        self.roots[(self.count % CAPACITY as u64) as usize] = Some(root);
        self.count += 1;
    }

    /// Returns those that have come since there were `count`.
    pub(super) fn since(&self, count: u64) -> Departed<impl Iterator<Item = Root> + '_> {
        let first = self.count.saturating_sub(CAPACITY as u64).max(count);
        let at = |number: u64| self.roots[(number % CAPACITY as u64) as usize];
        Departed {
            count: self.count,
            roots: (first..self.count).filter_map(at),
            are_incomplete: first > count,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::address_space::RootFormat;
    use super::*;

    #[test]
    fn each_departure_is_told_once_or_it_is_told_that_some_are_forgotten() {
        let root = |number: u64| Root::new(number << 12, RootFormat::Long);
        let mut departures = Departures::NONE;
        let mut seen = 0;
        let mut next = 1;
        for count in [0, 1, 3, 32, 0, 33, 100] {
            let roots: Vec<Root> = (next..next + count).map(root).collect();
            next += count;
            for &root in &roots {
                departures.add(root);
            }
            let departed = departures.since(seen);
            assert_eq!(departed.count, seen + count);
            assert_eq!(departed.are_incomplete, count > 32);
            let kept = roots.len().saturating_sub(32);
            assert_eq!(departed.roots.collect::<Vec<_>>(), roots[kept..]);
            seen += count;
        }
    }
}
