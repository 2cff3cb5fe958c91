//! `help`: lists the commands, or explains one.

use core::fmt;

use serde::Serialize;

use super::{Arguments, COMMANDS, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::console::{Format, Record};

pub(super) static COMMAND: Command = Command {
    name: "help",
    usage: "help [COMMAND]",
    summary: "list the commands, or explain one",
    details: "",
    parameters: &[Parameter::optional("COMMAND").with(Candidates::Commands)],
    options: &[],
    run,
};

/// The width of the overview's first column: a usage that is longer is cut before what may be
/// left out.
const WIDTH: usize = 20;

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let answer = &mut context.answer;
    match arguments.get("COMMAND") {
        Some(name) => {
            let command = super::find(name)?;
            match answer.format() {
                Format::Table => answer.text(format_args!("{}", Explanation(command))),
                Format::Json => answer.record(&CommandLine::new(command)),
            }
        }
        None => match answer.format() {
            Format::Table => answer.text(format_args!("{Overview}")),
            Format::Json => answer.records(COMMANDS.iter().map(|it| CommandLine::new(it))),
        },
    }
    Ok(Outcome::Done)
}

/// A command, for programs.
#[derive(Clone, Copy, Debug, Serialize)]
struct CommandLine {
    command: &'static str,
    usage: &'static str,
    summary: &'static str,
    details: &'static str,
}

impl CommandLine {
    const fn new(command: &Command) -> Self {
        Self {
            command: command.name,
            usage: command.usage,
            summary: command.summary,
            details: command.details,
        }
    }
}

impl Record for CommandLine {
    const HEADING: &'static str = "";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:<WIDTH$} {}", brief(self.usage), self.summary)
    }
}

/// The list of all commands.
struct Overview;

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for command in COMMANDS {
            CommandLine::new(command).row(f)?;
            f.write_str("\n")?;
        }
        f.write_str(
            "\n`help COMMAND` tells more. --json with any command: the answer as JSON, one object \
             a line.\nTab completes, the up arrow recalls, Ctrl-U clears the line, Ctrl-C drops \
             it.\n",
        )
    }
}

fn brief(usage: &'static str) -> &'static str {
    match usage.split_once(" [") {
        Some((brief, _)) if usage.len() > WIDTH => brief,
        _ => usage,
    }
}

/// All that is to be known of a command.
struct Explanation<'a>(&'a Command);

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(command) = self;
        writeln!(f, "usage: {}\n\n{}.", command.usage, command.summary)?;
        if !command.details.is_empty() {
            writeln!(f, "\n{}", command.details)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn the_overview_fits_a_terminal_and_names_every_command() {
        let text = Overview.to_string();
        for command in COMMANDS {
            assert!(text.contains(command.summary));
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(
            text.contains("\n  suppress VM CR3      slow a process down"),
            "{text}"
        );
        assert!(text.contains("\n  trace VM             record"), "{text}");
        assert!(text.contains("\n  pin VM VCPU CPU|any  choose"), "{text}");
    }

    #[test]
    fn each_explanation_fits_a_terminal_and_shows_its_options() {
        for command in COMMANDS {
            let text = Explanation(command).to_string();
            assert!(text.starts_with(&std::format!("usage: {}", command.name)));
            assert!(text.lines().all(|line| line.len() <= 100), "{text}");
            for option in command.options {
                assert!(command.usage.contains(option.name) && text.contains(option.name));
            }
        }
    }
}
