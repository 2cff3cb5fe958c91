//! `restart`: ends a VM and starts it again.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};

pub(super) static COMMAND: Command = Command {
    name: "restart",
    usage: "restart VM",
    summary: "end a VM, if it runs, and start it again",
    details: "",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm_id(arguments)?;
    context.vms.restart(vm)?;
    Ok(context.done("restarting"))
}
