//! Makes a case's measurements in a guest that runs.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::case::{Case, FAMILY, FAMILY_SIZE, Kind};
use super::outcome::{Family, Outcome};
use crate::experiment::common::countdown::Countdown;
use crate::experiment::common::dmesg;
use crate::experiment::common::place::Place;
use crate::experiment::common::reports::{Report, Speeds};
use crate::experiment::common::subject::{Linux, Subject, VM};
use crate::testbed::Setup;

/// Rounds of the computation in one unit of work of the processes that just compute.
const UNIT: u32 = 500;
/// The priority of the process that reports and takes commands: before all others.
const REPORTER: u32 = 99;
/// The longest time in which a rule has to have found a process, in host seconds.
const MOST_UNTIL_NAMED: f64 = 30.0;
/// The time after that at which it has to be slow.
const UNTIL_SLOW: f64 = 2.0;
/// The reports in a row, of 200 ms each, in which a busy system may do nothing before it is given up.
const MOST_IDLE_REPORTS: usize = 100;
/// The rules under which others are watched.
const RULES: usize = 16;

/// The time for which to measure, in host seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Length {
    pub before: f64,
    pub during: f64,
}

impl Length {
    /// Returns the host seconds that a case takes, about.
    pub(super) fn of_case(self) -> f64 {
        const STARTS_AND_NAMING: f64 = 4.0;
        self.before + self.during + UNTIL_SLOW + STARTS_AND_NAMING
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
    /// Boots a guest without processes.
    ///
    /// # Errors
    /// When it cannot be built or booted.
    pub(super) fn boot(setup: Setup, place: Place, countdown: &mut Countdown) -> Result<Self> {
        countdown.phase("booting");
        let mut linux = Linux::new(0);
        linux.guest.vcpus = place.vcpus;
        linux.guest.pins = (0..place.vcpus).collect();
        linux.guest.command_line = format!("workload.unit={UNIT} workload.priority={REPORTER}");
        let setup = setup.cpus(place.vcpus);
        let mut subject = Subject::boot(setup, place.series, &[linux], countdown)?;
        let log = subject.ask("dmesg new", "workload: dmesg end\n")?;
        let complaints = dmesg::complaints(&log);
        ensure!(
            complaints.is_empty(),
            "the kernel complains before anything is done: {complaints:?}"
        );
        let kernel = dmesg::release(&log).context("the log names no kernel")?;
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
        n: u32,
        length: Length,
        countdown: &mut Countdown,
    ) -> Result<Outcome> {
        let mut run = Run {
            subject: &mut self.subject,
            countdown,
            name: case.name,
            started: 0,
        };
        let measured = match case.kind {
            Kind::Evader => run.evader(case, self.place, n, length)?,
            Kind::Bystander { units } => run.bystander(case, units, n, length)?,
            Kind::Watched => run.watched(case, length)?,
        };
        run.phase("ending it");
        let complaints = run.end()?;
        Ok(Outcome {
            case,
            place: self.place,
            n,
            kernel: self.kernel.clone(),
            subject: measured.subject,
            before: measured.before,
            during: measured.during,
            units: measured.units,
            named_after: measured.named_after,
            family: measured.family,
            complaints,
        })
    }

    /// Switches the machine off.
    ///
    /// # Errors
    /// When it does not go off in an orderly way.
    pub(super) fn shut_down(self) -> Result<()> {
        self.subject.shut_down()
    }
}

/// The measurements that a kind of cases makes.
struct Measured {
    /// The process of the workload that the case is about.
    subject: usize,
    before: Speeds,
    during: Speeds,
    units: u64,
    named_after: Option<f64>,
    family: Option<Family>,
}

/// A case that is being measured.
struct Run<'a> {
    subject: &'a mut Subject,
    countdown: &'a mut Countdown,
    name: &'static str,
    started: usize,
}

impl Run<'_> {
    /// Measures a process that tries to slip away beside others that compute: it is named by a rule while it does.
    fn evader(&mut self, case: Case, place: Place, n: u32, length: Length) -> Result<Measured> {
        for _ in 0..place.vcpus {
            self.start("hog")?;
        }
        let evader = self.start(case.start)?;
        self.phase("before");
        let before = Speeds::over(&self.watch(length.before)?)?;
        self.phase("looking for it");
        let named_after = self.name_by_rule(evader, n)?;
        self.phase("suppressed");
        self.pass(UNTIL_SLOW)?;
        let reports = self.watch(length.during)?;
        Ok(Measured {
            subject: evader,
            before,
            during: Speeds::over(&reports)?,
            units: units(&reports, evader),
            named_after: Some(named_after),
            family: Some(self.family()?),
        })
    }

    /// Measures a system that is busy, without and beside a family that is suppressed.
    fn bystander(&mut self, case: Case, least: u64, n: u32, length: Length) -> Result<Measured> {
        let others = self.start(case.start)?;
        self.phase("alone");
        let before = Speeds::over(&self.watch(length.during)?)?;
        self.phase("beside a family");
        let target = self.start(FAMILY)?;
        self.name_by_rule(target, n)?;
        self.pass(UNTIL_SLOW)?;
        let found = self.family()?;
        ensure!(
            found.living == FAMILY_SIZE && found.joined + 1 == FAMILY_SIZE,
            "the family is not what was started: {found:?}"
        );
        let mut reports = self.watch(length.during)?;
        while units(&reports, others) < least {
            reports.push(self.report()?);
            if has_stopped(&reports, others) {
                let complaints = self.end()?;
                bail!(
                    "{} has done nothing in {MOST_IDLE_REPORTS} reports; the kernel says: {complaints:?}",
                    self.name
                );
            }
        }
        // What it had before has no place for the family's process.
        let mut during = Speeds::over(&reports)?;
        during.per_second.truncate(before.per_second.len());
        Ok(Measured {
            subject: others,
            before,
            during,
            units: units(&reports, others),
            named_after: None,
            family: Some(self.family()?),
        })
    }

    /// Measures processes without, and under rules that hold for nobody.
    fn watched(&mut self, case: Case, length: Length) -> Result<Measured> {
        let watched = self.start(case.start)?;
        self.phase("without rules");
        let before = Speeds::over(&self.watch(length.during)?)?;
        self.phase("under rules");
        for rule in 0..RULES {
            // 32 bytes that nobody has in memory.
            let bytes: String = (0..32)
                .map(|at| format!("{:02x}", 0x80 | (at * 3 + rule)))
                .collect();
            self.subject.order(&format!("watch {VM} 0x{bytes}"))?;
        }
        let reports = self.watch(length.during)?;
        for rule in self.subject.session().query("rules")? {
            ensure!(rule["matches"] == 0, "a rule holds: {rule}");
        }
        Ok(Measured {
            subject: watched,
            before,
            during: Speeds::over(&reports)?,
            units: units(&reports, watched),
            named_after: None,
            family: None,
        })
    }

    fn phase(&mut self, what: &str) {
        self.countdown.phase(&format!("{}, {what}", self.name));
    }

    fn start(&mut self, what: &str) -> Result<usize> {
        let index = self.started;
        self.subject.start_process(index, what)?;
        self.started += 1;
        Ok(index)
    }

    fn report(&mut self) -> Result<Report> {
        self.subject.report()
    }

    fn watch(&mut self, seconds: f64) -> Result<Vec<Report>> {
        self.subject.watch(seconds, self.countdown)
    }

    /// Lets so many host seconds pass.
    fn pass(&mut self, seconds: f64) -> Result<()> {
        let until = self.report()?.host_seconds() + seconds;
        while self.report()?.host_seconds() < until {}
        Ok(())
    }

    /// Has a rule find and suppress process `index`, by the text that it alone holds. Returns the host
    /// seconds that this took.
    fn name_by_rule(&mut self, index: usize, n: u32) -> Result<f64> {
        let order = format!("watch {VM} workload-process-{index}. --suppress {n}");
        self.subject.order(&order)?;
        let began = self.report()?.host_seconds();
        loop {
            let targets = self.subject.session().query(&format!("targets {VM}"))?;
            let passed = self.report()?.host_seconds() - began;
            if !targets.is_empty() {
                return Ok(passed);
            }
            if passed > MOST_UNTIL_NAMED {
                let rules = self.subject.session().query("rules")?;
                bail!("no target after {passed:.1} s: {rules:?}");
            }
        }
    }

    /// Returns who has been taken for the family.
    fn family(&mut self) -> Result<Family> {
        let targets = self.subject.session().query(&format!("targets {VM}"))?;
        let members = |target: &Value| -> Result<Vec<Value>> {
            let members = target["members"].as_array().context("no members")?;
            Ok(members.clone())
        };
        let mut family = Family {
            targets: targets.len(),
            ..Family::default()
        };
        for target in &targets {
            for member in members(target)? {
                family.living += usize::from(member["state"] == "alive");
                family.joined += usize::from(member["sign"] != "named");
            }
        }
        Ok(family)
    }

    /// Ends all, and returns what the kernel's log complains of.
    fn end(&mut self) -> Result<Vec<String>> {
        self.subject.order(&format!("unwatch {VM} all"))?;
        self.subject.release()?;
        self.subject.ask("forget", "workload: forgotten\n")?;
        let log = self.subject.ask("dmesg new", "workload: dmesg end\n")?;
        Ok(dmesg::complaints(&log))
    }
}

/// Returns the units that process `index` has done over these reports.
fn units(reports: &[Report], index: usize) -> u64 {
    let of = |report: Option<&Report>| report.and_then(|it| it.counts.get(index).copied());
    match (of(reports.first()), of(reports.last())) {
        (Some(first), Some(last)) => last.saturating_sub(first),
        _ => 0,
    }
}

/// Returns whether process `index` has done nothing for so long that it has come to its end.
fn has_stopped(reports: &[Report], index: usize) -> bool {
    let since = reports.len().saturating_sub(MOST_IDLE_REPORTS + 1);
    since > 0 && units(&reports[since..], index) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_system_that_does_nothing_for_long_has_stopped() {
        let report = |count| Report {
            host_us: 0,
            guest_ns: 0,
            counts: vec![count],
        };
        let mut reports = vec![report(5)];
        reports.extend((0..MOST_IDLE_REPORTS).map(|_| report(6)));
        assert!(!has_stopped(&reports, 0), "it may be slow");
        reports.push(report(6));
        assert!(has_stopped(&reports, 0));
        reports.push(report(7));
        assert!(!has_stopped(&reports, 0));
    }
}
