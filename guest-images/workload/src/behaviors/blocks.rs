//! Writes and reads a disk at random, and verifies what is there, over power cuts too: see [`crate::blocks`]. It is
//! the virtio disk of the name `blocks`, so that no other is written by mistake.

use core::ffi::CStr;

use super::Behavior;
use crate::blocks::exerciser::{BUFFER, Exerciser, Failure, Loss, Volume};
use crate::blocks::rounds::Way;
use crate::blocks::sector::LENGTH;
use crate::say;
use crate::system::files::{self, File};
use crate::system::time::{Clock, now};
use crate::system::{Errno, memory};
use crate::work::Work;

/// The name of the disk: its serial number.
const NAME: &[u8] = b"blocks";
/// The letters of disks among which it is looked for.
const LETTERS: core::ops::RangeInclusive<u8> = b'a'..=b'h';

/// The seed of a new disk's history, if the process is started without a number.
const SEED: u32 = 1;
/// The most sectors that are told of one by one.
const TOLD: u64 = 8;
/// The time between two lines that tell how far it is, in nanoseconds.
const INTERVAL: u64 = 200_000_000;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "blocks",
    unit: "a round of 8 random writes and reads of the disk `id=blocks`, verified and flushed, over power cuts too",
    run,
};

/// A disk, by two of the kernel's ways to it.
struct Disk {
    direct: File,
    cached: File,
    sectors: u32,
}

impl Disk {
    fn open(path: &CStr) -> Result<Self, Errno> {
        let direct = File::open_for_writing(path, true)?;
        let sectors = direct.length()? / LENGTH;
        Ok(Self {
            direct,
            cached: File::open_for_writing(path, false)?,
            sectors: u32::try_from(sectors).map_err(|_| Errno::EFBIG)?,
        })
    }

    const fn file(&self, way: Way) -> &File {
        match way {
            Way::Direct => &self.direct,
            Way::Cached => &self.cached,
        }
    }
}

/// Returns the text of `path`, whose letter `?` is this one.
fn with_letter<const N: usize>(mut path: [u8; N], letter: u8) -> [u8; N] {
    for place in path.iter_mut().filter(|place| **place == b'?') {
        *place = letter;
    }
    path
}

/// Opens the disk that is meant.
fn find() -> Result<Disk, Errno> {
    for letter in LETTERS {
        let serial = with_letter(*b"/sys/block/vd?/serial\0", letter);
        let device = with_letter(*b"/dev/vd?\0", letter);
        let [serial, device] = [&serial[..], &device].map(CStr::from_bytes_until_nul);
        let (Ok(serial), Ok(device)) = (serial, device) else {
            continue;
        };
        let mut buffer = [0; 32];
        if files::read_file(serial, &mut buffer).is_ok_and(|name| name == NAME) {
            return Disk::open(device);
        }
    }
    Err(Errno::ENODEV)
}

/// Tells whether all was read or written.
fn all(done: usize, length: usize) -> Result<(), Errno> {
    if done == length {
        Ok(())
    } else {
        Err(Errno::EIO)
    }
}

impl Volume for Disk {
    type Error = Errno;

    fn sectors(&self) -> u32 {
        self.sectors
    }

    fn read(&mut self, way: Way, first: u32, to: &mut [u8]) -> Result<(), Errno> {
        let done = self.file(way).read_at(first as usize * LENGTH, to)?;
        all(done, to.len())
    }

    fn write(&mut self, way: Way, first: u32, from: &[u8]) -> Result<(), Errno> {
        let done = self.file(way).write_at(first as usize * LENGTH, from)?;
        all(done, from.len())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        self.cached.flush()
    }
}

fn run(work: Work) -> Result<(), Errno> {
    let begun_at = now(Clock::Monotonic);
    let disk = find()?;
    let current = memory::private_numbers(disk.sectors as usize)?;
    let buffer = memory::private(BUFFER)?;
    let mut told = 0;
    let mut tell = |loss: Loss| {
        work.slot().count(false);
        told += 1;
        if told <= TOLD {
            say!("blocks LOST {loss:?}");
        }
    };
    let seed = work.number().unwrap_or(SEED).into();
    let begun = Exerciser::begin(disk, seed, current, buffer, &mut tell);
    let (mut life, survey) = match begun {
        Ok(begun) => begun,
        Err(Failure::Volume(error)) => return Err(error),
        Err(failure) => {
            say!("blocks cannot begin: {failure:?}");
            return Err(Errno::EINVAL);
        }
    };
    say!(
        "blocks began life={} round={} flushed={} newer={} lost={}",
        life.ledger().lives(),
        life.ledger().next(),
        survey.flushed,
        survey.newer,
        survey.lost
    );
    let mut due = now(Clock::Monotonic) + INTERVAL;
    while work.goes_on() {
        life.do_round(&mut tell)?;
        work.count();
        let now = now(Clock::Monotonic);
        if now >= due {
            due = now + INTERVAL;
            say_how_far(&life, now - begun_at);
        }
    }
    say_how_far(&life, now(Clock::Monotonic) - begun_at);
    Ok(())
}

/// Tells what has been done in so many nanoseconds.
fn say_how_far(life: &Exerciser<'_, Disk>, passed: u64) {
    let tally = life.tally();
    say!(
        "blocks life={} round={} rounds={} written={} read={} lost={} ms={}",
        life.ledger().lives(),
        life.ledger().flushed(),
        tally.rounds,
        tally.written,
        tally.read,
        tally.lost,
        passed / 1_000_000
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a file, which the kernel may write past its cache as well: a life of a few rounds, and another.
    #[test]
    fn a_file_is_a_disk() {
        let path = std::env::temp_dir().join(format!("workload-blocks-{}", std::process::id()));
        std::fs::write(&path, vec![0; 1 << 20]).expect("a file");
        let name = std::ffi::CString::new(path.to_str().expect("a name")).expect("a name");
        let buffer = memory::private(BUFFER).expect("memory");
        let mut current = [0; 2048];
        for life in 1..3 {
            let disk = match Disk::open(&name) {
                // Not all file systems can.
                Err(Errno::EINVAL) => break,
                disk => disk.expect("a disk"),
            };
            let begun = Exerciser::begin(disk, 1, &mut current, buffer, |loss| {
                panic!("{loss:?}");
            });
            let (mut exerciser, survey) = begun.expect("a disk of ours");
            assert_eq!(survey.flushed, 2040);
            for _ in 0..20 {
                exerciser
                    .do_round(|loss| panic!("{loss:?}"))
                    .expect("a round");
            }
            assert_eq!(exerciser.ledger().lives(), life);
            assert!(exerciser.tally().written > 100);
        }
        let _ = std::fs::remove_file(path);
    }
}
