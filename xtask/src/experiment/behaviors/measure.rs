//! Makes a case's measurements in a guest that runs.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::case::{Case, Others};
use super::clock::ClockError;
use super::latency::Latency;
use super::observation::{CpuSample, Observation, Span};
use super::outcome::{Neighbor, Outcome};
use crate::experiment::common::countdown::Countdown;
use crate::experiment::common::dmesg;
use crate::experiment::common::place::Place;
use crate::experiment::common::subject::{Linux, Subject, VM};
use crate::testbed::Setup;
use crate::testbed::module::Guest;

/// The neighbor VM, a kernel of ours that counts units of work.
const NEIGHBOR: &str = "meter";

/// Rounds of the computation in one unit of work. Small, so that the little that a target still
/// does can be counted.
const UNIT: u32 = 500;

/// The priority of the process that reports and takes commands: before any target's.
const REPORTER: u32 = 99;

/// The number of times that the sleeper sleeps.
const WAKES: usize = 100;
/// The longest time that it may take for that, in host seconds.
const MOST_FOR_WAKES: f64 = 3.0;

/// The time between a change and what is measured after it, in host seconds.
const TO_SETTLE: f64 = 0.4;

/// Guest milliseconds between two reports. By the paper's policy, the guest's clock may run a hundred
/// times too fast: fewer reports, so that the console is not full of them.
const INTERVAL: u32 = 200;
const INTERVAL_OF_PAPER: u32 = 1000;

/// The name of the paper's policy in tarpit.
pub(super) const PAPER: &str = "paper";

/// The parameters of a suppression.
#[derive(Clone, Debug)]
pub(super) struct Suppression {
    pub n: u32,
    /// Tarpit's default if not given.
    pub policy: Option<String>,
    /// More of the options of `suppress`.
    pub options: String,
}

/// The time for which to measure, in host seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Length {
    /// The time before the suppression, and after the release, each.
    pub around: f64,
    /// The time of the suppression.
    pub during: f64,
}

impl Length {
    /// Returns the host seconds that a case takes, about.
    pub(super) fn of_case(self) -> f64 {
        const STARTS_AND_ENDS: f64 = 1.5;
        let wakes = 2.0 * 1.2;
        3.0 * self.around + self.during + 4.0 * TO_SETTLE + 1.0 + wakes + STARTS_AND_ENDS
    }
}

/// A guest that cases are measured in, one after the other.
#[derive(Debug)]
pub(super) struct Bench {
    subject: Subject,
    place: Place,
    kernel: String,
}

impl Bench {
    /// Boots a guest without processes, and a neighbor that is paused if one is wanted.
    ///
    /// # Errors
    /// When it cannot be built or booted.
    pub(super) fn boot(
        setup: Setup,
        place: Place,
        neighbor: bool,
        countdown: &mut Countdown,
    ) -> Result<Self> {
        countdown.phase("Booting");
        let words = format!("workload.unit={UNIT} workload.priority={REPORTER}");
        let linux = Linux {
            guest: Guest {
                vcpus: place.vcpus,
                pins: (0..place.vcpus).collect(),
                ..Guest::new(VM).command_line(&words)
            },
            processes: 0,
        };
        let mut setup = setup.cpus(place.vcpus);
        if neighbor {
            let meter = Guest {
                memory_mib: 16,
                pins: vec![0],
                ..Guest::new(NEIGHBOR)
            };
            setup = setup.kernel("meter", &meter.command_line("interval_ms=50"))?;
        }
        let mut subject = Subject::boot(setup, place.series, &[linux], countdown)?;
        if neighbor {
            subject.order(&format!("pause {NEIGHBOR}"))?;
        }
        // From here on, `dmesg new` has what is new.
        let log = subject.ask("dmesg new", "workload: dmesg end\n")?;
        let kernel = dmesg::release(&log).context("the log names no kernel")?;
        let complaints = dmesg::complaints(&log);
        if !complaints.is_empty() {
            bail!("the kernel complains before anything is done: {complaints:?}");
        }
        Ok(Self {
            kernel: kernel.to_owned(),
            subject,
            place,
        })
    }

    /// Makes the measurements of a case.
    ///
    /// # Errors
    /// When they cannot be made. The guest may be of no use afterwards.
    pub(super) fn measure(
        &mut self,
        case: Case,
        suppression: &Suppression,
        length: Length,
        countdown: &mut Countdown,
    ) -> Result<Outcome> {
        let mut run = Run {
            subject: &mut self.subject,
            countdown,
            name: case.name,
            seen: Observation::default(),
            started: 0,
            now: 0,
        };
        let outcome = run.measure(case, self.place, suppression, length, &self.kernel)?;
        Ok(outcome)
    }

    /// Switches the machine off.
    ///
    /// # Errors
    /// When it does not go off in an orderly way.
    pub(super) fn shut_down(self) -> Result<()> {
        self.subject.shut_down()
    }
}

/// The command that tells how much CPU time targets have had.
#[derive(Clone, Debug, PartialEq)]
enum CpuSource {
    /// No command.
    None,
    /// `ps`, of these processes.
    Processes(Vec<String>),
    /// `targets`.
    Targets,
}

impl CpuSource {
    /// Returns how often it is asked, in microseconds. `ps` has long answers.
    fn interval(&self) -> u64 {
        match self {
            Self::None => u64::MAX,
            Self::Processes(_) => 500_000,
            Self::Targets => 200_000,
        }
    }
}

/// A case that is being measured.
struct Run<'a> {
    subject: &'a mut Subject,
    countdown: &'a mut Countdown,
    name: &'static str,
    seen: Observation,
    /// The number of processes that were started.
    started: usize,
    /// Host time as of the last answer, in microseconds.
    now: u64,
}

impl Run<'_> {
    fn measure(
        &mut self,
        case: Case,
        place: Place,
        suppression: &Suppression,
        length: Length,
        kernel: &str,
    ) -> Result<Outcome> {
        self.report_every(INTERVAL)?;

        let neighbor_alone = if case.neighbor {
            self.phase("the neighbor alone");
            self.neighbor("resume")?;
            let alone = self.watch(length.around, &CpuSource::None)?;
            self.neighbor("pause")?;
            Some(alone)
        } else {
            None
        };

        let others = case.others.count(place.vcpus);
        for _ in 0..others {
            self.start(case.others.start())?;
        }
        let without = if case.others == Others::None {
            None
        } else {
            self.phase("without the target");
            self.settle()?;
            Some(self.watch(length.around, &CpuSource::None)?)
        };

        for target in case.targets {
            self.start(target)?;
        }
        if case.neighbor {
            self.neighbor("resume")?;
        }
        self.phase("before");
        self.settle()?;
        let targets = (others..self.started).map(|index| self.find(index));
        // Each takes the console, one after the other.
        let roots: Vec<String> = targets.collect::<Result<_>>()?;
        let before = self.watch(length.around, &CpuSource::Processes(roots.clone()))?;
        let sleeps_before = self.let_sleep(&CpuSource::None)?;
        // What the kernel says of the case by itself, as that it throttles real-time processes.
        self.new_complaints()?;

        self.phase("suppressed");
        self.poll(&CpuSource::None)?;
        let suppressed_at = self.now;
        let mut policy = String::new();
        for root in &roots {
            policy = self.suppress(root, suppression)?;
        }
        let source = self.cpu_source(&roots, suppressed_at)?;
        if policy == PAPER {
            self.report_every(INTERVAL_OF_PAPER)?;
        }
        self.watch(TO_SETTLE, &source)?;
        let during = self.watch(length.during, &source)?;
        let sleeps_during = self.let_sleep(&source)?;
        self.watch(0.0, &source)?;
        let limits = self.limits()?;
        let suppressed = Span {
            from: suppressed_at,
            to: self.now,
        };

        self.phase("released");
        self.subject.release()?;
        let released = self.watch(1.0, &CpuSource::None)?;
        self.report_every(INTERVAL)?;
        let after = self.watch(length.around, &CpuSource::None)?;
        if case.neighbor {
            self.neighbor("pause")?;
        }

        self.phase("ending it");
        self.tell("forget", "workload: forgotten\n")?;
        let complaints = self.new_complaints()?;

        let seen = &self.seen;
        let speeds = |span| {
            seen.speeds(span)
                .with_context(|| format!("{}: speeds", case.name))
        };
        let neighbor = match neighbor_alone {
            None => None,
            Some(alone) => {
                let speed = |span| {
                    seen.neighbor_speed(span)
                        .context("no lines of the neighbor")
                };
                Some(Neighbor {
                    alone: speed(alone)?,
                    before: speed(before)?,
                    during: speed(during)?,
                })
            }
        };
        Ok(Outcome {
            case,
            place,
            n: suppression.n,
            policy,
            without: without.map(speeds).transpose()?,
            before: speeds(before)?,
            during: speeds(during)?,
            after: speeds(after)?,
            cpu_before: seen.cpu_share(before).context("no CPU time before")?,
            cpu_during: seen.cpu_share(suppressed).context("no CPU time")?,
            worst_cpu: seen.worst_cpu_share(suppressed).context("no CPU time")?,
            limits,
            clock: ClockError::of(seen, before, suppressed, released)
                .context("the clock was not sampled")?,
            latency_before: Latency::of(&seen.wakes_in(sleeps_before)),
            latency_during: Latency::of(&seen.wakes_in(sleeps_during)),
            neighbor,
            complaints,
            kernel: kernel.to_owned(),
        })
    }

    fn phase(&mut self, what: &str) {
        self.countdown.phase(&format!("{}, {what}", self.name));
    }

    /// Asks tarpit, and takes note of what guests say meanwhile.
    fn ask(&mut self, command: &str) -> Result<Vec<Value>> {
        let exchange = self.subject.session().exchange(command)?;
        self.seen.hear(&exchange.said, VM, NEIGHBOR);
        Ok(exchange.answer)
    }

    /// Gives the workload a command, and gives what it says until `end`. What it says meanwhile
    /// comes without host times, and is no report.
    fn tell(&mut self, command: &str, end: &str) -> Result<String> {
        self.subject.ask(command, end)
    }

    /// Has the workload report so often, in milliseconds of guest time.
    fn report_every(&mut self, ms: u32) -> Result<()> {
        let end = format!("workload: interval_ms={ms}\n");
        self.tell(&format!("interval {ms}"), &end).map(drop)
    }

    /// Looks at the clock, and at the CPU time if it is due.
    fn poll(&mut self, source: &CpuSource) -> Result<()> {
        let answer = self.ask("vms")?;
        self.now = self.seen.take_vms(&answer, VM)?;
        self.countdown.at(self.now as f64 / 1e6);
        let latest = self.seen.cpu.last().map_or(0, |sample| sample.host_us);
        if self.now - latest >= source.interval() {
            self.sample_cpu(source)?;
        }
        Ok(())
    }

    fn sample_cpu(&mut self, source: &CpuSource) -> Result<()> {
        let mut highest_share = None;
        let (cpu_us, highest_lead_ms) = match source {
            CpuSource::None => return Ok(()),
            CpuSource::Processes(roots) => {
                let answer = self.ask(&format!("ps {VM}"))?;
                (cpu_ms_of(&answer, roots)? * 1000.0, None)
            }
            CpuSource::Targets => {
                let answer = self.ask(&format!("targets {VM}"))?;
                let used = answer.iter().map(|line| line["cpu_us"].as_f64());
                let used = used
                    .sum::<Option<f64>>()
                    .context("`targets` without `cpu_us`")?;
                // Each has a budget of its own.
                let highest = answer.iter().filter_map(|it| it["highest_ppm"].as_f64());
                highest_share = highest.max_by(f64::total_cmp).map(|ppm| ppm / 1e6);
                let leads = answer
                    .iter()
                    .filter_map(|it| it["highest_lead_us"].as_f64());
                (used, leads.max_by(f64::total_cmp).map(|lead| lead / 1000.0))
            }
        };
        // Its time lies between the last answer and now: the same lag each time.
        let host_us = self.now;
        self.seen.cpu.push(CpuSample {
            host_us,
            cpu_us,
            highest_lead_ms,
            highest_share,
        });
        Ok(())
    }

    /// Lets so many host seconds pass, the clock sampled all the while; longer, to a limit, where
    /// the workload has not reported twice by then.
    fn watch(&mut self, seconds: f64, source: &CpuSource) -> Result<Span> {
        const MOST: f64 = 4.0;
        self.poll(&CpuSource::None)?;
        self.sample_cpu(source)?;
        let from = self.now;
        loop {
            self.poll(source)?;
            let span = Span { from, to: self.now };
            let has_reports = seconds == 0.0 || self.started == 0 || self.seen.speeds(span).is_ok();
            let over = span.seconds() >= if has_reports { seconds } else { seconds + MOST };
            if over {
                self.sample_cpu(source)?;
                return Ok(span);
            }
        }
    }

    fn settle(&mut self) -> Result<()> {
        self.watch(TO_SETTLE, &CpuSource::None).map(drop)
    }

    fn neighbor(&mut self, command: &str) -> Result<()> {
        self.subject.order(&format!("{command} {NEIGHBOR}"))
    }

    /// Starts a process, whose index is the next.
    fn start(&mut self, what: &str) -> Result<()> {
        let end = format!("workload: process {} pid ", self.started);
        self.tell(&format!("start {what}"), &end)?;
        self.started += 1;
        Ok(())
    }

    /// Returns the CR3 of process `index`, by the text that it alone holds.
    fn find(&mut self, index: usize) -> Result<String> {
        const ATTEMPTS: u32 = 5;
        let text = format!("workload-process-{index}.");
        for _ in 0..ATTEMPTS {
            let answer = self.ask(&format!("find {VM} {text}"))?;
            match answer.as_slice() {
                [found] => {
                    let cr3 = found["cr3"].as_str();
                    return Ok(cr3.with_context(|| format!("no CR3: {found}"))?.to_owned());
                }
                // tarpit has not seen it run yet.
                [] => self.settle()?,
                several => bail!("`{text}` is in several processes: {several:?}"),
            }
        }
        bail!("process {index} is nowhere to be found: has it ended?")
    }

    /// Suppresses a process, and gives the policy that is used.
    fn suppress(&mut self, root: &str, suppression: &Suppression) -> Result<String> {
        let Suppression { n, policy, options } = suppression;
        let plain = format!("suppress {VM} {root} {n} {options}");
        let plain = plain.trim_end();
        let command = match policy {
            Some(policy) => format!("{plain} --policy {policy}"),
            None => plain.to_owned(),
        };
        let mut answer = self.ask(&command)?;
        // A tarpit without policies has the paper's.
        if policy.as_deref() == Some(PAPER) && answer[0]["error"] == "unknown_option" {
            answer = self.ask(plain)?;
        }
        match answer.as_slice() {
            [done] if done.get("error").is_none() => {
                Ok(done["policy"].as_str().unwrap_or(PAPER).to_owned())
            }
            _ => bail!("`{command}` was answered with {answer:?}"),
        }
    }

    /// Returns who tells the CPU time of the targets, which have been suppressed since `host_us`.
    fn cpu_source(&mut self, roots: &[String], host_us: u64) -> Result<CpuSource> {
        let answer = self.ask(&format!("targets {VM}"))?;
        if !answer.iter().all(|line| line["cpu_us"].is_number()) {
            return Ok(CpuSource::Processes(roots.to_vec()));
        }
        // It is counted from then on.
        self.seen.cpu.push(CpuSample {
            host_us,
            cpu_us: 0.0,
            highest_lead_ms: None,
            highest_share: None,
        });
        Ok(CpuSource::Targets)
    }

    /// Returns what limits the targets, if tarpit tells.
    fn limits(&mut self) -> Result<Vec<String>> {
        let answer = self.ask(&format!("targets {VM}"))?;
        let words = answer.iter().filter_map(|line| line["limited_by"].as_str());
        let mut limits: Vec<String> = words.map(str::to_owned).collect();
        limits.sort();
        limits.dedup();
        Ok(limits)
    }

    /// Lets a process sleep for 10 ms [`WAKES`] times, and gives the time that it took. It ends by
    /// itself, or is killed when that takes too long.
    fn let_sleep(&mut self, source: &CpuSource) -> Result<Span> {
        let index = self.started;
        self.start(&format!("sleeper n={WAKES}"))?;
        self.poll(&CpuSource::None)?;
        let from = self.now;
        loop {
            self.poll(source)?;
            let span = Span { from, to: self.now };
            if self.seen.ended.contains(&index) {
                return Ok(span);
            }
            if span.seconds() >= MOST_FOR_WAKES {
                // Should it end by itself just now, this is refused, which is as good.
                self.tell(&format!("kill {index}"), "workload: ")?;
                return Ok(span);
            }
        }
    }

    /// Returns what the kernel's log complains of since this was asked last.
    fn new_complaints(&mut self) -> Result<Vec<String>> {
        let log = self.tell("dmesg new", "workload: dmesg end\n")?;
        Ok(dmesg::complaints(&log))
    }
}

/// Returns the CPU time of these processes, in milliseconds, by what `ps` answers.
fn cpu_ms_of(answer: &[Value], roots: &[String]) -> Result<f64> {
    let has = |line: &Value, root: &String| {
        let aliases = line["aliases"].as_array().into_iter().flatten();
        std::iter::once(&line["cr3"])
            .chain(aliases)
            .any(|it| it == root)
    };
    let of = |root: &String| {
        let line = answer.iter().find(|line| has(line, root))?;
        line["cpu_ms"].as_f64()
    };
    roots
        .iter()
        .map(|root| of(root).with_context(|| format!("`ps` does not know {root}: {answer:?}")))
        .sum()
}
