//! `attach`: gives the operator a VM's own console.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};

pub(super) static COMMAND: Command = Command {
    name: "attach",
    usage: "attach VM",
    summary: "talk to a VM's own console; Ctrl-] comes back",
    details: "While attached, the output of other VMs is not shown.",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    Ok(Outcome::Attach(context.vm_id(arguments)?))
}
