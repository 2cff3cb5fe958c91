//! `log`: shows tarpit's last messages.

use alloc::string::String;

use devices::time::HostTicks;

use super::{Arguments, Command, CommandError, Context, Outcome};
use crate::operator::command::{Job, Progress};
use crate::operator::records::LogLine;
use crate::operator::terminal::BACKLOG;

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
    Ok(Outcome::goes_on(Log { messages, shown: 0 }))
}

/// The messages, some of which are still to be shown.
struct Log {
    messages: String,
    /// The number of bytes of those that have been.
    shown: usize,
}

impl Job for Log {
    fn step(&mut self, context: &mut Context<'_>, until: HostTicks) -> Progress {
        while context.answer.backlog() < BACKLOG {
            let rest = self.messages.get(self.shown..).unwrap_or_default();
            let Some(message) = rest.split_inclusive('\n').next() else {
                return Progress::Done;
            };
            self.shown += message.len();
            let message = message.trim_end_matches('\n');
            context.answer.record(&LogLine { message });
            if context.clock.now() >= until {
                break;
            }
        }
        Progress::More
    }
}
