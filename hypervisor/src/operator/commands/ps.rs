//! `ps`: lists the address spaces seen in a VM.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use devices::time::HostTicks;
use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Record;
use crate::operator::command::{Job, Progress};
use crate::operator::inspect::{self, Processes};
use crate::operator::records::{Aliases, Cr3};
use crate::operator::session::TURNS_PER_SECOND;
use crate::operator::terminal::BACKLOG;
use crate::suppression::address_space::Root;
use crate::suppression::usage;
use crate::vm::Vm;

pub(super) static COMMAND: Command = Command {
    name: "ps",
    usage: "ps VM",
    summary: "list the address spaces seen in a VM, with their CPU shares",
    details: "\
A process is known by its CR3. The list is made from what CR3 held at VM exits, without a look
into the guest; a process that has two roots (page-table isolation) is listed once, with both.
Shares are of one CPU, over the last one to two seconds.",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm(arguments)?;
    let now = context.clock.now();
    let mut list = List {
        now,
        processes: Processes::begin(&vm, now),
        targets: Vec::new(),
        lines: None,
        vm,
    };
    // A short one is shown at once.
    let turn = context.clock.fraction_of_second(TURNS_PER_SECOND);
    Ok(match list.step(context, now.saturating_add(turn)) {
        Progress::Done => Outcome::Done,
        Progress::More => Outcome::goes_on(list),
    })
}

/// A list of processes that is being made and shown.
struct List {
    vm: Arc<Vm>,
    /// The time that the list is of.
    now: HostTicks,
    processes: Processes,
    /// The roots of all targets, in order.
    targets: Vec<Root>,
    /// The processes that are still to be shown; `None` before the list is put together.
    lines: Option<usage::Processes>,
}

impl Job for List {
    fn step(&mut self, context: &mut Context<'_>, until: HostTicks) -> Progress {
        let clock = context.clock;
        if self.lines.is_none() {
            let Some(processes) = self.processes.step(&self.vm, clock, until) else {
                return Progress::More;
            };
            let targets = inspect::suppression(&self.vm, self.now).targets.into_iter();
            self.targets = targets.flat_map(|target| target.roots).collect();
            self.targets.sort_unstable();
            self.lines = Some(processes);
            context.answer.heading::<ProcessLine<'_>>();
        }
        while context.answer.backlog() < BACKLOG {
            let Some(process) = self.lines.as_mut().and_then(Iterator::next) else {
                return Progress::Done;
            };
            if let Some((first, aliases)) = process.roots.split_first() {
                context.answer.record(&ProcessLine {
                    vm: &self.vm.name,
                    cr3: Cr3(*first),
                    aliases: Aliases(aliases),
                    cpu_permille: process.share,
                    cpu_ms: clock.millis(process.total as i64) as u64,
                    seen_ms_ago: clock
                        .micros(self.now)
                        .saturating_sub(clock.micros(process.last_seen))
                        / 1000,
                    target: process
                        .roots
                        .iter()
                        .any(|root| self.targets.binary_search(root).is_ok()),
                });
            }
            if clock.now() >= until {
                break;
            }
        }
        Progress::More
    }
}

/// A process.
#[derive(Clone, Copy, Debug, Serialize)]
struct ProcessLine<'a> {
    /// The VM's name.
    vm: &'a str,
    /// The root that names the process: of several, the one that runs most.
    cr3: Cr3,
    /// Its other roots.
    aliases: Aliases<'a>,
    /// Its share of one CPU lately, in thousandths.
    cpu_permille: u32,
    /// The host time that it has run, in milliseconds.
    cpu_ms: u64,
    /// The time since it was last seen running, in milliseconds.
    seen_ms_ago: u64,
    /// Whether it is suppressed.
    target: bool,
}

impl Record for ProcessLine<'_> {
    const HEADING: &'static str = "CR3               CPU      TIME ms      SEEN  TARGET  ALIASES";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cr3 = self.cr3.0.to_string();
        write!(
            f,
            "{:<14} {:>3}.{} % {:>10} {:>6} ms  {:<6}  {}",
            cr3,
            self.cpu_permille / 10,
            self.cpu_permille % 10,
            self.cpu_ms,
            self.seen_ms_ago,
            if self.target { "yes" } else { "no" },
            self.aliases
        )
    }
}
