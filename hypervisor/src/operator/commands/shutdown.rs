//! `shutdown`: switches the machine off.

use super::{Arguments, Command, CommandError, Context, Outcome};

pub(super) static COMMAND: Command = Command {
    name: "shutdown",
    usage: "shutdown",
    summary: "end all VMs, and switch the machine off",
    details: "",
    parameters: &[],
    options: &[],
    run,
};

fn run(_: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    context.done("switching the machine off");
    Ok(Outcome::PowerOff)
}
