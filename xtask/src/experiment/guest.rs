//! A stock Debian guest under tarpit that an experiment is made on.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::countdown::Countdown;
use super::reports::{INTERVAL, Report};
use crate::image::{self, Contents};
use crate::initramfs::{self, Shell};
use crate::kernel::{self, Series};
use crate::machine::{End, Kind, Spec};
use crate::module::{Guest, LINUX_CONSOLE, Module};
use crate::serial::{PROMPT, Session};
use crate::{build, paths};

/// The VM's name.
pub const VM: &str = "debian";

/// How long one wait may take on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(1200);

/// What ends `attach` (Ctrl-]).
const DETACH: u8 = 0x1d;

/// The guest, and the speed of its machine.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names the files of the run.
    pub name: String,
    /// Debian kernel.
    pub series: Series,
    /// CPU-bound processes.
    pub processes: usize,
    /// More words for the kernel's command line.
    pub append: String,
    /// Bochs: instructions that make a second of emulated time.
    pub ips: u64,
}

/// A process, as tarpit sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// What the console calls it.
    pub cr3: String,
    /// Its share of a CPU in thousandths.
    pub cpu_permille: u64,
}

/// What a kernel tells the time by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// What it reads.
    pub source: String,
    /// What interrupts it.
    pub events: String,
}

impl Clocks {
    /// From the lines `workload: clocks NAME=VALUE`. A CPU without a clock event device of its own
    /// that works gets its ticks from the broadcast device.
    fn read(said: &str) -> Option<Self> {
        let value = |name: &str| {
            said.lines()
                .find_map(|line| {
                    line.strip_prefix("workload: clocks ")?
                        .strip_prefix(name)?
                        .strip_prefix('=')
                })
                .map(str::to_owned)
        };
        Some(Self {
            source: value("clocksource")?,
            events: value("clockevent0").or_else(|| value("broadcast"))?,
        })
    }
}

/// A Debian that runs under tarpit with the workload in it.
#[derive(Debug)]
pub struct Subject {
    session: Session,
    processes: usize,
    tsc_hz: f64,
}

impl Subject {
    /// Builds, boots and waits until the processes run.
    ///
    /// # Errors
    /// When something cannot be built, fetched or started, or the boot fails.
    pub fn boot(kind: Kind, plan: &Plan, countdown: &mut Countdown) -> Result<Self> {
        let built = build::all()?;
        let kernel = kernel::fetch(plan.series)?;
        let initrd = initramfs::pack(&plan.name, &built.workload, Shell::None)?;
        let words = format!(
            "{LINUX_CONSOLE} workload.procs={} {}",
            plan.processes, plan.append
        );
        let guest = Guest::new(VM).command_line(words.trim_end());
        let contents = Contents::Tarpit {
            tarpit: built.tarpit,
            options: vec!["on-end=poweroff".to_owned()],
            modules: vec![guest.kernel(&kernel), Module::initrd(&initrd, VM)],
        };
        let spec = Spec {
            ips: plan.ips,
            ..Spec::from_iso(&plan.name, &image::make(&plan.name, &contents, None)?)
        };
        let mut session = Session::start(kind, &spec)?.patience(PATIENCE);
        let megahertz = &session.wait_for_match(r"^tarpit: TSC (\d+\.\d+) MHz")?[1];
        let mut subject = Self {
            tsc_hz: megahertz.parse::<f64>()? * 1e6,
            session,
            processes: plan.processes,
        };
        for milestone in ["Linux version", "workload: userland", "workload: ready"] {
            subject.session.wait_for(milestone)?;
            countdown.detail(milestone);
            if milestone == "Linux version" {
                // Firmware and boot loader are no part of tarpit's time.
                countdown.restart();
            }
        }
        let report = subject.report()?;
        countdown.at(report.host_seconds());
        Ok(subject)
    }

    /// The console.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// How many times a second the machine's TSC ticks, as tarpit measured it.
    pub fn tsc_hz(&self) -> f64 {
        self.tsc_hz
    }

    /// The next report of the workload.
    ///
    /// # Errors
    /// As [`Report::next`].
    pub fn report(&mut self) -> Result<Report> {
        Report::next(&mut self.session, VM)
    }

    /// The reports of the next so many seconds of host time. The first two are left out: what was
    /// done just before still shows in them.
    ///
    /// # Errors
    /// As [`Report::next`].
    pub fn watch(&mut self, seconds: f64, countdown: &mut Countdown) -> Result<Vec<Report>> {
        const TO_SETTLE: usize = 2;
        for _ in 0..TO_SETTLE {
            self.report()?;
        }
        let mut reports = vec![self.report()?];
        let until = reports[0].host_seconds() + seconds;
        loop {
            let report = self.report()?;
            countdown.at(report.host_seconds());
            let is_over = report.host_seconds() >= until;
            reports.push(report);
            if is_over {
                return Ok(reports);
            }
        }
    }

    /// The processes of the workload among the address spaces that tarpit has seen: those with
    /// about a fair share of the CPU.
    ///
    /// # Errors
    /// When there are not as many as the workload has processes, for as long as it takes their
    /// shares to settle.
    pub fn processes(&mut self) -> Result<Vec<AddressSpace>> {
        const ATTEMPTS: u32 = 12;
        let fair = 1000 / self.processes.max(1) as u64;
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS {
            let answer = self.session.query(&format!("ps {VM}"))?;
            seen = address_spaces(&answer)?;
            let busy: Vec<_> = seen
                .iter()
                .filter(|space| (fair / 2..=fair * 3 / 2).contains(&space.cpu_permille))
                .cloned()
                .collect();
            if busy.len() == self.processes {
                return Ok(busy);
            }
            self.report()?;
        }
        bail!(
            "`ps {VM}` does not show {} processes with a fair share ({fair}/1000 each): {seen:?}",
            self.processes
        )
    }

    /// Has tarpit suppress a process.
    ///
    /// # Errors
    /// When tarpit refuses.
    pub fn suppress(&mut self, cr3: &str, interval: u32, clock: u32) -> Result<()> {
        self.order(&format!(
            "suppress {VM} {cr3} --interval {interval} --clock {clock}"
        ))
    }

    /// Has tarpit release all targets.
    ///
    /// # Errors
    /// When tarpit refuses.
    pub fn release(&mut self) -> Result<()> {
        self.order(&format!("release {VM} all"))
    }

    fn order(&mut self, command: &str) -> Result<()> {
        let answer = self.session.query(command)?;
        match answer.as_slice() {
            [done] if done.get("error").is_none() => Ok(()),
            _ => bail!("`{command}` was answered with {answer:?}"),
        }
    }

    /// How often the VM has exited for this reason.
    ///
    /// # Errors
    /// When tarpit does not answer as it should.
    pub fn exits(&mut self, reason: &str) -> Result<u64> {
        let answer = self.session.query(&format!("stats {VM}"))?;
        let line = answer.iter().find(|line| line["what"] == reason);
        match line {
            Some(line) => line["count"].as_u64().context("a count is no number"),
            // What has not happened is not listed.
            None if !answer.is_empty() => Ok(0),
            None => bail!("`stats {VM}` was answered with nothing"),
        }
    }

    /// Gives the workload a command and returns what it says until `end`.
    ///
    /// # Errors
    /// As [`Session::wait_for`].
    pub fn ask(&mut self, command: &str, end: &str) -> Result<String> {
        let session = &mut self.session;
        session.send_line(&format!("attach {VM}"))?;
        session.wait_for("Ctrl-] comes back\n")?;
        session.send_line(command)?;
        session.wait_for(&format!("workload: command {command}\n"))?;
        let said = session.wait_for(end)?;
        session.send(&[DETACH])?;
        session.wait_for(PROMPT)?;
        Ok(said)
    }

    /// The kernel's log.
    ///
    /// # Errors
    /// As [`Session::wait_for`], or when the kernel does not give it.
    pub fn dmesg(&mut self) -> Result<String> {
        let log = self.ask("dmesg", "workload: dmesg end\n")?;
        ensure!(
            log.contains("Linux version"),
            "no kernel log; the last of it: {:?}",
            log.lines().last()
        );
        Ok(log)
    }

    /// What the kernel tells the time by.
    ///
    /// # Errors
    /// As [`Session::wait_for`], or when the workload does not name them.
    pub fn clocks(&mut self) -> Result<Clocks> {
        // The report after the answer ends it.
        let said = self.ask("clocks", "workload: t=")?;
        Clocks::read(&said).with_context(|| format!("`clocks` was answered with {said:?}"))
    }

    /// Switches the machine off.
    ///
    /// # Errors
    /// When it does not go off in an orderly way.
    pub fn shut_down(mut self) -> Result<()> {
        self.session.send_line("shutdown")?;
        match self.session.wait_for_end()? {
            End::PoweredOff { .. } => Ok(()),
            end => bail!(
                "{end} (log: {})",
                paths::shown(&self.session.machine().files().emulator)
            ),
        }
    }
}

/// What `ps` answers.
fn address_spaces(answer: &[serde_json::Value]) -> Result<Vec<AddressSpace>> {
    let one = |line: &serde_json::Value| {
        Some(AddressSpace {
            cr3: line["cr3"].as_str()?.to_owned(),
            cpu_permille: line["cpu_permille"].as_u64()?,
        })
    };
    answer
        .iter()
        .map(|line| one(line).with_context(|| format!("not an address space: {line}")))
        .collect()
}

/// Host seconds that an experiment takes, for the estimate of the time left: a boot, `phases` of
/// `seconds` each, and the kernel's log over a serial line.
pub fn expected_host_seconds(phases: u32, seconds: f64) -> f64 {
    const BOOT: f64 = 1.7;
    const LOG: f64 = 3.0;
    BOOT + f64::from(phases) * (seconds + 4.0 * INTERVAL) + LOG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_spaces_are_read_from_what_ps_answers() -> Result<()> {
        let answer = [
            serde_json::json!({"vm": "debian", "cr3": "0x1a2b000", "aliases": ["0x1a2c000"],
                "cpu_permille": 331, "cpu_ms": 700, "seen_ms_ago": 1, "target": false}),
        ];
        let spaces = address_spaces(&answer)?;
        assert_eq!(spaces[0].cr3, "0x1a2b000");
        assert_eq!(spaces[0].cpu_permille, 331);
        assert!(address_spaces(&[serde_json::json!({"error": "unknown_vm"})]).is_err());
        Ok(())
    }

    #[test]
    fn clocks_are_read_from_what_the_workload_answers() {
        let said = "workload: clocks realtime=5 monotonic=4\nworkload: clocks clocksource=tsc\n\
                    workload: clocks clocksources=tsc hpet\nworkload: clocks clockevent0=lapic\n";
        let expected = Clocks {
            source: "tsc".to_owned(),
            events: "lapic".to_owned(),
        };
        assert_eq!(Clocks::read(said), Some(expected));
        assert_eq!(Clocks::read("workload: clocks clocksource=tsc\n"), None);
    }
}
