//! The note on a disk of what has been flushed, in one sector: a power cut leaves the old note or the new one.

use super::rounds::Round;
use super::sector::{self, scramble};

/// The most lives that there is room for: a power cut ends each.
pub const MOST_LIVES: usize = 96;

const MAGIC: u64 = u64::from_le_bytes(*b"ledger\x01\n");
/// The bytes in front of the lives: the magic, the check, the seed, the last round that was flushed, and the number of
/// lives.
const HEADER: usize = 32;

const _: () = assert!(HEADER + 4 * MOST_LIVES <= sector::LENGTH);

/// The history of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The seed of its history.
    pub seed: u64,
    /// The last round that was flushed; 0 if none was.
    flushed: u32,
    /// The first round of each life. The one before it was cut off: it is there in part, or not at all.
    firsts: [u32; MOST_LIVES],
    lives: usize,
}

/// The lack of room for one more life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Ledger {
    /// Returns the ledger of a disk with nothing on it but what an area begins with, in its first life.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let mut firsts = [0; MOST_LIVES];
        firsts[0] = 1;
        Self {
            seed,
            flushed: 0,
            firsts,
            lives: 1,
        }
    }

    /// Returns the number of lives that have begun.
    #[must_use]
    pub const fn lives(&self) -> usize {
        self.lives
    }

    /// Returns the last round that was flushed; 0 if none was.
    #[must_use]
    pub const fn flushed(&self) -> u32 {
        self.flushed
    }

    /// Returns the first rounds of all lives.
    fn firsts(&self) -> &[u32] {
        self.firsts.get(..self.lives).unwrap_or_default()
    }

    /// Returns the number of the round that comes next in this life; after a power cut, of the one that was cut off.
    #[must_use]
    pub fn next(&self) -> u32 {
        let first = self.firsts().last().copied().unwrap_or(1);
        first.max(self.flushed + 1)
    }

    /// Notes that the [next](Self::next) round has been flushed.
    pub fn flush(&mut self) {
        self.flushed = self.next();
    }

    /// Notes that a new life begins: the [next](Self::next) round was cut off.
    ///
    /// # Errors
    /// If there have been too many.
    pub fn begin_life(&mut self) -> Result<(), Full> {
        let first = self.next() + 1;
        *self.firsts.get_mut(self.lives).ok_or(Full)? = first;
        self.lives += 1;
        Ok(())
    }

    /// Tells whether round `number` was cut off.
    fn was_cut_off(&self, number: u32) -> bool {
        self.firsts().contains(&(number + 1))
    }

    /// Returns round `number`. The first of a life repairs what was cut off: it writes the same places, so that no
    /// place stays for long of which it is not known what is there.
    #[must_use]
    pub fn round(&self, number: u32) -> Round {
        let mut like = number;
        while like > 1 && self.was_cut_off(like - 1) {
            like -= 1;
        }
        Round { number, like }
    }

    /// Returns the rounds that are on the disk for sure, in their order.
    pub fn settled(&self) -> impl Iterator<Item = Round> + '_ {
        let numbers = (1..=self.flushed).filter(|&number| !self.was_cut_off(number));
        numbers.map(|number| self.round(number))
    }

    /// Returns the rounds of which anything may be on the disk after a power cut. All write the same places.
    pub fn unsettled(&self) -> impl Iterator<Item = Round> + '_ {
        (self.flushed + 1..=self.next()).map(|number| self.round(number))
    }

    /// Returns it as it is on the disk.
    #[must_use]
    pub fn to_sector(&self) -> [u8; sector::LENGTH] {
        let mut bytes = [0; sector::LENGTH];
        let [lives, flushed] = [self.lives as u32, self.flushed].map(u32::to_le_bytes);
        let fields = [
            (0, &MAGIC.to_le_bytes()[..]),
            (16, &self.seed.to_le_bytes()),
            (24, &flushed),
            (28, &lives),
        ];
        for (at, field) in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
        }
        let (places, _) = bytes[HEADER..].as_chunks_mut::<4>();
        for (place, first) in places.iter_mut().zip(self.firsts) {
            *place = first.to_le_bytes();
        }
        let check = check(&bytes).to_le_bytes();
        bytes[8..16].copy_from_slice(&check);
        bytes
    }

    /// Returns the ledger in a sector of a disk, if there is one, whole.
    #[must_use]
    pub fn from_sector(bytes: &[u8; sector::LENGTH]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<8>();
        let [magic, checked, seed, ..] = *words else {
            return None;
        };
        let checked = u64::from_le_bytes(checked);
        if u64::from_le_bytes(magic) != MAGIC || checked != check(bytes) {
            return None;
        }
        let (halves, _) = bytes.as_chunks::<4>();
        let half = |at: usize| halves.get(at).copied().map(u32::from_le_bytes);
        let mut firsts = [0; MOST_LIVES];
        for (at, first) in firsts.iter_mut().enumerate() {
            *first = half(HEADER / 4 + at)?;
        }
        let lives = half(7)? as usize;
        (1..=MOST_LIVES).contains(&lives).then_some(Self {
            seed: u64::from_le_bytes(seed),
            flushed: half(6)?,
            firsts,
            lives,
        })
    }
}

/// Returns a check of all but the check's own place.
fn check(bytes: &[u8; sector::LENGTH]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let others = words.iter().enumerate().filter(|(at, _)| *at != 1);
    others.fold(0, |sum, (_, word)| {
        scramble(sum ^ u64::from_le_bytes(*word))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(rounds: impl Iterator<Item = Round>) -> Vec<(u32, u32)> {
        rounds.map(|round| (round.number, round.like)).collect()
    }

    #[test]
    fn a_life_begins_with_the_repair_of_what_was_cut_off() {
        let mut ledger = Ledger::new(1);
        assert_eq!(numbers(ledger.unsettled()), [(1, 1)]);
        ledger.flush();
        ledger.flush();
        assert_eq!((ledger.flushed(), ledger.next()), (2, 3));
        assert_eq!(numbers(ledger.settled()), [(1, 1), (2, 2)]);
        assert_eq!(numbers(ledger.unsettled()), [(3, 3)]);
        ledger.begin_life().unwrap();
        // Cut off once more, before the repair was flushed.
        assert_eq!(numbers(ledger.unsettled()), [(3, 3), (4, 3)]);
        ledger.begin_life().unwrap();
        assert_eq!(numbers(ledger.unsettled()), [(3, 3), (4, 3), (5, 3)]);
        ledger.flush();
        assert_eq!(numbers(ledger.settled()), [(1, 1), (2, 2), (5, 3)]);
        assert_eq!(numbers(ledger.unsettled()), [(6, 6)]);
        assert_eq!(ledger.lives(), 3);
    }

    #[test]
    fn there_is_room_for_so_many_lives() {
        let mut ledger = Ledger::new(1);
        while ledger.lives() < MOST_LIVES {
            ledger.begin_life().unwrap();
        }
        let full = ledger.clone();
        assert_eq!(ledger.begin_life(), Err(Full));
        assert_eq!(ledger, full);
        assert_eq!(Ledger::from_sector(&full.to_sector()), Some(full));
    }

    proptest! {
        #[test]
        fn a_ledger_is_read_as_it_was_written_or_not_at_all(
            seed: u64,
            events in proptest::collection::vec(any::<bool>(), 0..60),
            at in 0..sector::LENGTH,
            change in 1..=u8::MAX,
        ) {
            let mut ledger = Ledger::new(seed);
            for is_cut in events {
                if is_cut {
                    ledger.begin_life().unwrap();
                } else {
                    ledger.flush();
                }
            }
            let mut bytes = ledger.to_sector();
            prop_assert_eq!(Ledger::from_sector(&bytes), Some(ledger.clone()));
            bytes[at] ^= change;
            prop_assert_eq!(Ledger::from_sector(&bytes), None);
            // Each round is in one place of three: settled, cut off, or not settled.
            let settled: Vec<_> = numbers(ledger.settled());
            let cut = (1..=ledger.flushed()).filter(|&number| ledger.was_cut_off(number));
            prop_assert_eq!(settled.len() + cut.count(), ledger.flushed() as usize);
            let unsettled = numbers(ledger.unsettled());
            prop_assert!(unsettled.windows(2).all(|pair| pair[0].1 == pair[1].1));
        }
    }
}
