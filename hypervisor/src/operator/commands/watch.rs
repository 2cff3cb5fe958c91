//! `watch`: has processes found by a rule.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::operator::command::OptionParameter;
use crate::operator::commands::rules::RuleLine;
use crate::operator::values;
use crate::watch::rule::{Action, Condition, Hog, Rule};

pub(super) static COMMAND: Command = Command {
    name: "watch",
    usage: "watch VM PATTERN [--hog PERCENT] [--suppress N] [--tell] [--except CR3,...]",
    summary: "tell of or suppress processes that hold a pattern, or take much CPU time",
    details: "\
Address spaces are searched when they are first seen to run, the newest first, and again while they
run on, in steps that cost a hundredth of one CPU's time at most, and a fifth of that when all have
been searched. Of processes that follow each other and live for a moment only, each is searched
from where the last one's search had come to. All that hold PATTERN are one target, with one budget.
`rules` lists what came of it.

  PATTERN         as for `find`; 16 patterns are looked for at once in a VM
  --hog PERCENT   who takes more than this of one CPU; PATTERN is for how many seconds then
  --suppress N    suppress each process that is found, as by `suppress`
  --tell          just tell of it, which is done in any case
  --except CR3    processes that are none of the rule's business, separated by commas

  watch web EVIL-42 --suppress 1000
  watch web 0x7f454c46 --except 0x1a2b000
  watch web --hog 90 30 --suppress 100",
    parameters: &[Parameter::VM, Parameter::required(WHAT)],
    options: &[HOG, SUPPRESS, TELL, EXCEPT],
    run,
};

const WHAT: &str = "PATTERN";

const HOG: OptionParameter = OptionParameter {
    name: "--hog",
    example: "90",
};

const SUPPRESS: OptionParameter = OptionParameter {
    name: "--suppress",
    example: "1000",
};

const TELL: OptionParameter = OptionParameter {
    name: "--tell",
    example: "",
};

const EXCEPT: OptionParameter = OptionParameter {
    name: "--except",
    example: "0x1a2b000",
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let rule = rule(arguments)?;
    let vm = context.vm_id(arguments)?;
    let number = context.watcher.add(vm, rule)?;
    let name = context.vms.name(vm)?;
    let entries = context.watcher.rules();
    let entry = entries.filter(|entry| entry.number == number);
    let lines = entry.map(|entry| RuleLine::new(name, entry));
    context.answer.records(lines);
    Ok(Outcome::Done)
}

/// Parses the rule.
fn rule(arguments: &Arguments<'_>) -> Result<Rule, CommandError> {
    let word = arguments.required(WHAT)?;
    let condition = match arguments.option(HOG.name) {
        None => Condition::Holds(values::pattern(word)?),
        Some(percent) => Condition::Hogs(Hog::parse(percent, word).ok_or_else(|| {
            CommandError::new(
                "bad_hog",
                format_args!(
                    "`--hog {percent}` and `{word}` do not say who takes too much: give percent of \
                     one CPU from 1 to {} and seconds from 1 to {}, for instance `--hog 90 30`",
                    Hog::MOST_PERCENT,
                    Hog::MOST_SECONDS
                ),
            )
        })?),
    };
    let factor = arguments.option(SUPPRESS.name).map(values::factor);
    let action = match (factor.transpose()?, arguments.option(TELL.name)) {
        (Some(_), Some(_)) => {
            return Err(CommandError::new(
                "bad_action",
                "`--suppress` tells, too: leave `--tell` out",
            ));
        }
        (Some(factor), None) => Action::Suppress(factor),
        (None, _) => Action::Tell,
    };
    let exceptions = arguments
        .option(EXCEPT.name)
        .map_or(Ok(alloc::vec![]), |list| {
            list.split(',').map(values::cr3).collect()
        })?;
    Ok(Rule {
        condition,
        action,
        exceptions,
    })
}
