//! `release`: ends the suppression of a process.

use super::{Arguments, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::operator::inspect;
use crate::operator::records::TargetLine;
use crate::operator::values;
use crate::suppression::address_space::Root;

pub(super) static COMMAND: Command = Command {
    name: "release",
    usage: "release VM CR3|all",
    summary: "let a process, or all of a VM, run at full speed again",
    details: "\
With a process all of its family are released, whichever of them is named. A target is released by
itself when it has ended, and nobody of its family is left.",
    parameters: &[
        Parameter::VM,
        Parameter::required("CR3").with(Candidates::Words(&[ALL])),
    ],
    options: &[],
    run,
};

const ALL: &str = "all";

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let cr3 = match arguments.required("CR3")? {
        ALL => None,
        word => Some(values::cr3(word)?),
    };
    let vm = context.vm(arguments)?;
    let Some(cr3) = cr3 else {
        let count = inspect::release_all(&vm);
        return Ok(context.done(&alloc::format!("{count} released")));
    };
    let root = Root::new(cr3, inspect::root_format(&vm));
    let target = inspect::release(&vm, root).ok_or_else(|| {
        CommandError::new(
            "no_target",
            format_args!("{root} is no target of {}: `targets` lists them", vm.name),
        )
    })?;
    let line = TargetLine::new(&vm.name, &target.roots, &target.order);
    context.answer.records(line);
    Ok(Outcome::Done)
}
