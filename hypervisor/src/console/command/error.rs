//! What is wrong with a line, and what to do about it.

use core::fmt;

use super::TRACE_ACTIONS;
use crate::console::help::{COMMANDS, Topic};
use crate::console::pattern::PatternError;
use crate::console::suggest::suggest;

/// Why a line is no command. Its text tells the cause and the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError<'a> {
    /// There is no such command.
    UnknownCommand(&'a str),
    /// An argument is missing.
    Missing {
        /// The command.
        topic: &'static Topic,
        /// The argument, as in the usage.
        argument: &'static str,
    },
    /// There is an argument too many.
    Unexpected {
        /// The command.
        topic: &'static Topic,
        /// The argument.
        word: &'a str,
    },
    /// The command has no such option.
    UnknownOption {
        /// The command.
        topic: &'static Topic,
        /// The option.
        word: &'a str,
    },
    /// An option came twice.
    Repeated(&'a str),
    /// An option has no value behind it.
    NoValue(&'a str),
    /// What should be a factor is none.
    NoFactor(&'a str),
    /// What should be a CR3 value is none.
    NoCr3(&'a str),
    /// What should be a number of events is none.
    NoCount(&'a str),
    /// What should be a pattern is none.
    NoPattern(&'a str, PatternError),
    /// There is no such thing to be done with a trace.
    NoTraceAction(&'a str),
    /// What should be the number of a VCPU or CPU is none.
    NoNumber(&'a str),
}

impl ParseError<'_> {
    /// A name of the error for programs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::UnknownCommand(_) => "unknown_command",
            Self::Missing { .. } => "missing_argument",
            Self::Unexpected { .. } => "unexpected_argument",
            Self::UnknownOption { .. } => "unknown_option",
            Self::Repeated(_) => "repeated_option",
            Self::NoValue(_) => "missing_value",
            Self::NoFactor(_) => "bad_factor",
            Self::NoCr3(_) => "bad_cr3",
            Self::NoCount(_) => "bad_count",
            Self::NoPattern(..) => "bad_pattern",
            Self::NoTraceAction(_) => "bad_action",
            Self::NoNumber(_) => "bad_number",
        }
    }
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownCommand(word) => {
                write!(f, "unknown command `{word}`: ")?;
                match suggest(word, COMMANDS.iter().map(|it| it.name)) {
                    Some(name) => write!(f, "did you mean `{name}`?"),
                    None => f.write_str("`help` lists the commands"),
                }
            }
            Self::Missing { topic, argument } => write!(
                f,
                "`{}` needs {argument}: usage: {}",
                topic.name, topic.usage
            ),
            Self::Unexpected { topic, word } => write!(
                f,
                "`{}` has no use for `{word}`: usage: {}",
                topic.name, topic.usage
            ),
            Self::UnknownOption { topic, word } => {
                write!(f, "`{}` has no option `{word}`: ", topic.name)?;
                match suggest(word, topic.options.iter().copied()) {
                    Some(option) => write!(f, "did you mean `{option}`?"),
                    None => write!(f, "usage: {}", topic.usage),
                }
            }
            Self::Repeated(option) => write!(f, "`{option}` is given twice: give it once"),
            Self::NoValue(option) => {
                write!(f, "`{option}` needs a value: for instance `{option} 1000`")
            }
            Self::NoFactor(word) => write!(
                f,
                "`{word}` is no factor: it must be a whole number from 1 to 65535"
            ),
            Self::NoCr3(word) => write!(
                f,
                "`{word}` is no CR3: it must be a hexadecimal number as `ps` shows it, \
                 for instance 0x1a2b000"
            ),
            Self::NoCount(word) => write!(
                f,
                "`{word}` is no number of events: it must be a whole number from 1"
            ),
            Self::NoPattern(word, why) => write!(f, "`{word}` is no pattern: {why}"),
            Self::NoTraceAction(word) => {
                write!(f, "`trace` cannot `{word}`: ")?;
                match suggest(word, TRACE_ACTIONS.iter().copied()) {
                    Some(action) => write!(f, "did you mean `{action}`?"),
                    None => f.write_str("it can `on`, `off`, `show` and `clear`"),
                }
            }
            Self::NoNumber(word) => write!(
                f,
                "`{word}` is no number of a VCPU or CPU: they are counted from 0"
            ),
        }
    }
}

impl core::error::Error for ParseError<'_> {}

/// A VM's name that no VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownVm<'a, N> {
    /// The name.
    pub name: &'a str,
    /// The names there are.
    pub names: N,
}

impl<'n, N: IntoIterator<Item = &'n str> + Clone> fmt::Display for UnknownVm<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no VM `{}`: ", self.name)?;
        if let Some(name) = suggest(self.name, self.names.clone()) {
            return write!(f, "did you mean `{name}`?");
        }
        f.write_str("`vms` lists them")
    }
}
