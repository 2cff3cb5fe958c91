//! Why a command is not carried out: a name for programs, and for people the cause and the
//! remedy.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use super::command::{Candidates, Command, Parameter};
use super::suggest::suggest;
use crate::manager::RequestError;

/// The reason why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandError {
    kind: &'static str,
    message: String,
}

impl CommandError {
    /// Makes an error of the given kind, which is a name for programs, in lower case with
    /// underscores. The message tells people the cause and the remedy.
    #[must_use]
    pub(crate) fn new(kind: &'static str, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
        }
    }

    /// Returns the error's name for programs.
    #[must_use]
    pub(crate) const fn kind(&self) -> &'static str {
        self.kind
    }

    /// Tells that there is no command `word`, but those of `names`.
    #[must_use]
    pub(crate) fn unknown_command<'n>(
        word: &str,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Self {
        let remedy = did_you_mean(word, names);
        Self::new(
            "unknown_command",
            format_args!(
                "unknown command `{word}`: {}",
                remedy.unwrap_or_else(|| "`help` lists the commands".into())
            ),
        )
    }

    /// Tells that there is no VM `word`, but those of `names`.
    #[must_use]
    pub(crate) fn unknown_vm<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Self {
        let remedy = did_you_mean(word, names);
        Self::new(
            "unknown_vm",
            format_args!(
                "there is no VM `{word}`: {}",
                remedy.unwrap_or_else(|| "`vms` lists them".into())
            ),
        )
    }

    /// Tells that an argument of `command` is missing.
    #[must_use]
    pub(crate) fn missing(command: &Command, parameter: &Parameter) -> Self {
        let mut wanted = String::from(parameter.name);
        if let Candidates::Words(words) = parameter.candidates {
            for word in words {
                wanted += &format!(" or `{word}`");
            }
        }
        Self::new(
            "missing_argument",
            format_args!(
                "`{}` needs {wanted}: usage: {}",
                command.name, command.usage
            ),
        )
    }

    /// Tells that `word` is an argument too many for `command`.
    #[must_use]
    pub(crate) fn unexpected(command: &Command, word: &str) -> Self {
        Self::new(
            "unexpected_argument",
            format_args!(
                "`{}` has no use for `{word}`: usage: {}",
                command.name, command.usage
            ),
        )
    }

    /// Tells that `command` has no option `word`.
    #[must_use]
    pub(crate) fn unknown_option(command: &Command, word: &str) -> Self {
        let remedy = did_you_mean(word, command.options.iter().map(|option| option.name));
        Self::new(
            "unknown_option",
            format_args!(
                "`{}` has no option `{word}`: {}",
                command.name,
                remedy.unwrap_or_else(|| format!("usage: {}", command.usage))
            ),
        )
    }

    /// Tells that the option `name` is there twice.
    #[must_use]
    pub(crate) fn repeated(name: &str) -> Self {
        Self::new(
            "repeated_option",
            format_args!("`{name}` is given twice: give it once"),
        )
    }

    /// Tells that the option `name` has no value, such as `example`, behind it.
    #[must_use]
    pub(crate) fn no_value(name: &str, example: &str) -> Self {
        Self::new(
            "missing_value",
            format_args!("`{name}` needs a value: for instance `{name} {example}`"),
        )
    }
}

/// Asks whether the candidate near to `word` was meant, if there is one.
pub(super) fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    suggest(word, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for CommandError {}

impl From<RequestError> for CommandError {
    fn from(error: RequestError) -> Self {
        Self::new(error.kind(), error)
    }
}
