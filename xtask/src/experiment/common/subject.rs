//! A stock Debian guest under tarpit that an experiment is made on.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::address_space::{self, AddressSpace};
use super::countdown::Countdown;
use super::reports::{INTERVAL, Report};
use crate::testbed::Setup;
use crate::testbed::kernel::Series;
use crate::testbed::machine::End;
use crate::testbed::module::Guest;
use crate::testbed::paths;
use crate::testbed::serial::Session;

/// The VM's name.
pub const VM: &str = "debian";

/// The longest time that one wait may take on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The parameter that lets the kernel be done with its boot when its userland runs. Without it
/// Linux 6.12 tests its ciphers then, in threads that take turns with the processes to be measured,
/// for seconds.
const AT_REST: &str = "cryptomgr.notests";

/// A Debian guest that computes.
#[derive(Clone, Debug)]
pub struct Linux {
    /// The VM: its size, its place, and more words for the kernel's command line.
    pub guest: Guest,
    /// CPU-bound processes. Without any, there are no reports.
    pub processes: usize,
}

impl Linux {
    /// Returns the VM [`VM`] with one VCPU and so many processes.
    pub fn new(processes: usize) -> Self {
        Self {
            guest: Guest::new(VM),
            processes,
        }
    }

    /// Returns the guest with the workload's and our words on its kernel's command line, before
    /// those that are there.
    pub fn booted(&self) -> Guest {
        let Self { guest, processes } = self;
        let words = format!(
            "{AT_REST} workload.procs={processes} {}",
            guest.command_line
        );
        guest.clone().command_line(words.trim_end())
    }
}

/// The devices by which a kernel tells the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The clock source that it reads.
    pub source: String,
    /// The clock event device that interrupts it.
    pub events: String,
}

impl Clocks {
    /// Reads them from the lines `workload: clocks NAME=VALUE`. A CPU without a clock event device
    /// of its own that works gets its ticks from the broadcast device.
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

/// Debian guests that run under tarpit with the workload in them. What is asked and ordered
/// concerns the first, until [`Self::turn_to`].
#[derive(Debug)]
pub struct Subject {
    session: Session,
    vms: Vec<Linux>,
    /// The index of the VM that is meant.
    vm: usize,
    tsc_hz: f64,
}

impl Subject {
    /// Boots these guests, with kernels of this series, on a machine that has none yet, and waits
    /// until the processes run.
    ///
    /// # Errors
    /// When something cannot be built, fetched or started, or the boot fails.
    pub fn boot(
        setup: Setup,
        series: Series,
        vms: &[Linux],
        countdown: &mut Countdown,
    ) -> Result<Self> {
        ensure!(!vms.is_empty(), "an experiment without a VM");
        let mut setup = setup.options("on-end=poweroff");
        for vm in vms {
            setup = setup.debian(series, &vm.booted())?;
        }
        Self::take_over(setup.boot()?.patience(PATIENCE), vms, countdown)
    }

    /// Waits until the processes run, in a machine that is about to start tarpit with these VMs.
    ///
    /// # Errors
    /// When the boot fails.
    pub fn take_over(
        mut session: Session,
        vms: &[Linux],
        countdown: &mut Countdown,
    ) -> Result<Self> {
        let megahertz = &session.wait_for_match(r"^tarpit: TSC (\d+\.\d+) MHz")?[1];
        let mut subject = Self {
            tsc_hz: megahertz.parse::<f64>()? * 1e6,
            session,
            vms: vms.to_vec(),
            vm: 0,
        };
        for milestone in ["Linux version", "workload: userland"] {
            subject.session.wait_for(milestone)?;
            countdown.detail(milestone);
            if milestone == "Linux version" {
                // Firmware and boot loader are no part of tarpit's time.
                countdown.restart();
            }
        }
        for _ in vms {
            subject.session.wait_for("workload: ready")?;
            countdown.detail("workload: ready");
        }
        if subject.vm().processes > 0 {
            let report = subject.report()?;
            countdown.at(report.host_seconds());
        }
        Ok(subject)
    }

    /// Has what comes concern the VM of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn turn_to(&mut self, name: &str) -> Result<()> {
        let vm = self.vms.iter().position(|vm| vm.guest.name == name);
        self.vm = vm.with_context(|| format!("no VM {name}"))?;
        Ok(())
    }

    fn vm(&self) -> &Linux {
        &self.vms[self.vm]
    }

    /// Returns the name of the VM that is meant.
    fn name(&self) -> &str {
        &self.vm().guest.name
    }

    /// Returns the console.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Returns how many times a second the machine's TSC ticks, as tarpit measured it.
    pub fn tsc_hz(&self) -> f64 {
        self.tsc_hz
    }

    /// Returns the next report of the workload.
    ///
    /// # Errors
    /// As [`Report::next`].
    pub fn report(&mut self) -> Result<Report> {
        Report::next(&mut self.session, &self.vms[self.vm].guest.name)
    }

    /// Returns the reports of the next so many seconds of host time. The first two are left out:
    /// what was done just before still shows in them.
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

    /// Returns the reports of several VMs over the same seconds of host time, by VM; otherwise as
    /// [`Self::watch`].
    ///
    /// # Errors
    /// As [`Report::next_of`].
    pub fn watch_all(
        &mut self,
        names: &[&str],
        seconds: f64,
        countdown: &mut Countdown,
    ) -> Result<Vec<Vec<Report>>> {
        const TO_SETTLE: f64 = 2.0 * INTERVAL;
        let (_, now) = Report::next_of(&mut self.session, names)?;
        let from = now.host_seconds() + TO_SETTLE;
        let mut reports = vec![Vec::new(); names.len()];
        loop {
            let (vm, report) = Report::next_of(&mut self.session, names)?;
            let at = report.host_seconds();
            countdown.at(at);
            if at >= from {
                reports[vm].push(report);
            }
            if at >= from + seconds && reports.iter().all(|reports| reports.len() > 1) {
                return Ok(reports);
            }
        }
    }

    /// Returns the processes of the workload among the address spaces that tarpit has seen: those
    /// with about a fair share of what the VM gets.
    ///
    /// # Errors
    /// When there are not as many as the workload has processes, for as long as it takes their
    /// shares to settle.
    pub fn processes(&mut self) -> Result<Vec<AddressSpace>> {
        const ATTEMPTS: u32 = 12;
        let (command, processes) = (format!("ps {}", self.name()), self.vm().processes);
        let mut seen = Vec::new();
        for _ in 0..ATTEMPTS {
            seen = AddressSpace::all_in(&self.session.query(&command)?)?;
            if let Some(busy) = address_space::fair_sharers(&seen, processes) {
                return Ok(busy);
            }
            self.report()?;
        }
        bail!("`{command}` does not show {processes} processes with a fair share each: {seen:?}")
    }

    /// Has tarpit suppress a process, by its own policy.
    ///
    /// # Errors
    /// When tarpit refuses.
    pub fn suppress(&mut self, cr3: &str, interval: u32, clock: u32) -> Result<()> {
        let vm = self.name();
        self.order(&format!(
            "suppress {vm} {cr3} --interval {interval} --clock {clock}"
        ))
    }

    /// Has tarpit suppress a process as the paper does.
    ///
    /// # Errors
    /// When tarpit refuses.
    pub fn suppress_as_the_paper(&mut self, cr3: &str, n: u32) -> Result<()> {
        let vm = self.name();
        self.order(&format!("suppress {vm} {cr3} {n} --policy paper"))
    }

    /// Has tarpit release all targets.
    ///
    /// # Errors
    /// When tarpit refuses.
    pub fn release(&mut self) -> Result<()> {
        self.order(&format!("release {} all", self.name()))
    }

    /// Has tarpit do something that it answers in one line.
    ///
    /// # Errors
    /// When tarpit refuses.
    pub fn order(&mut self, command: &str) -> Result<()> {
        let answer = self.session.query(command)?;
        match answer.as_slice() {
            [done] if done.get("error").is_none() => Ok(()),
            _ => bail!("`{command}` was answered with {answer:?}"),
        }
    }

    /// Returns how often the VM has exited for this reason.
    ///
    /// # Errors
    /// When tarpit does not answer as it should.
    pub fn exits(&mut self, reason: &str) -> Result<u64> {
        let command = format!("stats {}", self.name());
        let answer = self.session.query(&command)?;
        let line = answer.iter().find(|line| line["what"] == reason);
        match line {
            Some(line) => line["count"].as_u64().context("a count is no number"),
            // What has not happened is not listed.
            None if !answer.is_empty() => Ok(0),
            None => bail!("`{command}` was answered with nothing"),
        }
    }

    /// Gives the workload a command and returns what it says until `end`.
    ///
    /// # Errors
    /// As [`Session::wait_for`].
    pub fn ask(&mut self, command: &str, end: &str) -> Result<String> {
        let vm = self.name().to_owned();
        let session = &mut self.session;
        session.attach(&vm)?;
        session.send_line(command)?;
        session.wait_for(&format!("workload: command {command}\n"))?;
        let said = session.wait_for(end)?;
        session.detach()?;
        Ok(said)
    }

    /// Starts a process of the workload, whose index this is: the next.
    ///
    /// # Errors
    /// As [`Session::wait_for`].
    pub fn start_process(&mut self, index: usize, what: &str) -> Result<()> {
        let end = format!("workload: process {index} pid ");
        self.ask(&format!("start {what}"), &end).map(drop)
    }

    /// Returns the CR3 of process `index`, by the text that it alone holds. Reports of the workload have
    /// to come in.
    ///
    /// # Errors
    /// When it is not found within some reports' time.
    pub fn find_process(&mut self, index: usize) -> Result<String> {
        const ATTEMPTS: u32 = 12;
        let command = format!("find {} workload-process-{index}.", self.name());
        for _ in 0..ATTEMPTS {
            let answer = self.session.query(&command)?;
            match answer.as_slice() {
                [found] => {
                    let cr3 = found["cr3"].as_str();
                    return Ok(cr3.with_context(|| format!("no CR3: {found}"))?.to_owned());
                }
                // tarpit has not seen it run yet.
                [] => self.report().map(drop)?,
                several => bail!("process {index} is found several times: {several:?}"),
            }
        }
        bail!("process {index} is nowhere to be found: has it ended?")
    }

    /// Ends these processes of the workload. If none is left, the workload reports no more.
    ///
    /// # Errors
    /// As [`Session::wait_for`].
    pub fn end_processes(&mut self, indices: impl IntoIterator<Item = usize>) -> Result<()> {
        for index in indices {
            let command = format!("exit {index}");
            self.ask(&command, &format!("workload: process {index} pid "))?;
        }
        Ok(())
    }

    /// Returns the kernel's log.
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

    /// Returns what the kernel tells the time by.
    ///
    /// # Errors
    /// As [`Session::wait_for`], or when the workload does not name them.
    pub fn clocks(&mut self) -> Result<Clocks> {
        // The report after the answer ends it.
        let said = self.ask("clocks", "workload: t=")?;
        Clocks::read(&said).with_context(|| format!("`clocks` was answered with {said:?}"))
    }

    /// Ends all VMs and tarpit, and gives the console back.
    ///
    /// # Errors
    /// When the command cannot be sent.
    pub fn leave(mut self) -> Result<Session> {
        self.session.send_line("shutdown")?;
        Ok(self.session)
    }

    /// Switches the machine off.
    ///
    /// # Errors
    /// When it does not go off in an orderly way.
    pub fn shut_down(self) -> Result<()> {
        let mut session = self.leave()?;
        match session.wait_for_end()? {
            End::PoweredOff { .. } => Ok(()),
            end => bail!(
                "{end} (log: {})",
                paths::shown(&session.machine().files().emulator)
            ),
        }
    }
}

/// Returns the host seconds that an experiment takes, for the estimate of the time left: a boot,
/// `phases` of `seconds` each, and the kernel's log over a serial line.
pub fn expected_host_seconds(phases: u32, seconds: f64) -> f64 {
    const BOOT: f64 = 1.7;
    const LOG: f64 = 3.0;
    BOOT + f64::from(phases) * (seconds + 4.0 * INTERVAL) + LOG
}

#[cfg(test)]
mod tests {
    use super::*;

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
