//! `ps`: lists the address spaces seen in a VM.

use alloc::string::ToString;
use core::fmt;

use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Record;
use crate::operator::inspect;
use crate::operator::records::{Aliases, Cr3};

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
    let clock = context.clock;
    let now = clock.now();
    let processes = inspect::processes(&vm, now);
    let targets = inspect::suppression(&vm, now).targets;
    let lines = processes.iter().filter_map(|process| {
        let (first, aliases) = process.roots.split_first()?;
        Some(ProcessLine {
            vm: &vm.name,
            cr3: Cr3(*first),
            aliases: Aliases(aliases),
            cpu_permille: process.share,
            cpu_ms: clock.millis(process.total as i64) as u64,
            seen_ms_ago: clock
                .micros(now)
                .saturating_sub(clock.micros(process.last_seen))
                / 1000,
            target: targets
                .iter()
                .flat_map(|target| &target.roots)
                .any(|root| process.roots.contains(root)),
        })
    });
    context.answer.records(lines);
    Ok(Outcome::Done)
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
    /// When it was last seen running, in milliseconds ago.
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
