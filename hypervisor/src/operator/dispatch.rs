//! From a line to what it does.

use super::arguments::parse;
use super::command::Outcome;
use super::context::Context;

/// Carries out a line, which is a command or empty, or begins to. Errors are answered.
pub fn dispatch(line: &str, context: &mut Context<'_>) -> Outcome {
    let outcome = parse(line).and_then(|arguments| match arguments {
        Some(arguments) => (arguments.command().run)(&arguments, context),
        None => Ok(Outcome::Done),
    });
    outcome.unwrap_or_else(|error| {
        context.answer.error(error.kind(), &error);
        Outcome::Done
    })
}
