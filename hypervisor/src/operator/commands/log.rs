//! `log`: shows tarpit's last messages.

use super::{Arguments, Command, CommandError, Context, Outcome};
use crate::operator::records::LogLine;

pub(super) static COMMAND: Command = Command {
    name: "log",
    usage: "log",
    summary: "show tarpit's last messages",
    details: "\
What was told before the console was there, or with the option `quiet` was not shown, is here too.
The last 32 KiB are kept.",
    parameters: &[],
    options: &[],
    run,
};

fn run(_: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let log = (context.host.log)();
    context
        .answer
        .records(log.lines().map(|message| LogLine { message }));
    Ok(Outcome::Done)
}
