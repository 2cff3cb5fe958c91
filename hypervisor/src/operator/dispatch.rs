//! From a line to what it does.

use super::arguments::Arguments;
use super::command::Outcome;
use super::commands;
use super::context::Context;
use super::error::CommandError;
use super::words::words;
use crate::console::Format;

/// The option that every command has.
pub(super) const JSON: &str = "--json";

/// Carries out a line, which is a command or empty, or begins to. Errors are answered.
pub(crate) fn dispatch(line: &str, context: &mut Context<'_>) -> Outcome {
    let outcome = parse(line).and_then(|arguments| match arguments {
        Some(arguments) => (arguments.command().run)(&arguments, context),
        None => Ok(Outcome::Done),
    });
    outcome.unwrap_or_else(|error| {
        context.answer.error(error.kind(), &error);
        Outcome::Done
    })
}

/// Parses a line; returns `None` if it is empty.
///
/// # Errors
/// If there is no such command, or an argument of it is missing or too many. The values of the
/// arguments are not looked at.
pub(crate) fn parse(line: &str) -> Result<Option<Arguments<'_>>, CommandError> {
    let mut words = words(line).filter(|word| *word != JSON);
    let Some(name) = words.next() else {
        return Ok(None);
    };
    Arguments::new(commands::find(name)?, words).map(Some)
}

/// Returns the format in which `line` wants its answer, even if that is an error.
#[must_use]
pub(crate) fn wanted_format(line: &str) -> Format {
    if words(line).any(|word| word == JSON) {
        Format::Json
    } else {
        Format::Table
    }
}
