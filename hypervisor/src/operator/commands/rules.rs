//! `rules`: lists the rules by which processes are found.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use super::{Arguments, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Record;
use crate::operator::watcher::RuleEntry;

pub(super) static COMMAND: Command = Command {
    name: "rules",
    usage: "rules [VM]",
    summary: "list the rules by which processes are found, with matches and misses",
    details: "\
MATCHES is how many processes a rule has held for. MISSES is how many were searched and do not hold
its pattern, or took much CPU time, but not for so long.",
    parameters: &[Parameter::optional("VM").with(Candidates::Vms)],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let only = match arguments.get("VM") {
        Some(_) => Some(context.vm_id(arguments)?),
        None => None,
    };
    let entries = context.watcher.rules();
    let wanted = entries.filter(|entry| only.is_none_or(|vm| entry.vm == vm));
    let line = |entry: &RuleEntry| -> Option<RuleLine> {
        Some(RuleLine::new(context.vms.name(entry.vm).ok()?, entry))
    };
    let lines: Vec<_> = wanted.filter_map(line).collect();
    Ok(Outcome::list(context, lines))
}

/// A rule.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RuleLine {
    /// Its number.
    rule: u32,
    /// The VM's name.
    vm: String,
    /// The condition, in words.
    what: String,
    /// The consequence, in words.
    action: String,
    /// The CR3 of processes that it does not hold for.
    exceptions: Vec<String>,
    /// The number of processes that it held for.
    matches: u64,
    /// The number of those that were looked at and that it did not hold for.
    misses: u64,
}

impl RuleLine {
    pub(super) fn new(vm: &str, entry: &RuleEntry) -> Self {
        let exceptions = entry.rule.exceptions.iter();
        Self {
            rule: entry.number,
            vm: vm.to_owned(),
            what: entry.rule.condition.to_string(),
            action: entry.rule.action.to_string(),
            exceptions: exceptions.map(|cr3| format!("{cr3:#x}")).collect(),
            matches: entry.matches,
            misses: entry.misses,
        }
    }
}

impl Record for RuleLine {
    const HEADING: &'static str =
        "RULE  VM               MATCHES    MISSES  ACTION          WHAT, AND EXCEPTIONS";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>4}  {:<16} {:>7} {:>9}  {:<14}  {}",
            self.rule, self.vm, self.matches, self.misses, self.action, self.what
        )?;
        if self.exceptions.is_empty() {
            return Ok(());
        }
        write!(f, "; not {}", self.exceptions.join(","))
    }
}
