//! `log`: shows tarpit's last messages.

use alloc::borrow::ToOwned;
use core::iter;

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
    let messages = (context.host.log)();
    let mut shown = 0;
    let lines = iter::from_fn(move || {
        let line = messages.get(shown..)?.split_inclusive('\n').next()?;
        shown += line.len();
        let message = line.trim_end_matches('\n').to_owned();
        Some(LogLine { message })
    });
    Ok(Outcome::list(context, lines))
}
