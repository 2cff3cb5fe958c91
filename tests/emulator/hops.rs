//! The kernel `hops` as a guest: two processes that compute, and one that hops, under 32-bit paging.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::{Case, tarpit};
use xtask::experiment::common::reports::{Report, Speeds};
use xtask::testbed::findings::Findings;
use xtask::testbed::module::Guest;
use xtask::testbed::serial::Session;

/// The VM's name, and the kernel's.
pub(crate) const VM: &str = "hops";
/// The processes, by number: those that compute, and the hopper.
pub(crate) const COMPUTING: [usize; 2] = [0, 1];
pub(crate) const HOPPER: usize = 2;
/// The text that the hopper, and nobody else, has in its memory.
const TEXT: &str = "hops: it is me who hops.";
/// The reports until which a rule has to have found the hopper: some seconds.
const MOST_LOOKS: usize = 50;

/// A way in which the hopper may go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// As what it is.
    Stay,
    /// In a copy.
    Fork,
    /// In a new program.
    Exec,
}

impl Way {
    /// Returns the byte by which the kernel is told.
    const fn order(self) -> u8 {
        match self {
            Self::Stay => b'n',
            Self::Fork => b'f',
            Self::Exec => b'e',
        }
    }
}

/// The guest, and tarpit's console.
pub(crate) struct Hops {
    pub(crate) session: Session,
    /// The roots of the processes at the start.
    pub(crate) roots: Vec<String>,
}

impl Hops {
    /// Boots it. `ips`: instructions a second.
    pub(crate) fn boot(case: &Case, ips: u64) -> Result<Self> {
        let mut session = tarpit(case)?
            .ips(ips)
            .options("on-end=poweroff")
            .kernel(VM, &Guest::new(VM))?
            .boot()?;
        let mut roots = Vec::new();
        for process in 0..=HOPPER {
            let line = format!(r"hops: process {process} \w+ cr3=(0x[0-9a-f]+)$");
            roots.push(session.wait_for_match(&line)?.swap_remove(1));
        }
        session.wait_for("hops: ready")?;
        Ok(Self { session, roots })
    }

    /// Types this byte at the guest's console.
    fn type_byte(&mut self, byte: u8) -> Result<()> {
        self.session.attach(VM)?;
        self.session.send(&[byte])
    }

    /// Has the hopper hop in this way from now on.
    pub(crate) fn hop(&mut self, way: Way) -> Result<()> {
        self.type_byte(way.order())?;
        self.session.detach()?;
        // The byte is read behind a report.
        for _ in 0..2 {
            self.report()?;
        }
        Ok(())
    }

    /// Returns the next report, and the number of hops by then.
    pub(crate) fn report(&mut self) -> Result<(Report, u64)> {
        let line = format!(
            r"^\[{VM} +(\d+)\.(\d{{6}})\] hops: units=(\d+),(\d+),(\d+) wrong=(\d+) hops=(\d+)$"
        );
        let groups = self.session.wait_for_match(&line)?;
        let numbers: Result<Vec<u64>, _> = groups[1..].iter().map(|it| it.parse()).collect();
        let [seconds, micros, a, b, hopper, wrong, hops] = numbers?[..] else {
            bail!("not a report: {groups:?}");
        };
        ensure!(wrong == 0, "memory is not what it should be: {groups:?}");
        let report = Report {
            host_us: seconds * 1_000_000 + micros,
            guest_ns: 0,
            counts: vec![a, b, hopper],
        };
        Ok((report, hops))
    }

    /// Returns the speeds of the processes over the next so many seconds of host time, in units a second, and the hops in that time.
    pub(crate) fn speeds(&mut self, seconds: f64) -> Result<(Speeds, u64)> {
        // What was done just before shows in the first.
        self.report()?;
        let (first, hops_before) = self.report()?;
        loop {
            let (last, hops) = self.report()?;
            if last.host_seconds() - first.host_seconds() >= seconds {
                return Ok((Speeds::between(&first, &last)?, hops - hops_before));
            }
        }
    }

    /// Has the hopper found by what is in its memory, while it hops, and suppressed by `factor`. Returns the name of the
    /// target when the rule has been there for `seconds`, and is no more.
    pub(crate) fn name_hopper(&mut self, factor: u32, seconds: f64) -> Result<String> {
        let command = format!("watch {VM} \"{TEXT}\" --suppress {factor}");
        self.session.command(&command)?;
        // What is told of it may come before the answer.
        let mut looks = 0;
        while self.session.query(&format!("targets {VM}"))?.is_empty() {
            ensure!(looks < MOST_LOOKS, "it is not found");
            looks += 1;
            self.report()?;
        }
        self.speeds(seconds)?;
        let rules = self.session.query(&format!("rules {VM}"))?;
        println!("the rule: {rules:?}");
        self.session.command(&format!("unwatch {VM} all"))?;
        let target = self.target()?;
        Ok(target["cr3"].as_str().context("no CR3")?.to_owned())
    }

    /// Returns the one target that there is, of which nobody is a member who computes.
    pub(crate) fn target(&mut self) -> Result<Value> {
        let mut targets = self.session.query(&format!("targets {VM}"))?;
        ensure!(targets.len() == 1, "not one target: {targets:?}");
        let target = targets.swap_remove(0);
        for process in COMPUTING {
            let root = &self.roots[process];
            ensure!(
                !target.to_string().contains(root.as_str()),
                "process {process}, of {root}, is taken for a member: {target}"
            );
        }
        Ok(target)
    }

    /// Has the kernel end, and looks at what it has found.
    pub(crate) fn end(mut self) -> Result<()> {
        self.type_byte(b'q')?;
        let findings = Findings::follow(&mut self.session, VM)?;
        println!("{findings}");
        ensure!(findings.are_good(), "{findings}");
        Ok(())
    }
}
