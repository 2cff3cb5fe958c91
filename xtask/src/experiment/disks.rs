//! A disk that is kept over restarts: is anything lost but what a power cut may lose?

use std::fmt;
use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::common::cells::Cells;
use super::common::{dmesg, record, results};
use crate::testbed::claim::Claim;
use crate::testbed::machine::Kind;
use crate::testbed::module::{Guest, Module, QUICK_BOOT};
use crate::testbed::progress::Step;
use crate::testbed::serial::Session;
use crate::testbed::{Setup, options, paths};

/// The VM's name.
const VM: &str = "debian";
/// The bytes of a sector.
const SECTOR: u64 = 512;
/// The longest time that one wait may take on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(1200);
/// The number of lives that the guest's ledger has room for, less some.
const MOST_LIVES: u64 = 90;

/// Write, read and verify a disk at random over pauses and restarts: is anything lost?
///
/// A Debian has a disk with `snapshot=keep`. Its workload writes blocks of several sizes at random places, past and
/// through the page cache, flushes, and verifies what it reads; and the operator pauses and restarts it at random moments,
/// as do `stop` and `start`, and the guest itself. After each restart it checks all sectors: what was flushed is there,
/// what was not is old or new, whole. Exit status 1 where anything else is found.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value("100000000")))]
pub struct Options {
    /// Seconds of guest time to write and read for
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: u32,
    /// Size of the disk in MiB
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=512))]
    size: u32,
    /// Number that the random places and moments follow from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
    #[command(flatten)]
    kernel: options::Kernel,
    #[command(flatten)]
    speed: options::Speed,
    #[command(flatten)]
    exit_cost: options::ExitCost,
    #[command(flatten)]
    machine: options::Machine,
    #[command(flatten)]
    results: options::Results,
}

/// An event in the life of a guest that is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A `pause`, and `resume` after a while.
    Pause,
    /// A `restart`.
    Restart,
    /// A `restart` after a `pause`.
    RestartPaused,
    /// A `stop`, and `start`.
    StopAndStart,
    /// A reset by the guest itself.
    Reset,
}

impl Event {
    /// Returns one that `chance` chooses: half of them are pauses.
    fn of(chance: u64) -> Self {
        match chance % 8 {
            0..4 => Self::Pause,
            4 | 5 => Self::Restart,
            6 => Self::RestartPaused,
            _ if chance >> 8 & 1 == 0 => Self::StopAndStart,
            _ => Self::Reset,
        }
    }
}

/// Numbers that look like chance: SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A line of the workload's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    life: u64,
    rounds: u64,
    /// Sectors.
    written: u64,
    read: u64,
    lost: u64,
    /// Guest time since it began.
    ms: u64,
}

/// The state of the disk after a power cut, as the workload has found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Survey {
    life: u64,
    /// The sectors that have what was flushed; what was being written; and anything else.
    flushed: u64,
    newer: u64,
    lost: u64,
}

/// Returns the numbers in a group of digits each.
fn numbers<const N: usize>(groups: &[String]) -> Result<[u64; N]> {
    let numbers: Result<Vec<u64>, _> = groups.iter().map(|group| group.parse()).collect();
    numbers?.try_into().ok().context("another number of groups")
}

/// The sums over all lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sums {
    lives: u64,
    pauses: u64,
    restarts: u64,
    rounds: u64,
    /// Sectors.
    written: u64,
    read: u64,
    /// Sectors that were found as they had been written, but not flushed, when the power was cut.
    newer: u64,
    lost: u64,
    ms: u64,
}

impl Sums {
    /// Adds what was done in a life.
    fn add(&mut self, life: Progress) {
        self.rounds += life.rounds;
        self.written += life.written;
        self.read += life.read;
        self.lost += life.lost;
        self.ms += life.ms;
    }
}

/// The outcome of the experiment.
#[derive(Clone, Debug)]
pub struct Outcome {
    machine: Kind,
    series: &'static str,
    seed: u32,
    size_mib: u32,
    ips: u64,
    sums: Sums,
    /// The memory that the disk's own pages take at the end, in bytes.
    own_bytes: u64,
    complaints: Vec<String>,
}

impl Outcome {
    /// Returns each requirement that was missed, in words.
    pub fn misses(&self) -> Vec<String> {
        let Sums {
            pauses,
            restarts,
            rounds,
            lost,
            lives,
            ..
        } = self.sums;
        let mut misses = self.complaints.clone();
        if lost > 0 {
            misses.push(format!("{lost} sectors are lost"));
        }
        if lives != restarts + 1 {
            misses.push(format!("{lives} lives in {restarts} restarts"));
        }
        if rounds == 0 || restarts == 0 || pauses == 0 {
            misses.push("nothing was measured".to_owned());
        }
        misses
    }

    fn json(&self) -> serde_json::Value {
        let sums = &self.sums;
        json!({
            "machine": self.machine.to_string(),
            "kernel_series": self.series,
            "seed": self.seed,
            "size_mib": self.size_mib,
            "ips": self.ips,
            "guest_ms": sums.ms,
            "pauses": sums.pauses,
            "restarts": sums.restarts,
            "rounds": sums.rounds,
            "written_bytes": sums.written * SECTOR,
            "read_bytes": sums.read * SECTOR,
            "newer_sectors": sums.newer,
            "lost_sectors": sums.lost,
            "own_bytes": self.own_bytes,
            "misses": self.misses(),
        })
    }

    fn cells(&self) -> Cells<11> {
        let Sums {
            pauses,
            restarts,
            rounds,
            written,
            read,
            newer,
            lost,
            ms,
            ..
        } = self.sums;
        let mib = |sectors: u64| ((sectors * SECTOR) >> 20).to_string();
        let verdict = if self.misses().is_empty() {
            "passed"
        } else {
            "missed"
        };
        Cells {
            titles: [
                "Linux",
                "Seed",
                "Disk MiB",
                "Guest s",
                "Restarts",
                "Pauses",
                "Rounds",
                "Written MiB",
                "Verified MiB",
                "Newer / lost sectors",
                "",
            ],
            rows: vec![[
                self.series.to_owned(),
                self.seed.to_string(),
                self.size_mib.to_string(),
                format!("{:.1}", ms as f64 / 1e3),
                restarts.to_string(),
                pauses.to_string(),
                rounds.to_string(),
                mib(written),
                mib(read),
                format!("{newer} / {lost}"),
                verdict.to_owned(),
            ]],
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\nThe disk's own pages take {} KiB.",
            self.cells(),
            self.own_bytes >> 10
        )
    }
}

/// The console, as the guest's operator.
struct Operator {
    session: Session,
    chance: Chance,
    seed: u32,
    sums: Sums,
    /// The last that was heard of this life.
    last: Progress,
}

impl Operator {
    /// Types a line at the guest's console, and stays there.
    fn type_to_guest(&mut self, line: &str) -> Result<()> {
        self.session.attach(VM)?;
        self.session.send_line(line)?;
        Ok(())
    }

    /// Has tarpit do something that it answers in one line.
    fn order(&mut self, command: &str) -> Result<()> {
        let answer = self.session.query(&format!("{command} {VM}"))?;
        match answer.as_slice() {
            [done] if done.get("error").is_none() => Ok(()),
            _ => bail!("`{command}` was answered with {answer:?}"),
        }
    }

    /// Waits until the guest has booted, and starts the work in it. What has been on the disk is checked then.
    fn begin_life(&mut self) -> Result<()> {
        self.session.wait_for("workload: ready")?;
        let seed = self.seed;
        self.type_to_guest(&format!("start blocks n={seed}"))?;
        let line = self.session.wait_for_match(
            r"workload: (?:blocks began life=(\d+) round=\d+ flushed=(\d+) newer=(\d+) lost=(\d+)|(blocks: .*|blocks cannot .*|process \d+ pid \d+ ended.*))$",
        )?;
        self.session.detach()?;
        let [_, numbers @ .., failure] = line.as_slice() else {
            bail!("not what was looked for: {line:?}");
        };
        ensure!(failure.is_empty(), "the workload ends: {failure}");
        let [life, flushed, newer, lost] = self::numbers(numbers)?;
        let survey = Survey {
            life,
            flushed,
            newer,
            lost,
        };
        ensure!(
            survey.life == self.sums.lives + 1,
            "behind {} lives: {survey:?}",
            self.sums.lives
        );
        self.sums.lives += 1;
        self.sums.newer += survey.newer;
        self.sums.lost += survey.lost;
        self.last = Progress::default();
        Ok(())
    }

    /// Waits for the next line that tells how far the guest is.
    fn progress(&mut self) -> Result<()> {
        let line = self.session.wait_for_match(
            r"workload: (?:blocks life=(\d+) round=\d+ rounds=(\d+) written=(\d+) read=(\d+) lost=(\d+) ms=(\d+)|(blocks: .*|process \d+ pid \d+ ended.*))$",
        )?;
        let [_, numbers @ .., failure] = line.as_slice() else {
            bail!("not what was looked for: {line:?}");
        };
        ensure!(failure.is_empty(), "the workload ends: {failure}");
        let [life, rounds, written, read, lost, ms] = self::numbers(numbers)?;
        ensure!(
            life == self.sums.lives,
            "life {life} instead of {}",
            self.sums.lives
        );
        self.last = Progress {
            life,
            rounds,
            written,
            read,
            lost,
            ms,
        };
        Ok(())
    }

    /// Lets the guest work for a while.
    fn let_work(&mut self) -> Result<()> {
        for _ in 0..=self.chance.below(40) {
            self.progress()?;
        }
        // Between two lines.
        std::thread::sleep(Duration::from_millis(self.chance.below(400)));
        Ok(())
    }

    /// Returns the guest time that has been worked for, in milliseconds.
    fn worked(&self) -> u64 {
        self.sums.ms + self.last.ms
    }

    /// Has the guest live through `event`. Where its life ended, a new one has begun.
    fn carry_out(&mut self, event: Event) -> Result<()> {
        if matches!(event, Event::Pause | Event::RestartPaused) {
            self.order("pause")?;
            std::thread::sleep(Duration::from_millis(self.chance.below(500)));
            self.sums.pauses += 1;
        }
        match event {
            Event::Pause => return self.order("resume"),
            Event::Restart | Event::RestartPaused => self.order("restart")?,
            Event::StopAndStart => {
                self.order("stop")?;
                self.start()?;
            }
            Event::Reset => {
                self.type_to_guest("reboot")?;
                self.session.detach()?;
            }
        }
        self.sums.restarts += 1;
        let life = self.last;
        self.sums.add(life);
        self.begin_life()
    }

    /// Starts the guest, which has been stopped: it may still be on its way.
    fn start(&mut self) -> Result<()> {
        const ATTEMPTS: u32 = 200;
        for _ in 0..ATTEMPTS {
            if self.order("start").is_ok() {
                return Ok(());
            }
        }
        bail!("`start {VM}` is refused")
    }
}

/// Boots the guest, and pauses and restarts it at random moments until it has worked for `milliseconds`; at least once
/// each. `name` names the run's files.
///
/// # Errors
/// When something cannot be built or started, or the guest or its workload ends.
fn measure(name: &str, kind: Kind, options: &Options) -> Result<Outcome> {
    let guest = format!("{QUICK_BOOT} workload.mode=idle workload.interval_ms=0");
    let guest = Guest::new(VM).command_line(&guest);
    let setup = Setup::new(name)
        .on(kind)
        .ips(options.speed.ips)
        .exit_cost(options.exit_cost.ticks)
        .options("quiet")
        .debian_with_disks(options.kernel.series, &guest)?;
    let disk = paths::images().join(format!("{name}.disk"));
    File::create(&disk)?.set_len(u64::from(options.size) << 20)?;
    let session = setup
        .module(Module::disk(&disk, VM, "id=blocks snapshot=keep"))
        .boot()?
        .patience(PATIENCE);
    let step = Step::begin(format!("Writing and reading a disk in {kind}"));
    let mut operator = Operator {
        session,
        chance: Chance(options.seed.into()),
        seed: options.seed,
        sums: Sums::default(),
        last: Progress::default(),
    };
    operator.begin_life()?;
    let wanted = u64::from(options.seconds) * 1000;
    let is_done = |operator: &Operator| {
        let Sums {
            restarts, pauses, ..
        } = operator.sums;
        operator.worked() >= wanted && restarts > 0 && pauses > 0
    };
    while !is_done(&operator) {
        operator.let_work()?;
        let event = Event::of(operator.chance.next());
        step.detail(format!(
            "{} of {wanted} ms, {} restarts, {event:?}",
            operator.worked(),
            operator.sums.restarts
        ));
        ensure!(operator.sums.lives < MOST_LIVES, "too many restarts");
        operator.carry_out(event)?;
    }
    operator.progress()?;
    let life = operator.last;
    operator.sums.add(life);
    operator.type_to_guest("dmesg")?;
    let log = operator.session.wait_for("workload: dmesg end\n")?;
    operator.session.detach()?;
    let mut complaints = dmesg::complaints(&log);
    let errors = log.lines().filter(|line| line.contains("I/O error"));
    complaints.extend(errors.map(str::to_owned));
    let disks = operator.session.query("disks")?;
    let own_bytes = disks.first().and_then(|disk| disk["own_bytes"].as_u64());
    Ok(Outcome {
        machine: kind,
        series: options.kernel.series.name(),
        seed: options.seed,
        size_mib: options.size,
        ips: options.speed.ips,
        sums: operator.sums,
        own_bytes: own_bytes.context("`disks` does not tell")?,
        complaints,
    })
}

/// Makes the experiment. True if nothing was lost.
///
/// # Errors
/// When it cannot be made.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    let claim = Claim::new("disks")?;
    let outcome = measure(claim.name(), kind, options)?;
    if options.results.update {
        let cells = outcome.cells();
        let table = results::Table {
            name: "disks",
            title: "A disk over pauses and restarts",
            heading: &cells.heading(),
            keys: 3,
        };
        table.update(&cells.lines())?;
    }
    record::conclude("disks", &outcome, &outcome.json(), &outcome.misses())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(sums: Sums) -> Outcome {
        Outcome {
            machine: Kind::Bochs,
            series: "6.1",
            seed: 1,
            size_mib: 16,
            ips: 1,
            sums,
            own_bytes: 4096,
            complaints: Vec::new(),
        }
    }

    #[test]
    fn a_sector_lost_or_a_life_too_few_is_a_miss() {
        let good = Sums {
            lives: 3,
            restarts: 2,
            pauses: 1,
            rounds: 9,
            newer: 5,
            ..Sums::default()
        };
        assert_eq!(outcome(good.clone()).misses(), [""; 0]);
        let lost = Sums {
            lost: 1,
            ..good.clone()
        };
        assert_eq!(outcome(lost).misses(), ["1 sectors are lost"]);
        let anew = Sums {
            lives: 2,
            ..good.clone()
        };
        assert_eq!(outcome(anew).misses(), ["2 lives in 2 restarts"]);
        let idle = Sums { rounds: 0, ..good };
        assert_eq!(outcome(idle).misses().len(), 1);
    }

    #[test]
    fn all_lives_are_added_up() {
        let mut sums = Sums::default();
        let life = Progress {
            life: 1,
            rounds: 2,
            written: 3,
            read: 4,
            lost: 5,
            ms: 6,
        };
        sums.add(life);
        sums.add(life);
        assert_eq!((sums.rounds, sums.written, sums.read), (4, 6, 8));
        assert_eq!((sums.lost, sums.ms), (10, 12));
    }

    #[test]
    fn half_of_the_events_are_pauses_and_each_other_comes_too() {
        let mut chance = Chance(1);
        let events: Vec<Event> = (0..1000).map(|_| Event::of(chance.next())).collect();
        let count = |event| events.iter().filter(|it| **it == event).count();
        assert!((400..600).contains(&count(Event::Pause)));
        for event in [
            Event::Restart,
            Event::RestartPaused,
            Event::StopAndStart,
            Event::Reset,
        ] {
            assert!(count(event) > 30, "{event:?}");
        }
    }
}
