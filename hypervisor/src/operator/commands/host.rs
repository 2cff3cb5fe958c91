//! `host`: shows the state of the machine itself.

use core::fmt;

use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome};
use crate::console::Record;

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
    let facts = context.host.found.iter().chain(&now);
    context.answer.records(facts.map(|fact| HostLine {
        subject: &fact.subject,
        state: &fact.state,
    }));
    Ok(Outcome::Done)
}

/// A fact about the machine.
#[derive(Clone, Copy, Debug, Serialize)]
struct HostLine<'a> {
    /// The subject of the fact.
    subject: &'a str,
    /// The state of the subject.
    state: &'a str,
}

impl Record for HostLine<'_> {
    const HEADING: &'static str = "SUBJECT                    STATE";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26} {}", self.subject, self.state)
    }
}
