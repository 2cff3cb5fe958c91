//! One life of a disk: what is on it is checked, and then rounds of writes and reads go on until the power is cut.

use super::ledger::Ledger;
use super::rounds::{Area, MOST_SECTORS, Round, Way, chance, somewhere};
use super::sector::{self, Generation};

/// The bytes of memory that a write or a read takes at most.
pub const BUFFER: usize = MOST_SECTORS as usize * sector::LENGTH;

/// The sectors in front of the area that is written at random. The first has the ledger; it shares its page of the
/// kernel's cache with none that is written otherwise.
const IN_FRONT: u32 = 8;
/// The generation of a sector of which it is not known what is there: it was wrong, and has not been written since.
const UNKNOWN: u32 = u32::MAX;

/// A disk.
pub trait Volume {
    /// The reason why something cannot be done.
    type Error;

    /// Returns how many sectors it has.
    fn sectors(&self) -> u32;

    /// Reads the sectors from `first` on into `to`, whole ones.
    ///
    /// # Errors
    /// If it cannot.
    fn read(&mut self, way: Way, first: u32, to: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes `from` to the sectors from `first` on, whole ones.
    ///
    /// # Errors
    /// If it cannot; then anything may be there.
    fn write(&mut self, way: Way, first: u32, from: &[u8]) -> Result<(), Self::Error>;

    /// Has all that was written be there for good.
    ///
    /// # Errors
    /// If it cannot.
    fn flush(&mut self) -> Result<(), Self::Error>;
}

/// The reason why a life cannot begin or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// An error of the disk's.
    Volume(E),
    /// A disk that is too small, or more memory for it than was given.
    Size,
    /// A first sector that is neither zeros nor a ledger.
    NoLedger,
    /// More lives than a ledger has room for.
    Lives,
}

impl<E> From<E> for Failure<E> {
    fn from(error: E) -> Self {
        Self::Volume(error)
    }
}

/// A sector that is not as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The sector.
    pub sector: u32,
    /// The generation that should be there. After a power cut, it may be a newer one too.
    pub expected: Generation,
    /// The one that is there; `None` if the contents are of none.
    pub found: Option<Generation>,
}

/// The state of a disk after a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The sectors that have what was flushed.
    pub flushed: u32,
    /// The sectors that have what was being written when the power was cut.
    pub newer: u32,
    /// The sectors that have anything else.
    pub lost: u32,
}

/// The work done in this life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rounds that were flushed and noted.
    pub rounds: u64,
    /// Sectors written.
    pub written: u64,
    /// Sectors read, of which all were verified.
    pub read: u64,
    /// The sectors among those that were not as they must be.
    pub lost: u64,
}

/// A life of a disk. See the [module documentation](super).
#[derive(Debug)]
pub struct Exerciser<'a, V> {
    volume: V,
    ledger: Ledger,
    area: Area,
    /// The generation of each sector of the area.
    current: &'a mut [u32],
    buffer: &'a mut [u8],
    tally: Tally,
}

impl<'a, V: Volume> Exerciser<'a, V> {
    /// Begins a life. A disk of zeros is filled, and begins its history with `seed`; of any other, all sectors are
    /// checked, and `tell` is told of each that is wrong. `current` is memory for a number a sector; `buffer` for
    /// [`BUFFER`] bytes.
    ///
    /// # Errors
    /// If the disk has an error, or is none of ours.
    pub fn begin(
        mut volume: V,
        seed: u64,
        current: &'a mut [u32],
        buffer: &'a mut [u8],
        mut tell: impl FnMut(Loss),
    ) -> Result<(Self, Survey), Failure<V::Error>> {
        let sectors = volume.sectors();
        let count = sectors.checked_sub(IN_FRONT).filter(|count| *count > 0);
        let count = count.ok_or(Failure::Size)?;
        let current = current.get_mut(..count as usize).ok_or(Failure::Size)?;
        let buffer = buffer.get_mut(..BUFFER).ok_or(Failure::Size)?;
        let first = buffer.first_chunk_mut().ok_or(Failure::Size)?;
        volume.read(Way::Direct, 0, first)?;
        let known = Ledger::from_sector(first);
        if known.is_none() && first.iter().any(|byte| *byte != 0) {
            return Err(Failure::NoLedger);
        }
        let is_new = known.is_none();
        let mut life = Self {
            volume,
            ledger: known.unwrap_or(Ledger::new(seed)),
            area: Area {
                first: IN_FRONT,
                count,
            },
            current,
            buffer,
            tally: Tally::default(),
        };
        life.current.fill(0);
        let survey = if is_new {
            life.fill()?;
            Survey {
                flushed: count,
                ..Survey::default()
            }
        } else {
            let survey = life.check(&mut tell)?;
            life.ledger.begin_life().map_err(|_| Failure::Lives)?;
            survey
        };
        // Before anything else is written.
        life.note()?;
        Ok((life, survey))
    }

    /// Returns what has been noted.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns what has been done in this life.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// Does a round: writes, with a read of another place behind each; a flush, and the note of it. `tell` is told of each
    /// sector that was read and is wrong.
    ///
    /// # Errors
    /// If the disk has an error.
    pub fn do_round(&mut self, mut tell: impl FnMut(Loss)) -> Result<(), V::Error> {
        let Ledger { seed, .. } = self.ledger;
        let round = self.ledger.round(self.ledger.next());
        for (index, (write, generation)) in (0..).zip(round.writes(seed, self.area)) {
            self.write(write.way, write.first, write.count, generation)?;
            self.verify_somewhere(round, index, &mut tell)?;
        }
        self.volume.flush()?;
        self.ledger.flush();
        self.note()?;
        self.tally.rounds += 1;
        Ok(())
    }

    /// Writes the ledger, for good.
    fn note(&mut self) -> Result<(), V::Error> {
        let note = self.ledger.to_sector();
        // From memory as the kernel wants it.
        let place = self.buffer.get_mut(..note.len()).unwrap_or_default();
        place.copy_from_slice(&note);
        self.volume.write(Way::Direct, 0, place)?;
        self.volume.flush()
    }

    /// Writes what the area begins with.
    fn fill(&mut self) -> Result<(), V::Error> {
        let Area { first, count } = self.area;
        let mut done = 0;
        while done < count {
            let piece = MOST_SECTORS.min(count - done);
            self.write(Way::Direct, first + done, piece, Generation(0))?;
            done += piece;
        }
        self.volume.flush()
    }

    /// Writes `generation` to `count` sectors from `first` on.
    fn write(
        &mut self,
        way: Way,
        first: u32,
        count: u32,
        generation: Generation,
    ) -> Result<(), V::Error> {
        let length = count as usize * sector::LENGTH;
        let bytes = self.buffer.get_mut(..length).unwrap_or_default();
        sector::fill(bytes, self.ledger.seed, first, generation);
        self.volume.write(way, first, bytes)?;
        self.set(first, count, generation.0);
        self.tally.written += u64::from(count);
        Ok(())
    }

    /// Notes what is in `count` sectors from `first` on.
    fn set(&mut self, first: u32, count: u32, generation: u32) {
        let from = (first - self.area.first) as usize;
        let places = self.current.get_mut(from..from + count as usize);
        places.unwrap_or_default().fill(generation);
    }

    /// Reads sectors, and hands each with its number and what is known of it to `see`, which returns what is known then.
    fn read(
        &mut self,
        way: Way,
        first: u32,
        count: u32,
        mut see: impl FnMut(u32, &mut u32, Option<Generation>),
    ) -> Result<(), V::Error> {
        let length = count as usize * sector::LENGTH;
        let bytes = self.buffer.get_mut(..length).unwrap_or_default();
        self.volume.read(way, first, bytes)?;
        let (sectors, _) = bytes.as_chunks::<{ sector::LENGTH }>();
        let from = (first - self.area.first) as usize;
        let known = self.current.get_mut(from..).unwrap_or_default();
        for ((number, sector), known) in (first..).zip(sectors).zip(known) {
            see(
                number,
                known,
                sector::read(sector, self.ledger.seed, number),
            );
        }
        Ok(())
    }

    /// Reads and verifies sectors at a random place.
    fn verify_somewhere(
        &mut self,
        round: Round,
        index: u32,
        tell: &mut impl FnMut(Loss),
    ) -> Result<(), V::Error> {
        // Other questions than those of the writes.
        let chance = chance(self.ledger.seed, round.number, 0x100 + index);
        let (place, count) = somewhere(chance, self.area);
        let way = match chance >> 40 & 3 {
            0 => Way::Cached,
            _ => Way::Direct,
        };
        let mut lost = 0;
        self.read(
            way,
            self.area.first + place,
            count,
            |sector, known, found| {
                let expected = Generation(*known);
                if *known != UNKNOWN && found != Some(expected) {
                    lost += 1;
                    *known = UNKNOWN;
                    tell(Loss {
                        sector,
                        expected,
                        found,
                    });
                }
            },
        )?;
        self.tally.read += u64::from(count);
        self.tally.lost += lost;
        Ok(())
    }

    /// Checks all sectors after a power cut.
    fn check(&mut self, tell: &mut impl FnMut(Loss)) -> Result<Survey, V::Error> {
        let (area, ledger) = (self.area, self.ledger.clone());
        for round in ledger.settled() {
            for (write, generation) in round.writes(ledger.seed, area) {
                self.set(write.first, write.count, generation.0);
            }
        }
        let is_unsettled = |sector, found| {
            ledger.unsettled().any(|round| {
                let mut writes = round.writes(ledger.seed, area);
                writes.any(|(write, generation)| generation == found && write.covers(sector))
            })
        };
        let mut survey = Survey::default();
        let mut done = 0;
        while done < area.count {
            let piece = MOST_SECTORS.min(area.count - done);
            self.read(
                Way::Direct,
                area.first + done,
                piece,
                |sector, known, found| {
                    let expected = Generation(*known);
                    match found {
                        Some(found) if found == expected => survey.flushed += 1,
                        Some(found) if is_unsettled(sector, found) => {
                            survey.newer += 1;
                            *known = found.0;
                        }
                        _ => {
                            survey.lost += 1;
                            *known = UNKNOWN;
                            tell(Loss {
                                sector,
                                expected,
                                found,
                            });
                        }
                    }
                },
            )?;
            done += piece;
        }
        self.tally.read += u64::from(area.count);
        Ok(survey)
    }
}

#[cfg(test)]
mod tests;
