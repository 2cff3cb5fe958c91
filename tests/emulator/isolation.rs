//! What VMs that behave badly cost one that does not: measured by the units of work that the
//! victim, a `meter`, does in host time. In Bochs each CPU executes an instruction a tick, whatever
//! the other one does, so what a CPU loses is what tarpit makes it do for others.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::{Case, IPS, tarpit};
use xtask::testbed::build;
use xtask::testbed::module::Module;
use xtask::testbed::serial::{PROMPT, Session};

/// The most that misbehavior on one CPU may cost on another. Measured is a tenth of that: a shared
/// console is written to now and then, under a lock.
const LOSS_ELSEWHERE: f64 = 0.01;
/// The most that it may cost with the operator at work, who starts a VM several times a second:
/// each command is carried out by the boot CPU, on which the victim is. Measured is half of that.
const LOSS_TO_OPERATOR: f64 = 0.02;
/// The most by which a share may be missed: switches, and slices that are cut off at the ends of
/// the measurement.
const LOSS_OF_SHARE: f64 = 0.03;

/// A guest kernel of ours as a VM with these options, and nothing that it does not need.
fn module(program: &str, options: &str, command_line: &str) -> Result<Module> {
    Ok(Module {
        file: build::all()?.kernel(program)?.to_owned(),
        command_line: format!("kernel mem=16M {options} -- {command_line}"),
    })
}

/// A meter's report: its time, and the work done by then.
#[derive(Clone, Copy, Debug)]
struct Reading {
    seconds: f64,
    units: f64,
    /// The longest that the meter was woken late since its last line, if it sleeps.
    late: Option<Duration>,
    /// The longest that it has waited in the middle of its work since its last line, if it tells that.
    pause: Option<Duration>,
}

impl Reading {
    /// The next line of the meter `vm`.
    fn next(session: &mut Session, vm: &str) -> Result<Self> {
        let line = session.wait_for_match(&format!(
            r"\[{vm} +(\d+\.\d+)\] meter: units=(\d+)(?: late_us=(\d+))?(?: pause_us=(\d+))?$"
        ))?;
        let duration = |micros: &str| match micros {
            "" => anyhow::Ok(None),
            micros => Ok(Some(Duration::from_micros(micros.parse()?))),
        };
        Ok(Self {
            seconds: line[1].parse()?,
            units: line[2].parse()?,
            late: duration(&line[3])?,
            pause: duration(&line[4])?,
        })
    }

    /// Units a second since `before`.
    fn speed_since(self, before: Self) -> f64 {
        (self.units - before.units) / (self.seconds - before.seconds)
    }
}

/// How fast the meter `vm` is over at least this time from now on, in units a second.
fn speed(session: &mut Session, vm: &str, seconds: f64) -> Result<f64> {
    let readings = readings_over(session, vm, seconds)?;
    let [first, .., last] = readings[..] else {
        bail!("too few readings: {readings:?}")
    };
    Ok(last.speed_since(first))
}

/// The readings of the meter `vm` from now on, of this time at least.
fn readings_over(session: &mut Session, vm: &str, seconds: f64) -> Result<Vec<Reading>> {
    // What came while the last command was typed.
    Reading::next(session, vm)?;
    readings_from_now(session, vm, seconds)
}

/// The same, with the line that has begun already.
fn readings_from_now(session: &mut Session, vm: &str, seconds: f64) -> Result<Vec<Reading>> {
    let first = Reading::next(session, vm)?;
    let mut readings = vec![first];
    loop {
        let last = Reading::next(session, vm)?;
        readings.push(last);
        if last.seconds - first.seconds >= seconds {
            return Ok(readings);
        }
    }
}

/// The count and the ticks of a line of `stats`.
fn statistic(session: &mut Session, vm: &str, what: &str) -> Result<(u64, u64)> {
    let lines = session.query(&format!("stats {vm}"))?;
    let line = lines.iter().find(|line| line["what"] == what);
    let line = line.with_context(|| format!("stats of {vm} have no {what}: {lines:?}"))?;
    let number = |name: &str| line[name].as_u64().context("not a number");
    Ok((number("count")?, number("ticks")?))
}

/// Two CPUs; the meter is alone on the boot CPU, and all others are on CPU 1 and stopped.
fn boot_with_offenders(case: &Case) -> Result<Session> {
    let mut session = tarpit(case)?
        .cpus(2)
        .module(module("meter", "vm=meter pin=0", "")?)
        .module(module("hang", "vm=hang pin=1", "")?)
        .module(module("storm", "vm=storm vcpus=4 pin=1", "others=3")?)
        .module(module(
            "storm",
            "vm=storm2 vcpus=4 pin=1",
            "others=3 x2apic",
        )?)
        .module(module("triple_fault", "vm=crash pin=1", "")?)
        .module(module("babble", "vm=babble pin=1", "")?)
        .boot()?
        .patience(Duration::from_secs(300));
    session.wait_for("vm crash ended: triple fault")?;
    for vm in ["babble", "hang", "storm", "storm2"] {
        session.command(&format!("stop {vm}"))?;
    }
    Ok(session)
}

pub(crate) fn misbehavior_costs_a_vm_on_another_cpu_nothing(case: &Case) -> Result<()> {
    const RESTARTS: u32 = 5;
    let mut session = boot_with_offenders(case)?;
    let alone = speed(&mut session, "meter", 0.5)?;
    let is_untouched = |offender: &str, speed: f64, loss: f64| {
        println!("beside {offender}: {:.4} of the speed", speed / alone);
        ensure!(
            speed >= alone * (1.0 - loss),
            "beside {offender}: {speed} units/s instead of {alone}"
        );
        Ok(())
    };

    session.command("start hang")?;
    session.wait_for("hanging now")?;
    let beside = speed(&mut session, "meter", 0.5)?;
    is_untouched("a hang", beside, LOSS_ELSEWHERE)?;
    session.command("stop hang")?;

    for vm in ["storm", "storm2"] {
        session.command(&format!("start {vm}"))?;
        session.wait_for("storm: 4 CPUs")?;
        let beside = speed(&mut session, "meter", 0.5)?;
        let (exits, _) = statistic(&mut session, vm, "all-exits")?;
        ensure!(exits > 10_000, "no storm: {exits} exits");
        session.command(&format!("stop {vm}"))?;
        is_untouched(vm, beside, LOSS_ELSEWHERE)?;
    }

    let first = Reading::next(&mut session, "meter")?;
    for _ in 0..RESTARTS {
        session.command("start crash")?;
        session.wait_for("vm crash ended: triple fault")?;
    }
    let last = Reading::next(&mut session, "meter")?;
    is_untouched(
        "a VM that crashes again and again",
        last.speed_since(first),
        LOSS_TO_OPERATOR,
    )?;

    // It fills the room that it has first, and then the line all the time.
    session.command("start babble")?;
    speed(&mut session, "meter", 0.5)?;
    let beside = speed(&mut session, "meter", 0.5)?;
    is_untouched("a VM that fills the console", beside, LOSS_ELSEWHERE)
}

/// The offenders come to the meter's CPU while they run.
pub(crate) fn misbehavior_costs_a_vm_on_the_same_cpu_its_fair_share(case: &Case) -> Result<()> {
    let mut session = boot_with_offenders(case)?;
    let alone = speed(&mut session, "meter", 0.5)?;
    for (vm, vcpus, says) in [
        ("hang", 1, "hanging now"),
        ("storm", 4, "storm: 4 CPUs"),
        ("storm2", 4, "storm: 4 CPUs"),
    ] {
        session.command(&format!("start {vm}"))?;
        session.wait_for(says)?;
        for vcpu in 0..vcpus {
            session.command(&format!("pin {vm} {vcpu} 0"))?;
            statistic(&mut session, vm, &format!("vcpu{vcpu}-on-cpu0-pinned"))?;
        }
        let beside = speed(&mut session, "meter", 1.0)?;
        println!("with {vm}: {:.4} of the speed", beside / alone);
        session.command(&format!("stop {vm}"))?;
        ensure!(
            beside >= alone * (0.5 - LOSS_OF_SHARE),
            "with {vm}: {beside} units/s, alone {alone}"
        );
    }
    let again = speed(&mut session, "meter", 0.5)?;
    ensure!(
        again >= alone * (1.0 - LOSS_ELSEWHERE),
        "alone again: {again} units/s instead of {alone}"
    );
    Ok(())
}

/// Three VMs compute on one CPU: one with a cap, and of the rest one has three times the other's
/// weight.
pub(crate) fn weights_and_caps_are_what_vms_get(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?
        .module(module("meter", "vm=light weight=100", "")?)
        .module(module("meter", "vm=heavy weight=300", "")?)
        .module(module("meter", "vm=capped cap=20", "")?)
        .boot()?
        .patience(Duration::from_secs(300));
    session.wait_for("] meter: units=")?;
    let before = readings(&mut session)?;
    speed(&mut session, "light", 2.0)?;
    let after = readings(&mut session)?;
    let [light, heavy, capped] = [0, 1, 2].map(|index| after[index].speed_since(before[index]));
    let all = light + heavy + capped;
    let shares = [light, heavy, capped].map(|speed| speed / all);
    println!("shares: {shares:.3?}");
    for (share, expected) in shares.into_iter().zip([0.2, 0.6, 0.2]) {
        ensure!((share - expected).abs() <= LOSS_OF_SHARE, "{shares:?}");
    }
    Ok(())
}

fn readings(session: &mut Session) -> Result<[Reading; 3]> {
    Ok([
        Reading::next(session, "light")?,
        Reading::next(session, "heavy")?,
        Reading::next(session, "capped")?,
    ])
}

/// A VM that works a little every 5 ms wakes up in time, although others would like the CPU for
/// themselves.
pub(crate) fn a_vm_that_sleeps_is_served_soon_after_it_wakes(case: &Case) -> Result<()> {
    const EVERY: f64 = 0.005;
    let mut session = tarpit(case)?
        .module(module("hang", "vm=hang", "")?)
        .module(module("storm", "vm=storm vcpus=4", "others=3")?)
        .module(module("meter", "vm=sleeper", "every_ms=5 interval_ms=200")?)
        .boot()?
        .patience(Duration::from_secs(300));
    session.wait_for("storm: 4 CPUs")?;
    // What it does to start, before the first line, is more than its share: then it waits its turn.
    let readings = readings_over(&mut session, "sleeper", 1.0)?;
    let [first, rest @ .., last] = &readings[..] else {
        bail!("too few readings: {readings:?}")
    };
    let wakes = last.speed_since(*first);
    let late = rest.iter().chain([last]).map(|reading| reading.late);
    let latest = late.max().flatten().context("does not tell")?;
    let (count, waited) = statistic(&mut session, "sleeper", "wait-when-woken")?;
    let average = waited as f64 * 1000.0 / IPS as f64 / count as f64;
    println!("{wakes:.1} wakes/s, {latest:?} late at most, waited {average:.3} ms on average");
    ensure!(wakes >= 0.98 / EVERY, "{wakes} wakes/s");
    // Who runs gives way when it has run for a millisecond, the scheduler's granularity; then
    // there is a switch.
    ensure!(latest <= Duration::from_micros(1200), "{latest:?} late");
    Ok(())
}

pub(crate) fn a_paused_vm_stands_still_and_a_restarted_one_begins_anew(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?
        .module(module("meter", "vm=other", "")?)
        .module(module("meter", "vm=meter", "")?)
        .boot()?
        .patience(Duration::from_secs(300));
    // Long enough that it does not matter where in a turn the measurement begins and ends.
    let half = speed(&mut session, "other", 1.5)?;
    let before = Reading::next(&mut session, "meter")?;
    session.command("pause meter")?;
    let whole = speed(&mut session, "other", 1.0)?;
    ensure!(whole >= 1.9 * half, "the CPU for itself: {whole}, {half}");
    session.command("resume meter")?;
    let after = Reading::next(&mut session, "meter")?;
    let (units, seconds) = (after.units - before.units, after.seconds - before.seconds);
    // What it did while the commands were typed; it had no claim to what it missed.
    ensure!(
        units < half * 0.5,
        "{units} units in {seconds} s, of which it was paused for one and more"
    );
    let shared = speed(&mut session, "other", 1.5)?;
    ensure!(
        (shared / half - 1.0).abs() <= LOSS_OF_SHARE,
        "shares are equal again: {shared}, {half}"
    );

    session.command("restart meter")?;
    session.wait_for("kernel meter")?;
    let anew = Reading::next(&mut session, "meter")?;
    ensure!(anew.units < before.units / 2.0, "{anew:?}, {before:?}");
    Ok(())
}

/// One VM computes on the CPU that carries out the commands, and another one has been seen with thousands of address
/// spaces. (To start a VM is not among the commands: in Bochs all CPUs stand still while one clears memory by a repeated
/// instruction. That it is made and loaded in pieces is tested with the manager and the VCPU.)
pub(crate) fn no_command_pauses_a_vm(case: &Case) -> Result<()> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(1);
    /// The address spaces that the guest has: more than there is room for.
    const ROOTS: usize = 8 * 512;
    /// Those that are remembered at least: 256 for each VCPU, but for places that no root has led to.
    const REMEMBERED: usize = 2000;
    let mut session = tarpit(case)?
        .cpus(2)
        .module(module("meter", "vm=meter pin=0", "pauses interval_ms=20")?)
        .module(Module {
            file: build::all()?.kernel("many_roots")?.to_owned(),
            command_line: "kernel vm=many vcpus=8 pin=1 mem=64M -- others=7".to_owned(),
        })
        .boot()?
        .patience(Duration::from_secs(300));
    session.wait_for(&format!("many_roots: {ROOTS} in use"))?;
    Reading::next(&mut session, "meter")?;
    let before = Reading::next(&mut session, "meter")?;
    session.send_line("ps many")?;
    session.wait_for("ALIASES\n")?;
    let answered = Reading::next(&mut session, "meter")?;
    let answer = session.wait_for(PROMPT)?;
    let seconds = answered.seconds - before.seconds;
    let longest = longest_pause(&answer).max(answered.pause);
    let longest = longest.context("tells no pauses")?;
    let listed = answer.lines().filter(|line| line.starts_with("0x"));
    let listed = listed.count();
    println!("{listed} listed, the first within {seconds:.3} s; {longest:?} paused at most");
    ensure!(listed >= REMEMBERED, "{listed} listed");
    ensure!(seconds <= 1.0, "the answer began after {seconds} s");
    ensure!(longest <= LONGEST_PAUSE, "a pause of {longest:?}");

    for command in [
        "find many nobody-has-this",
        "host",
        "log",
        "stats many",
        "targets",
        "trace many on",
        "trace many show 50",
        "trace many off",
        "pause many",
        "resume many",
        "stop many",
    ] {
        let answer = session.command(command)?;
        // What it has begun goes on for a while, and the next line tells of its beginning.
        let after = readings_from_now(&mut session, "meter", 0.2)?;
        let after = after.iter().filter_map(|reading| reading.pause).max();
        let longest = longest_pause(&answer).max(after);
        println!("{command}: {longest:?} paused at most");
        ensure!(
            longest <= Some(LONGEST_PAUSE),
            "`{command}` paused {longest:?}"
        );
    }
    Ok(())
}

/// The longest that a meter says in `text` that it has been paused.
fn longest_pause(text: &str) -> Option<Duration> {
    let pauses = text.lines().filter_map(|line| {
        let (_, micros) = line.split_once(" pause_us=")?;
        micros.parse().ok().map(Duration::from_micros)
    });
    pauses.max()
}
