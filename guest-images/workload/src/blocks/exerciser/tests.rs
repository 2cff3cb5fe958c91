use proptest::prelude::*;

use super::*;
use crate::blocks::sector::scramble;

const LENGTH: usize = sector::LENGTH;
/// A disk of half a megabyte.
const SECTORS: u32 = 1024;

/// A disk in the test's memory. What is written is there at once, but for good after a flush only.
#[derive(Clone)]
struct Drive {
    now: Vec<u8>,
    /// What has been written since the last flush, in its order: sectors with their contents.
    unflushed: Vec<(u32, [u8; LENGTH])>,
    /// What was there at the last flush.
    flushed: Vec<u8>,
    /// The requests until the power is cut.
    left: u32,
    /// Whether a flush does nothing: a disk that lies.
    flushes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PowerCut;

fn place(sector: u32) -> core::ops::Range<usize> {
    let start = sector as usize * LENGTH;
    start..start + LENGTH
}

impl Drive {
    fn new() -> Self {
        let zeros = vec![0; SECTORS as usize * LENGTH];
        Self {
            now: zeros.clone(),
            unflushed: Vec::new(),
            flushed: zeros,
            left: u32::MAX,
            flushes: true,
        }
    }

    fn count(&mut self) -> Result<(), PowerCut> {
        self.left = self.left.checked_sub(1).ok_or(PowerCut)?;
        Ok(())
    }

    /// The power is cut: of what was not flushed each sector is there, or not, by chance.
    fn cut(&mut self, mut chance: u64) {
        self.now.clone_from(&self.flushed);
        for (sector, bytes) in self.unflushed.drain(..) {
            chance = scramble(chance);
            if chance & 1 == 0 {
                self.now[place(sector)].copy_from_slice(&bytes);
            }
        }
        self.flushed.clone_from(&self.now);
    }
}

impl Volume for &mut Drive {
    type Error = PowerCut;

    fn sectors(&self) -> u32 {
        SECTORS
    }

    fn read(&mut self, _: Way, first: u32, to: &mut [u8]) -> Result<(), PowerCut> {
        self.count()?;
        to.copy_from_slice(&self.now[place(first).start..][..to.len()]);
        Ok(())
    }

    fn write(&mut self, _: Way, first: u32, from: &[u8]) -> Result<(), PowerCut> {
        let is_cut = self.count();
        let (sectors, rest) = from.as_chunks::<LENGTH>();
        assert!(rest.is_empty() && !sectors.is_empty());
        for (sector, bytes) in (first..).zip(sectors) {
            self.now[place(sector)].copy_from_slice(bytes);
            self.unflushed.push((sector, *bytes));
        }
        is_cut
    }

    fn flush(&mut self) -> Result<(), PowerCut> {
        self.count()?;
        if self.flushes {
            self.unflushed.clear();
            self.flushed.clone_from(&self.now);
        }
        Ok(())
    }
}

/// What has come of a life.
#[derive(Debug, PartialEq, Eq)]
struct Lived {
    survey: Survey,
    tally: Tally,
    lives: usize,
    told: u64,
}

/// Lives until the power is cut. `None` if that is before it has begun.
fn live(drive: &mut Drive) -> Option<Lived> {
    let mut current = vec![0; SECTORS as usize];
    let mut buffer = vec![0; BUFFER];
    let mut told = 0;
    let begun = Exerciser::begin(drive, 5, &mut current, &mut buffer, |_| told += 1);
    let (mut life, survey) = match begun {
        Ok(begun) => begun,
        Err(Failure::Volume(PowerCut)) => return None,
        Err(failure) => panic!("{failure:?}"),
    };
    while life.do_round(|_| told += 1).is_ok() {}
    Some(Lived {
        survey,
        tally: life.tally(),
        lives: life.ledger().lives(),
        told,
    })
}

/// A life of `left` requests, and the power cut at its end.
fn life_of(drive: &mut Drive, left: u32, chance: u64) -> Option<Lived> {
    drive.left = left;
    let lived = live(drive);
    drive.cut(chance);
    lived
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_disk_that_keeps_what_was_flushed_has_lost_nothing(
        lives in proptest::collection::vec((0..120u32, any::<u64>()), 1..20),
    ) {
        let mut drive = Drive::new();
        let mut begun = 0;
        for (left, chance) in lives {
            let Some(lived) = life_of(&mut drive, left, chance) else {
                continue;
            };
            prop_assert_eq!((lived.survey.lost, lived.tally.lost, lived.told), (0, 0, 0));
            prop_assert_eq!(lived.survey.flushed + lived.survey.newer, SECTORS - IN_FRONT);
            prop_assert!(lived.lives > begun, "{} lives behind {}", lived.lives, begun);
            begun = lived.lives;
        }
    }

    #[test]
    fn a_flushed_sector_that_is_as_it_was_before_is_found(left in 60..200u32, sector in IN_FRONT..SECTORS) {
        let mut drive = Drive::new();
        prop_assert!(life_of(&mut drive, 40, 1).is_some());
        let before = drive.now[place(sector)].to_vec();
        prop_assert!(life_of(&mut drive, left, 2).is_some());
        // Rounds that are flushed have written it anew.
        let written = sector::read(drive.now[place(sector)].try_into().unwrap(), 5, sector);
        let ledger = Ledger::from_sector(drive.now[place(0)].try_into().unwrap()).unwrap();
        let is_flushed = ledger.settled().any(|round| {
            let area = Area { first: IN_FRONT, count: SECTORS - IN_FRONT };
            round.writes(5, area).any(|(_, generation)| Some(generation) == written)
        });
        prop_assume!(is_flushed && before != drive.now[place(sector)]);
        drive.now[place(sector)].copy_from_slice(&before);
        drive.left = 60;
        let lived = live(&mut drive).unwrap();
        prop_assert_eq!((lived.survey.lost, lived.told), (1, 1));
    }

    #[test]
    fn a_sector_that_is_torn_or_of_another_place_is_found(sector in IN_FRONT..SECTORS - 1, cut in 30..LENGTH, is_torn: bool) {
        let mut drive = Drive::new();
        prop_assert!(life_of(&mut drive, 100, 3).is_some());
        let other: Vec<u8> = drive.now[place(sector + 1)].to_vec();
        let from = if is_torn { cut } else { 0 };
        drive.now[place(sector)][from..].copy_from_slice(&other[from..]);
        drive.left = 60;
        prop_assert_eq!(live(&mut drive).unwrap().survey.lost, 1);
    }
}

#[test]
fn a_disk_whose_flushes_do_nothing_is_found_out() {
    let lost = (0..8).filter(|&chance| {
        let mut drive = Drive::new();
        life_of(&mut drive, 60, 1);
        drive.flushes = false;
        life_of(&mut drive, 200, chance);
        // The ledger, too, may be an old one, which knows of nothing.
        drive.left = 60;
        live(&mut drive).is_some_and(|lived| lived.survey.lost > 0)
    });
    assert!(lost.count() >= 3);
}

#[test]
fn what_a_read_finds_wrong_is_told_once() {
    let mut drive = Drive::new();
    life_of(&mut drive, 60, 1);
    let (mut current, mut buffer) = (vec![0; SECTORS as usize], vec![0; BUFFER]);
    drive.left = u32::MAX;
    let mut broken = drive.clone();
    let begun = Exerciser::begin(&mut drive, 5, &mut current, &mut buffer, |_| {});
    let (mut life, _) = begun.unwrap();
    life.volume.now[place(0).end..].fill(0);
    let mut told = Vec::new();
    for _ in 0..40 {
        life.do_round(|loss| told.push(loss.sector)).unwrap();
    }
    let count = told.len();
    assert!(count > 100, "{count}");
    assert_eq!(life.tally().lost, count as u64);
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), count);

    // And a disk whose ledger is broken is not taken for a new one.
    broken.now[100] ^= 1;
    let begun = Exerciser::begin(&mut broken, 5, &mut current, &mut buffer, |_| {});
    assert_eq!(begun.err(), Some(Failure::NoLedger));
}

#[test]
fn a_disk_without_room_is_refused() {
    let mut drive = Drive::new();
    let mut begin = |current: usize, buffer: usize| {
        let (mut current, mut buffer) = (vec![0; current], vec![0; buffer]);
        let begun = Exerciser::begin(&mut drive, 5, &mut current, &mut buffer, |_| {});
        begun.err()
    };
    assert_eq!(begin(SECTORS as usize, BUFFER - 1), Some(Failure::Size));
    let needed = (SECTORS - IN_FRONT) as usize;
    assert_eq!(begin(needed - 1, BUFFER), Some(Failure::Size));
    assert_eq!(begin(needed, BUFFER), None);
}
