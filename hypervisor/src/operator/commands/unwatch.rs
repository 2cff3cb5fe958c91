//! `unwatch`: removes a rule.

use super::{Arguments, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::numbers::decimal;

pub(super) static COMMAND: Command = Command {
    name: "unwatch",
    usage: "unwatch VM RULE|all",
    summary: "remove a rule by its number, or all of a VM",
    details: "Processes that it has had suppressed stay suppressed: `release` lets them go.",
    parameters: &[
        Parameter::VM,
        Parameter::required("RULE").with(Candidates::Words(&[ALL])),
    ],
    options: &[],
    run,
};

const ALL: &str = "all";

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let word = arguments.required("RULE")?;
    let number = match word {
        ALL => None,
        word => Some(number(word)?),
    };
    let vm = context.vm_id(arguments)?;
    let count = match number {
        None => context.watcher.remove_all(vm),
        Some(number) => {
            context.watcher.remove(vm, number).ok_or_else(|| {
                CommandError::new(
                    "no_rule",
                    format_args!("the VM has no rule {number}: `rules` lists them"),
                )
            })?;
            1
        }
    };
    Ok(context.done(&alloc::format!("{count} removed")))
}

fn number(word: &str) -> Result<u32, CommandError> {
    decimal(word).ok_or_else(|| {
        CommandError::new(
            "bad_number",
            format_args!("`{word}` is no number of a rule: `rules` lists them"),
        )
    })
}
