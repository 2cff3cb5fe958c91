//! The operator's commands: from a line of text to a [`Command`].

use core::fmt;

use super::help::{COMMANDS, Topic, topic};
use super::suggest::suggest;
use crate::suppression::{Factor, Factors};

#[cfg(test)]
mod tests;

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `help`: an overview, or all about one command.
    Help(Option<&'static Topic>),
    /// `vms`: the VMs.
    Vms,
    /// `ps VM`: the address spaces seen, with their CPU shares.
    Ps {
        /// The VM's name.
        vm: &'a str,
    },
    /// `suppress VM CR3`: slow a process down.
    Suppress {
        /// The VM's name.
        vm: &'a str,
        /// A root of the process, as `ps` shows it.
        cr3: u64,
        /// How much.
        factors: Factors,
    },
    /// `targets [VM]`: what is suppressed.
    Targets {
        /// The VM's name; all if not given.
        vm: Option<&'a str>,
    },
    /// `release VM CR3|all`: end suppression.
    Release {
        /// The VM's name.
        vm: &'a str,
        /// The process; all if not given.
        cr3: Option<u64>,
    },
    /// `stats VM`: exits by reason, and ticks in root mode.
    Stats {
        /// The VM's name.
        vm: &'a str,
    },
    /// `attach VM`: talk to the VM's own console.
    Attach {
        /// The VM's name.
        vm: &'a str,
    },
    /// `pause VM`: stop it, with its clock.
    Pause {
        /// The VM's name.
        vm: &'a str,
    },
    /// `resume VM`: let a paused one go on.
    Resume {
        /// The VM's name.
        vm: &'a str,
    },
    /// `stop VM`: end it, as if its power were cut.
    Stop {
        /// The VM's name.
        vm: &'a str,
    },
    /// `start VM`: start one that has ended.
    Start {
        /// The VM's name.
        vm: &'a str,
    },
    /// `restart VM`: end it, if it runs, and start it again.
    Restart {
        /// The VM's name.
        vm: &'a str,
    },
    /// `pin VM VCPU CPU|any`: choose where a VCPU runs.
    Pin {
        /// The VM's name.
        vm: &'a str,
        /// The VCPU's number.
        vcpu: u32,
        /// The physical CPU; any if not given.
        cpu: Option<u32>,
    },
    /// `shutdown`: end all VMs, and switch the machine off.
    Shutdown,
}

impl<'a> Command<'a> {
    /// The VM that the command names.
    #[must_use]
    pub const fn vm(&self) -> Option<&'a str> {
        match *self {
            Self::Help(_) | Self::Vms | Self::Shutdown => None,
            Self::Targets { vm } => vm,
            Self::Ps { vm }
            | Self::Suppress { vm, .. }
            | Self::Release { vm, .. }
            | Self::Stats { vm }
            | Self::Attach { vm }
            | Self::Pause { vm }
            | Self::Resume { vm }
            | Self::Stop { vm }
            | Self::Start { vm }
            | Self::Restart { vm }
            | Self::Pin { vm, .. } => Some(vm),
        }
    }
}

/// A command, and how to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The command.
    pub command: Command<'a>,
    /// Whether the answer is to be in JSON, one object a line.
    pub json: bool,
}

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
            Self::NoNumber(word) => write!(
                f,
                "`{word}` is no number of a VCPU or CPU: they are counted from 0"
            ),
        }
    }
}

impl core::error::Error for ParseError<'_> {}

/// The option that every command has.
pub(super) const JSON: &str = "--json";

/// Whether the answer to `line`, even an error, is to be in JSON.
#[must_use]
pub fn wants_json(line: &str) -> bool {
    line.split_ascii_whitespace().any(|word| word == JSON)
}

/// Parses a line; `None` if it is empty.
///
/// # Errors
/// If the line is no command.
pub fn parse(line: &str) -> Result<Option<Request<'_>>, ParseError<'_>> {
    let mut words = line.split_ascii_whitespace().filter(|word| *word != JSON);
    let json = wants_json(line);
    let Some(name) = words.next() else {
        return Ok(None);
    };
    let topic = topic(name).ok_or(ParseError::UnknownCommand(name))?;
    let mut arguments = Arguments { topic, words };
    let command = match topic.name {
        "help" => Command::Help(match arguments.optional()? {
            Some(word) => Some(super::help::topic(word).ok_or(ParseError::UnknownCommand(word))?),
            None => None,
        }),
        "vms" => Command::Vms,
        "ps" => Command::Ps {
            vm: arguments.required("VM")?,
        },
        "suppress" => return suppress(arguments).map(|command| Some(Request { command, json })),
        "targets" => Command::Targets {
            vm: arguments.optional()?,
        },
        "release" => Command::Release {
            vm: arguments.required("VM")?,
            cr3: match arguments.required("CR3 or `all`")? {
                "all" => None,
                word => Some(cr3(word)?),
            },
        },
        "stats" => Command::Stats {
            vm: arguments.required("VM")?,
        },
        "attach" => Command::Attach {
            vm: arguments.required("VM")?,
        },
        "pause" => Command::Pause {
            vm: arguments.required("VM")?,
        },
        "resume" => Command::Resume {
            vm: arguments.required("VM")?,
        },
        "stop" => Command::Stop {
            vm: arguments.required("VM")?,
        },
        "start" => Command::Start {
            vm: arguments.required("VM")?,
        },
        "restart" => Command::Restart {
            vm: arguments.required("VM")?,
        },
        "pin" => Command::Pin {
            vm: arguments.required("VM")?,
            vcpu: number(arguments.required("VCPU")?)?,
            cpu: match arguments.required("CPU or `any`")? {
                "any" => None,
                word => Some(number(word)?),
            },
        },
        "shutdown" => Command::Shutdown,
        _ => return Err(ParseError::UnknownCommand(name)),
    };
    arguments.end()?;
    Ok(Some(Request { command, json }))
}

/// The words behind the command.
struct Arguments<I> {
    topic: &'static Topic,
    words: I,
}

impl<'a, I: Iterator<Item = &'a str>> Arguments<I> {
    /// The next argument that is not an option.
    fn optional(&mut self) -> Result<Option<&'a str>, ParseError<'a>> {
        match self.words.next() {
            Some(word) if word.starts_with("--") => Err(ParseError::UnknownOption {
                topic: self.topic,
                word,
            }),
            other => Ok(other),
        }
    }

    fn required(&mut self, argument: &'static str) -> Result<&'a str, ParseError<'a>> {
        self.optional()?.ok_or(ParseError::Missing {
            topic: self.topic,
            argument,
        })
    }

    fn end(&mut self) -> Result<(), ParseError<'a>> {
        match self.optional()? {
            Some(word) => Err(ParseError::Unexpected {
                topic: self.topic,
                word,
            }),
            None => Ok(()),
        }
    }
}

/// `suppress VM CR3 [N] [--interval N] [--clock N]`, options anywhere.
fn suppress<'a>(
    mut arguments: Arguments<impl Iterator<Item = &'a str>>,
) -> Result<Command<'a>, ParseError<'a>> {
    let topic = arguments.topic;
    let (mut vm, mut root, mut both) = (None, None, None);
    let (mut interval, mut clock) = (None, None);
    while let Some(word) = arguments.words.next() {
        if word.starts_with("--") {
            let (option, inline) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (word, None),
            };
            let knob = match option {
                "--interval" => &mut interval,
                "--clock" => &mut clock,
                _ => return Err(ParseError::UnknownOption { topic, word }),
            };
            let value = inline
                .or_else(|| arguments.words.next())
                .ok_or(ParseError::NoValue(option))?;
            if knob.replace(factor(value)?).is_some() {
                return Err(ParseError::Repeated(option));
            }
        } else if vm.is_none() {
            vm = Some(word);
        } else if root.is_none() {
            root = Some(cr3(word)?);
        } else if both.is_none() {
            both = Some(factor(word)?);
        } else {
            return Err(ParseError::Unexpected { topic, word });
        }
    }
    let missing = |argument| ParseError::Missing { topic, argument };
    let vm = vm.ok_or(missing("VM"))?;
    let cr3 = root.ok_or(missing("CR3"))?;
    // One knob alone turns the other along, unless N says otherwise.
    let default = both.or(interval).or(clock).unwrap_or(Factor::DEFAULT);
    Ok(Command::Suppress {
        vm,
        cr3,
        factors: Factors {
            interval: interval.unwrap_or(default),
            clock: clock.unwrap_or(default),
        },
    })
}

/// A VCPU or a CPU.
fn number(word: &str) -> Result<u32, ParseError<'_>> {
    // `from_str` would let a sign pass.
    if !word.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(ParseError::NoNumber(word));
    }
    word.parse().map_err(|_| ParseError::NoNumber(word))
}

fn factor(word: &str) -> Result<Factor, ParseError<'_>> {
    word.parse()
        .ok()
        .and_then(|number| Factor::new(number).ok())
        .ok_or(ParseError::NoFactor(word))
}

fn cr3(word: &str) -> Result<u64, ParseError<'_>> {
    let digits = word
        .strip_prefix("0x")
        .or_else(|| word.strip_prefix("0X"))
        .unwrap_or(word);
    // `from_str_radix` would let a sign pass.
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(ParseError::NoCr3(word));
    }
    u64::from_str_radix(digits, 16).map_err(|_| ParseError::NoCr3(word))
}

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
