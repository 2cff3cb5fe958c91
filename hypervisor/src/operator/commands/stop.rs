//! `stop`: ends a VM.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};

pub(super) static COMMAND: Command = Command {
    name: "stop",
    usage: "stop VM",
    summary: "end a VM, as if its power were cut",
    details: "",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm_id(arguments)?;
    context.vms.stop(vm)?;
    Ok(context.done("stopping"))
}
