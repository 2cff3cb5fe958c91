//! Who has taken more CPU time than it may, and for how long.

use alloc::vec::Vec;

use devices::time::HostTicks;

use crate::suppression::address_space::Root;
use crate::suppression::usage::Process;

/// A process that has more than it may.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    root: Root,
    since: HostTicks,
    told: bool,
}

/// The processes that have more than a rule lets them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hogs {
    suspects: Vec<Suspect>,
}

impl Hogs {
    /// The most processes that are followed at a time: more cannot have much.
    pub(crate) const MOST: usize = 64;

    /// Takes the processes as they are at `now`. Calls `found` with each that has had more than
    /// `permille` of a CPU for `ticks`, once. Returns how many have had more, but not for so long.
    pub(crate) fn look<'a>(
        &mut self,
        processes: &'a [Process],
        permille: u32,
        ticks: u64,
        now: HostTicks,
        mut found: impl FnMut(&'a Process),
    ) -> u64 {
        let mut before = core::mem::take(&mut self.suspects);
        for process in processes
            .iter()
            .filter(|it| it.share > permille)
            .take(Self::MOST)
        {
            let known = before
                .iter()
                .position(|it| process.roots.contains(&it.root));
            let mut suspect = match known {
                Some(at) => before.swap_remove(at),
                None => Suspect {
                    root: match process.roots.first() {
                        Some(root) => *root,
                        None => continue,
                    },
                    since: now,
                    told: false,
                },
            };
            if !suspect.told && now.since(suspect.since) >= ticks {
                suspect.told = true;
                found(process);
            }
            self.suspects.push(suspect);
        }
        before.iter().filter(|suspect| !suspect.told).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suppression::address_space::RootFormat;

    fn process(roots: &[u64], share: u32) -> Process {
        Process {
            roots: roots
                .iter()
                .map(|root| Root::new(*root, RootFormat::Long))
                .collect(),
            share,
            total: 0,
            last_seen: HostTicks(0),
        }
    }

    /// Whether a process with these shares, a second apart, is found, at which of them, and what was
    /// missed.
    fn found(shares: &[u32]) -> (Vec<usize>, u64) {
        let mut hogs = Hogs::default();
        let mut found = Vec::new();
        let mut misses = 0;
        for (second, share) in shares.iter().enumerate() {
            // The order of roots is that of what they have had.
            let roots = if second % 2 == 0 {
                [0x1000, 0x2000]
            } else {
                [0x2000, 0x1000]
            };
            let list = [process(&roots, *share), process(&[0x3000], 10)];
            let now = HostTicks(second as u64);
            misses += hogs.look(&list, 500, 3, now, |_| found.push(second));
        }
        (found, misses)
    }

    #[test]
    fn who_takes_much_for_long_is_found_once() {
        assert_eq!(found(&[900; 10]), (alloc::vec![3], 0));
        assert_eq!(found(&[500; 10]), (alloc::vec![], 0), "as much as it may");
    }

    #[test]
    fn who_stops_in_time_is_a_miss_and_begins_anew() {
        assert_eq!(
            found(&[900, 900, 900, 0, 900, 900, 900, 900, 0, 0]),
            (alloc::vec![7], 1)
        );
    }

    #[test]
    fn a_crowd_is_followed_as_far_as_there_is_room() {
        let mut hogs = Hogs::default();
        let crowd: Vec<Process> = (0..1000).map(|it| process(&[it << 12], 900)).collect();
        hogs.look(&crowd, 1, 1, HostTicks(0), |_| ());
        assert_eq!(hogs.suspects.len(), Hogs::MOST);
    }
}
