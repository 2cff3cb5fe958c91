//! An attack from one VM on another: what a server's clients feel of it, with and without suppression.
//!
//! `web` is a Debian from its disk with nginx, `client` fetches its page again and again, and in `infected` a
//! process floods the server and computes, beside another that does honest work.

mod measured;
mod outcome;
mod picture;

use anyhow::{Context, Error, Result, bail};
use clap::Args;
use serde_json::json;

use self::measured::Measured;
use self::outcome::Outcome;
use super::common::countdown::Countdown;
use super::common::reports::Report;
use super::common::{dmesg, record, results};
use crate::testbed::claim::Claim;
use crate::testbed::machine::{End, Kind};
use crate::testbed::module::{Guest, QUICK_BOOT};
use crate::testbed::serial::Session;
use crate::testbed::{Setup, options, paths};

/// The VMs.
const WEB: &str = "web";
const CLIENT: &str = "client";
const INFECTED: &str = "infected";
/// The processes of the infected VM, by their index.
const HONEST: usize = 0;
const FLOODER: usize = 1;

/// The text by which the flooder is known: no other process has it in its memory.
const SIGNATURE: &str = "workload-process-1.";

/// The network.
const NETWORK: &str = "lan0";
/// Instructions a second that let all phases pass in some minutes.
const IPS: &str = "250000000";

/// Host seconds between two phases, in which things settle.
const TO_SETTLE: f64 = 0.4;

/// The longest time that one wait may take on a slow and busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1200);

/// Let a process in one VM flood another VM's web server: what do its clients feel, with and without
/// suppression?
///
/// Exit status 1 where, under suppression, the server has less than 0.95 of its throughput before the attack, the
/// 99th percentile of its latency is more than 1.2 times that, the honest process beside the attacker has less
/// than 0.99 of its speed, or a kernel's log has complaints.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value(IPS)))]
pub struct Options {
    /// Numbers of physical CPUs
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: Vec<u32>,
    /// The flooder is to run at 1/N of its speed
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=65535))]
    n: u32,
    /// Host seconds to measure for in each phase
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
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

/// Puts the machine together.
fn setup(name: &str, kind: Kind, cpus: u32, options: &Options) -> Result<Setup> {
    let guest = |vm: &str, words: &str| Guest {
        memory_mib: 128,
        ..Guest::new(vm).command_line(&format!("{QUICK_BOOT} {words}"))
    };
    let web = Guest {
        memory_mib: 256,
        ..guest(WEB, "hostname=web address=10.0.0.1/24")
    };
    let series = options.kernel.series;
    let idle = "workload.procs=0 workload.priority=99 address=10.0.0";
    Setup::new(name)
        .on(kind)
        .cpus(cpus)
        .ips(options.speed.ips)
        .exit_cost(options.exit_cost.ticks)
        .options("on-end=poweroff")
        .debian_disk(series, &web)?
        .nic(WEB, NETWORK, "")?
        .debian_in_network(series, &guest(CLIENT, &format!("{idle}.2/24")))?
        .nic(CLIENT, NETWORK, "")?
        .debian_in_network(series, &guest(INFECTED, &format!("{idle}.3/24")))?
        .nic(INFECTED, NETWORK, "")
}

/// The machine under attack.
struct Scene<'a> {
    session: Session,
    seconds: f64,
    countdown: &'a mut Countdown,
}

impl Scene<'_> {
    /// Types a line at a VM's console, and returns what comes there until `end`.
    fn ask(&mut self, vm: &str, line: &str, end: &str) -> Result<String> {
        let session = &mut self.session;
        session.attach(vm)?;
        session.send_line(line)?;
        let said = session.wait_for(end)?;
        session.detach()?;
        Ok(said)
    }

    /// Starts a process of the workload in this VM, whose index this is: the next.
    fn start(&mut self, vm: &str, what: &str, index: usize) -> Result<()> {
        let started = format!("workload: process {index} pid ");
        self.ask(vm, &format!("start {what}"), &started).map(drop)
    }

    /// Has tarpit do something that it answers without an error.
    fn order(&mut self, command: &str) -> Result<()> {
        let answer = self.session.query(command)?;
        if answer.iter().any(|line| line.get("error").is_some()) {
            bail!("`{command}` was answered with {answer:?}");
        }
        Ok(())
    }

    /// Returns all that is said in so many seconds of host time.
    fn listen(&mut self, seconds: f64) -> Result<String> {
        let mut said = String::new();
        let mut from = None;
        loop {
            said += &self.session.wait_for(" counts=")?;
            said += &self.session.wait_for("\n")?;
            let Some(report) = Report::all_in(&said, CLIENT).pop() else {
                continue;
            };
            let now = report.host_seconds();
            self.countdown.at(now);
            if now >= *from.get_or_insert(now) + seconds {
                return Ok(said);
            }
        }
    }

    /// Measures a phase that has just begun.
    fn measure(&mut self, phase: &str) -> Result<Measured> {
        self.countdown.phase(phase);
        self.listen(TO_SETTLE)?;
        let said = self.listen(self.seconds)?;
        Measured::read(&said).with_context(|| format!("in the phase `{phase}`"))
    }

    /// Waits until the rule has found the flooder.
    fn wait_for_target(&mut self) -> Result<()> {
        const ATTEMPTS: u32 = 50;
        let command = format!("targets {INFECTED}");
        for _ in 0..ATTEMPTS {
            if !self.session.query(&command)?.is_empty() {
                return Ok(());
            }
            self.session.wait_for(" counts=")?;
        }
        bail!("the rule has not found {SIGNATURE} in {INFECTED}")
    }

    /// Returns the kernel's log of this VM, by a command that ends so.
    fn complaints(&mut self, vm: &str, command: &str, end: &str) -> Result<(String, Vec<String>)> {
        let log = self.ask(vm, command, end)?;
        let release = dmesg::release(&log);
        let release = release.with_context(|| format!("the log of {vm} names no kernel"))?;
        let complaints = dmesg::complaints(&log);
        let complaints = complaints.iter().map(|line| format!("{vm}: {line}"));
        Ok((release.to_owned(), complaints.collect()))
    }
}

/// Measures on so many CPUs.
fn measure(cpus: u32, options: &Options, kind: Kind) -> Result<Outcome> {
    /// Host seconds until the server is up, and for the kernels' logs in the end.
    const BOOT: f64 = 20.0;
    let seconds = f64::from(options.seconds);
    let claim = Claim::new(&format!("attack-{cpus}"))?;
    let phases = outcome::PHASES.len() as f64;
    let mut countdown = Countdown::begin(
        claim.name(),
        &format!("An attack, on {cpus} CPUs"),
        BOOT + phases * (seconds + TO_SETTLE),
    );
    countdown.phase("booting");
    let session = setup(claim.name(), kind, cpus, options)?
        .boot()?
        .patience(PATIENCE);
    let mut scene = Scene {
        session,
        seconds,
        countdown: &mut countdown,
    };
    scene.session.wait_for("tarpit: version")?;
    scene.countdown.restart();
    scene.session.wait_for("web login: ")?;
    let prompt = "root@web:~# ";
    scene.ask(WEB, "root", prompt)?;
    scene.start(INFECTED, "hog", HONEST)?;
    scene.start(CLIENT, "fetches", 0)?;

    let before = scene.measure("before")?;
    scene.start(INFECTED, "floods", FLOODER)?;
    let attack = scene.measure("attack")?;
    let n = options.n;
    scene.order(&format!("watch {INFECTED} {SIGNATURE} --suppress {n}"))?;
    scene.wait_for_target()?;
    let suppressed = scene.measure("suppressed")?;
    // The rule would find it again.
    scene.order(&format!("unwatch {INFECTED} all"))?;
    scene.order(&format!("release {INFECTED} all"))?;
    let released = scene.measure("released")?;

    scene.countdown.phase("reading the kernels' logs");
    for vm in [INFECTED, CLIENT] {
        scene.ask(vm, "forget", "workload: forgotten\n")?;
    }
    let (kernel, mut complaints) = scene.complaints(WEB, "dmesg", prompt)?;
    for vm in [CLIENT, INFECTED] {
        let (_, found) = scene.complaints(vm, "dmesg", "workload: dmesg end\n")?;
        complaints.extend(found);
    }
    scene.session.send_line("shutdown")?;
    let end = scene.session.wait_for_end()?;
    if !matches!(end, End::PoweredOff { .. }) {
        bail!("{end}");
    }
    Ok(Outcome {
        cpus,
        n,
        kernel,
        phases: [before, attack, suppressed, released],
        complaints,
    })
}

/// Makes the measurements, prints the table, writes `target/experiments/attack.json` and draws the picture
/// beside it. True if the requirements were met.
///
/// # Errors
/// When they cannot be made: a requirement that is missed is no error.
pub fn run(options: &Options) -> Result<bool> {
    let kind = options.machine.pick()?;
    let mut made = Vec::new();
    for &cpus in &options.cpus {
        made.push(measure(cpus, options, kind));
        save(options, kind, &made)?;
    }
    println!("{}", outcome::table(made.iter().flatten()));
    let mut passed = true;
    for (cpus, made) in options.cpus.iter().zip(&made) {
        for miss in misses(made) {
            passed = false;
            println!("MISSED: on {cpus} CPUs: {miss}");
        }
    }
    Ok(passed)
}

fn misses(made: &Result<Outcome>) -> Vec<String> {
    match made {
        Ok(outcome) => outcome.misses(),
        Err(error) => vec![failure(error)],
    }
}

fn failure(error: &Error) -> String {
    format!("{error:#}")
}

/// Writes what there is: the file, the picture, and the table if it is wanted.
fn save(options: &Options, kind: Kind, made: &[Result<Outcome>]) -> Result<()> {
    let machines = made.iter().map(|made| match made {
        Ok(outcome) => outcome.json(),
        Err(error) => json!({ "error": failure(error) }),
    });
    let json = json!({
        "machine": kind.to_string(),
        "ips": options.speed.ips,
        "exit_cost": options.exit_cost.ticks,
        "machines": machines.collect::<Vec<_>>(),
    });
    let path = record::write_json("attack", &json)?;
    eprintln!("Written to {}", paths::shown(&path));
    let outcomes: Vec<&Outcome> = made.iter().flatten().collect();
    picture::draw(&record::directory()?.join("attack"), &outcomes)?;
    if options.results.update {
        let cells = outcome::table(outcomes.into_iter());
        let table = results::Table {
            name: "attack",
            title: "An attack on another VM",
            heading: &cells.heading(),
            keys: 2,
        };
        table.update(&cells.lines())?;
    }
    Ok(())
}
