//! `pause`: pauses a VM.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};

pub(super) static COMMAND: Command = Command {
    name: "pause",
    usage: "pause VM",
    summary: "stop a VM, and its clocks with it",
    details: "",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm_id(arguments)?;
    context.vms.pause(vm)?;
    Ok(context.done("paused"))
}
