//! What a round writes: it follows from the seed and the round's number, and from nothing else.

use super::sector::{Generation, scramble};

/// The number of writes of a round.
pub const WRITES: u32 = 8;
/// The lengths of writes, in sectors.
const LENGTHS: [u32; 8] = [1, 1, 2, 8, 8, 32, 128, 640];
/// The most sectors of a write.
pub const MOST_SECTORS: u32 = 640;

/// The way in which something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The way from the program's memory to the disk: `O_DIRECT`.
    Direct,
    /// The way through the kernel's page cache, which writes it when it likes, or when it is to flush.
    Cached,
}

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The first sector.
    pub first: u32,
    /// The number of sectors.
    pub count: u32,
    /// The way in which it is written.
    pub way: Way,
}

impl Write {
    /// Tells whether `sector` is written.
    #[must_use]
    pub const fn covers(&self, sector: u32) -> bool {
        sector >= self.first && sector - self.first < self.count
    }
}

/// The sectors of a disk that are written at random: from `first` on, `count`, which is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The first sector.
    pub first: u32,
    /// The number of sectors.
    pub count: u32,
}

/// A round's writes, in their order.
///
/// A round that repairs writes what `like` wrote, in contents of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Its number, from 1 on.
    pub number: u32,
    /// The number of the round whose places it writes: its own, unless it repairs.
    pub like: u32,
}

impl Round {
    /// Returns its writes to `area` in the history `seed`, with the generation of each.
    pub fn writes(self, seed: u64, area: Area) -> impl Iterator<Item = (Write, Generation)> {
        (0..WRITES).map(move |index| {
            let write = write(seed, self.like, index, area);
            (write, generation(self.number, index))
        })
    }
}

/// Returns the generation that write `index` of round `number` makes. Generation 0 is what an area begins with.
#[must_use]
pub const fn generation(number: u32, index: u32) -> Generation {
    Generation(number * WRITES + index)
}

/// Returns the round that a generation is of; 0 is none.
#[must_use]
pub const fn round_of(generation: Generation) -> u32 {
    generation.0 / WRITES
}

/// Returns a number that looks like chance, for question `index` of round `number`.
#[must_use]
pub const fn chance(seed: u64, number: u32, index: u32) -> u64 {
    scramble(scramble(seed ^ number as u64) ^ index as u64)
}

/// Returns where in `area` something is done by `chance`, from its beginning on, and to how many sectors.
pub(super) fn somewhere(chance: u64, area: Area) -> (u32, u32) {
    let length = LENGTHS[(chance % LENGTHS.len() as u64) as usize];
    let count = length.min(area.count);
    ((chance >> 8) as u32 % (area.count - count + 1), count)
}

fn write(seed: u64, number: u32, index: u32, area: Area) -> Write {
    let chance = chance(seed, number, index);
    let (place, count) = somewhere(chance, area);
    // Half of them begin where pages do, as file systems have it.
    let place = match chance >> 40 & 1 {
        0 => place,
        _ => place / 8 * 8,
    };
    let way = match chance >> 44 & 3 {
        0 => Way::Cached,
        _ => Way::Direct,
    };
    Write {
        first: area.first + place,
        count,
        way,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn writes_are_within_the_area(seed: u64, number in 1..1_000_000u32, first in 0..100u32, count in 1..5000u32) {
            let area = Area { first, count };
            let round = Round { number, like: number };
            for (write, generation) in round.writes(seed, area) {
                prop_assert!(write.first >= first && (1..=MOST_SECTORS).contains(&write.count));
                prop_assert!(write.first + write.count <= first + count);
                prop_assert!(write.covers(write.first) && !write.covers(write.first + write.count));
                prop_assert_eq!(round_of(generation), number);
            }
        }

        #[test]
        fn a_round_that_repairs_writes_the_same_places_anew(seed: u64, like in 1..1000u32, later in 1..9u32) {
            let area = Area { first: 1, count: 5000 };
            let first: Vec<_> = Round { number: like, like }.writes(seed, area).collect();
            let again: Vec<_> = Round { number: like + later, like }.writes(seed, area).collect();
            for (a, b) in first.iter().zip(&again) {
                prop_assert_eq!(a.0, b.0);
                prop_assert!(a.1 < b.1);
            }
        }
    }

    #[test]
    fn writes_are_of_all_lengths_and_ways_and_all_over_the_area() {
        let area = Area {
            first: 8,
            count: 8000,
        };
        let rounds = (1..200).map(|number| Round {
            number,
            like: number,
        });
        let writes: Vec<Write> = rounds
            .flat_map(|round| round.writes(3, area).map(|(write, _)| write))
            .collect();
        let lengths: BTreeSet<u32> = writes.iter().map(|write| write.count).collect();
        assert_eq!(lengths, BTreeSet::from(LENGTHS));
        let cached = writes.iter().filter(|write| write.way == Way::Cached);
        assert!((writes.len() / 8..writes.len() / 2).contains(&cached.count()));
        for part in 0..8 {
            let sector = area.first + part * 1000 + 500;
            assert!(writes.iter().any(|write| write.covers(sector)), "{sector}");
        }
    }
}
