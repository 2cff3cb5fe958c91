//! `start`: starts a VM that has ended.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};

pub(super) static COMMAND: Command = Command {
    name: "start",
    usage: "start VM",
    summary: "start a VM that has ended, from its boot modules",
    details: "",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm_id(arguments)?;
    context.vms.start(vm)?;
    Ok(context.done("starting"))
}
