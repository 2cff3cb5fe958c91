//! `host`: shows the state of the machine itself.

use alloc::vec::Vec;
use core::fmt;

use super::{Arguments, Command, CommandError, Context, Outcome};
use crate::console::Record;
use crate::operator::host_facts::Fact;

pub(super) static COMMAND: Command = Command {
    name: "host",
    usage: "host",
    summary: "show the state of the machine, and what keeps VMs apart on its processors",
    details: "\
First what has been found at the start. Then the known issues of processors, by the names that
Linux has for them: whether this processor has each, and what tarpit does. Then what has happened
since: non-maskable interrupts, errors that the hardware has reported, and interrupts that nobody
asked for, by their vectors.",
    parameters: &[],
    options: &[],
    run,
};

fn run(_: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let now = (context.host.now)();
    let facts: Vec<_> = context.host.found.iter().cloned().chain(now).collect();
    Ok(Outcome::list(context, facts))
}

impl Record for Fact {
    const HEADING: &'static str = "SUBJECT                    STATE";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26} {}", self.subject, self.state)
    }
}
