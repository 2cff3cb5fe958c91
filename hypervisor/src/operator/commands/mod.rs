//! The table of commands, one file each.
//!
//! To add one: write its file beside the others, and name it in the two lists here. Help,
//! completion, the parser and the dispatcher go by the table.

// What every command's file needs.
use super::arguments::Arguments;
use super::command::{Candidates, Command, Outcome, Parameter};
use super::context::Context;
use super::error::CommandError;

mod attach;
mod disks;
mod find;
mod help;
mod host;
mod log;
mod networks;
mod pause;
mod pin;
mod ps;
mod release;
mod restart;
mod resume;
mod rules;
mod screen;
mod shutdown;
mod start;
mod stats;
mod stop;
mod suppress;
mod targets;
mod trace;
mod unwatch;
mod vms;
mod watch;

/// All commands, in the order in which `help` lists them.
pub(crate) static COMMANDS: &[&Command] = &[
    &help::COMMAND,
    &vms::COMMAND,
    &host::COMMAND,
    &log::COMMAND,
    &ps::COMMAND,
    &suppress::COMMAND,
    &targets::COMMAND,
    &release::COMMAND,
    &stats::COMMAND,
    &disks::COMMAND,
    &networks::COMMAND,
    &find::COMMAND,
    &watch::COMMAND,
    &rules::COMMAND,
    &unwatch::COMMAND,
    &trace::COMMAND,
    &attach::COMMAND,
    &screen::COMMAND,
    &pause::COMMAND,
    &resume::COMMAND,
    &stop::COMMAND,
    &start::COMMAND,
    &restart::COMMAND,
    &pin::COMMAND,
    &shutdown::COMMAND,
];

/// Returns the names of all commands, in the order of the table.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|command| command.name)
}

/// Returns the command `name`.
///
/// # Errors
/// If there is none.
pub(crate) fn find(name: &str) -> Result<&'static Command, CommandError> {
    let mut commands = COMMANDS.iter().copied();
    commands
        .find(|command| command.name == name)
        .ok_or_else(|| CommandError::unknown_command(name, names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brackets(parameter: &Parameter, text: &str) -> std::string::String {
        if parameter.optional {
            std::format!("[{text}")
        } else {
            text.into()
        }
    }

    #[test]
    fn names_are_unique() {
        for command in COMMANDS {
            let same = COMMANDS.iter().filter(|other| other.name == command.name);
            assert_eq!(same.count(), 1, "{}", command.name);
        }
    }

    #[test]
    fn usages_show_every_argument_as_it_is_parsed() {
        for command in COMMANDS {
            let usage = command.usage;
            assert!(usage.starts_with(command.name), "{usage}");
            let mut rest = &usage[command.name.len()..];
            for parameter in command.parameters {
                let words = match parameter.candidates {
                    Candidates::Words(words) => words,
                    _ => &[],
                };
                // Where words alone may stand the usage has them in place of a name.
                let name = if rest.contains(parameter.name) {
                    parameter.name
                } else {
                    words[0]
                };
                let shown = brackets(parameter, name);
                let at = rest.find(&shown);
                let at = at.unwrap_or_else(|| panic!("{usage}: no {shown} in order"));
                assert!(words.iter().all(|word| rest.contains(word)), "{usage}");
                rest = &rest[at..];
            }
            for option in command.options {
                assert!(usage.contains(option.name), "{usage}: no {}", option.name);
                assert!(command.details.contains(option.name), "{}", command.name);
            }
        }
    }

    #[test]
    fn what_may_be_left_out_is_last() {
        for command in COMMANDS {
            let optional = command.parameters.iter().map(|it| it.optional);
            assert!(optional.is_sorted(), "{}", command.name);
        }
    }
}
