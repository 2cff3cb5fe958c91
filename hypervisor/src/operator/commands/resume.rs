//! `resume`: lets a paused VM go on.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};

pub(super) static COMMAND: Command = Command {
    name: "resume",
    usage: "resume VM",
    summary: "let a paused VM go on",
    details: "",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm_id(arguments)?;
    context.vms.resume(vm)?;
    Ok(context.done("resumed"))
}
