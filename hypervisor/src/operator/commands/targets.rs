//! `targets`: lists what is suppressed.

use alloc::vec::Vec;

use super::{Arguments, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::operator::inspect;
use crate::operator::records::TargetLine;

pub(super) static COMMAND: Command = Command {
    name: "targets",
    usage: "targets [VM]",
    summary: "list what is suppressed, in one VM or in all",
    details: "",
    parameters: &[Parameter::optional("VM").with(Candidates::Vms)],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vms = match arguments.get("VM") {
        Some(_) => alloc::vec![context.vm(arguments)?],
        None => context.all_vms(),
    };
    let targets: Vec<_> = vms
        .iter()
        .flat_map(|vm| inspect::targets(vm).into_iter().map(|it| (&vm.name, it)))
        .collect();
    let lines = targets
        .iter()
        .filter_map(|(vm, target)| TargetLine::new(vm, &target.roots, target.factors));
    context.answer.records(lines);
    Ok(Outcome::Done)
}
