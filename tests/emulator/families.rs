//! Nobody slips away: processes that are others all the time stay suppressed, and nobody else is.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Case, tarpit};
use xtask::experiment::common::countdown::Countdown;
use xtask::experiment::common::reports::Speeds;
use xtask::experiment::common::subject::{Linux, Subject, VM, expected_host_seconds};
use xtask::testbed::kernel::Series;

use crate::hops::{self, Hops, Way};

/// Instructions a second: a hop takes about 2 ms.
const IPS: u64 = 250_000_000;
/// The steps of a unit, of four instructions each.
const UNIT: u32 = 100_000;
/// The units before the first hop, in which the process is found.
const UNITS_BEFORE: u64 = 300;
/// The hops that are seen at full speed.
const HOPS: u64 = 200;
/// The processes of the workload, by number: one that computes, one that makes others, and the hopper.
const SPAWNER: usize = 1;
const HOPPER: usize = 2;
/// The most of its speed that the hopper's family may have.
const MOST: f64 = 0.002;
/// The least of its speed that the other that makes processes must have. (It does not gain: the one that computes gets
/// what there is to be had, as new processes wait for its whole turns.)
const LEAST: f64 = 0.7;
/// The least of its speed that the one that computes must have: it gains.
const LEAST_OF_COMPUTING: f64 = 1.3;

/// A process that forks after each unit, and ends; and one that becomes a new program after each unit.
pub(crate) fn processes_that_hop_by_fork_and_by_exec_stay_suppressed(case: &Case) -> Result<()> {
    let mut countdown = Countdown::begin(
        &case.file_name(),
        "hoppers, followed",
        expected_host_seconds(4, 3.0),
    );
    let setup = tarpit(case)?.ips(IPS);
    let mut subject = Subject::boot(setup, Series::default(), &[Linux::new(0)], &mut countdown)?;
    hopper_stays_suppressed(&mut subject, &mut countdown, "forks", "fork")?;
    subject.release()?;
    subject.ask("forget", "workload: forgotten\n")?;
    hopper_stays_suppressed(&mut subject, &mut countdown, "execs", "exec")?;
    let log = subject.dmesg()?;
    let complaints = xtask::experiment::common::dmesg::complaints(&log);
    ensure!(complaints.is_empty(), "{complaints:#?}");
    subject.shut_down()
}

/// Returns the one target.
fn target(subject: &mut Subject) -> Result<Value> {
    let targets = subject.session().query(&format!("targets {VM}"))?;
    ensure!(targets.len() == 1, "not one target: {targets:?}");
    Ok(targets[0].clone())
}

/// Returns how many members live, and by how many signs of this name members were known.
fn members(target: &Value, sign: &str) -> Result<(usize, usize)> {
    let members = target["members"].as_array().context("no members")?;
    let count = |key: &str, value: &str| members.iter().filter(|it| it[key] == value).count();
    Ok((count("state", "alive"), count("sign", sign)))
}

fn hopper_stays_suppressed(
    subject: &mut Subject,
    countdown: &mut Countdown,
    behavior: &str,
    sign: &str,
) -> Result<()> {
    subject.start_process(0, "hog")?;
    subject.start_process(SPAWNER, &format!("spawns unit={UNIT}"))?;
    let start = format!("{behavior} n={UNITS_BEFORE} unit={UNIT}");
    subject.start_process(HOPPER, &start)?;
    let root = subject.find_process(HOPPER)?;
    let found_at = subject.report()?;
    ensure!(
        found_at.counts[HOPPER] < UNITS_BEFORE,
        "it hops already: {found_at:?}"
    );
    // Followed, but at full speed.
    subject.order(&format!("suppress {VM} {root} 1"))?;
    while subject.report()?.counts[HOPPER] < UNITS_BEFORE + HOPS {}
    let before = Speeds::over(&subject.watch(2.0, countdown)?)?;
    let hopping = target(subject)?;
    println!("at full speed: {hopping}");
    subject.order(&format!("suppress {VM} {root} 1000"))?;
    let after = Speeds::over(&subject.watch(3.0, countdown)?)?;
    let suppressed = target(subject)?;
    println!("suppressed: {suppressed}");
    let ratio = |process: usize| after.per_second[process] / before.per_second[process];
    println!(
        "{behavior}: hopper {:.5}, spawner {:.3}, computing {:.3} of the speed before",
        ratio(HOPPER),
        ratio(SPAWNER),
        ratio(0)
    );
    let (living, known) = members(&hopping, sign)?;
    ensure!(
        living <= 3 && known > 5,
        "{living} live, {known} by {sign}: {hopping}"
    );
    let (living, known) = members(&suppressed, sign)?;
    ensure!(
        (1..=3).contains(&living) && known > 5,
        "{living} live: {suppressed}"
    );
    ensure!(ratio(HOPPER) <= MOST, "the hopper is not slow");
    ensure!(ratio(SPAWNER) >= LEAST, "who makes processes is slow");
    ensure!(ratio(0) >= LEAST_OF_COMPUTING, "who computes is slow");
    Ok(())
}

/// The least that the others must have of all that is to be had, where a family gets nothing of it.
const LEAST_OF_ALL: f64 = 0.97;
/// The least that each of them must have, beside two others: a half of its fair share. Who comes behind the family in the
/// kernel's fixed order has more than the other, as it is in its turn that the guest's clock is slowed down.
const LEAST_EACH: f64 = 0.5 / 3.0;
/// The factor by which a hopper is suppressed while it is counted how often it is known by a sign, and
/// how often it has to be.
const COUNTED_AT: u32 = 20;
const LEAST_KNOWN: usize = 8;
/// The most looks until the one of the family that lives is seen: between a hop and the first turn of who comes of it, nobody
/// is known to live.
const MOST_LOOKS: u32 = 10;

/// A process of a 32-bit kernel of ours, which copies on write: it forks after each 16 units, and ends; or it becomes a
/// new program on its kernel stack. It is named while it hops.
pub(crate) fn processes_that_hop_under_32_bit_paging_stay_suppressed(case: &Case) -> Result<()> {
    let mut guest = Hops::boot(case, IPS)?;
    for (way, sign) in [(Way::Fork, "fork"), (Way::Exec, "exec")] {
        guest.hop(way)?;
        narrow_hopper_stays_suppressed(&mut guest, sign)?;
    }
    guest.hop(Way::Stay)?;
    guest.end()
}

/// Measures the hopper, which hops already and is known by `sign`, and releases it.
fn narrow_hopper_stays_suppressed(guest: &mut Hops, sign: &str) -> Result<()> {
    let (before, hops_before) = guest.speeds(0.8)?;
    ensure!(hops_before > 50, "{hops_before} hops are few");
    let root = guest.name_hopper(1000, 0.5)?;
    let (after, hops_after) = guest.speeds(2.0)?;
    let suppressed = guest.target()?;
    println!("by 1000, {hops_after} hops: {suppressed}");
    let hopper = after.ratio(hops::HOPPER, &before);
    let others = after.sum_without(hops::HOPPER) / before.sum();
    println!(
        "{sign}: hopper {hopper:.5} of its speed before, {:.1} units/s; others {others:.4} of all that is to be had; \
         before {before:?}, after {after:?}",
        before.per_second[hops::HOPPER]
    );
    ensure!(hopper <= MOST, "the hopper is not slow");
    ensure!(others >= LEAST_OF_ALL, "the others do not have the rest");
    for process in hops::COMPUTING {
        let share = after.per_second[process] / before.sum();
        println!("process {process}: {share:.3} of all that is to be had");
        ensure!(share >= LEAST_EACH, "process {process} has too little");
    }
    let suppress = format!("suppress {} {root} {COUNTED_AT}", hops::VM);
    guest.session.command(&suppress)?;
    let (counted, hops_counted) = guest.speeds(2.0)?;
    let mut looks = 0;
    loop {
        let suppressed = guest.target()?;
        println!("by {COUNTED_AT}, {hops_counted} hops: {counted:?}; {suppressed}");
        let (living, known) = members(&suppressed, sign)?;
        looks += 1;
        ensure!(
            living <= 1 && known >= LEAST_KNOWN && looks <= MOST_LOOKS,
            "{living} live, {known} by {sign}, {looks} looks: {suppressed}"
        );
        if living == 1 {
            break;
        }
    }
    // A third of all is what it may have without suppression, though it leaves a part of that when it hops.
    let hopper = counted.per_second[hops::HOPPER] / before.sum();
    ensure!(
        hopper <= 1.1 / 3.0 / f64::from(COUNTED_AT),
        "the hopper has {hopper} of all, suppressed by {COUNTED_AT}"
    );
    guest
        .session
        .command(&format!("release {} all", hops::VM))?;
    Ok(())
}
