//! The operator's commands: from a line of text to a [`Command`].

mod error;
#[cfg(test)]
mod tests;

use super::help::{Topic, topic};
use super::pattern::Pattern;
use super::words::words;
use crate::suppression::{Factor, Factors};

pub use error::{ParseError, UnknownVm};

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
    /// `find VM PATTERN`: the address spaces that hold these bytes.
    Find {
        /// The VM's name.
        vm: &'a str,
        /// What is looked for.
        pattern: Pattern,
    },
    /// `trace VM [on|off|show|clear]`: record what happens, in host time.
    Trace {
        /// The VM's name.
        vm: &'a str,
        /// What is to be done with the record.
        action: TraceAction,
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

/// What is to be done with the record of a VM's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceAction {
    /// Tell whether it is made, and how long it is.
    Status,
    /// Begin to make it.
    On,
    /// Make it no longer.
    Off,
    /// Show it: the latest so many events.
    Show(usize),
    /// Forget it.
    Clear,
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
            | Self::Find { vm, .. }
            | Self::Trace { vm, .. }
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

/// The option that every command has.
pub(super) const JSON: &str = "--json";

/// What follows the VM in `trace VM ...`.
pub(super) const TRACE_ACTIONS: [&str; 4] = ["on", "off", "show", "clear"];

/// Whether the answer to `line`, even an error, is to be in JSON.
#[must_use]
pub fn wants_json(line: &str) -> bool {
    words(line).any(|word| word == JSON)
}

/// Parses a line; `None` if it is empty.
///
/// # Errors
/// If the line is no command.
pub fn parse(line: &str) -> Result<Option<Request<'_>>, ParseError<'_>> {
    let mut words = words(line).filter(|word| *word != JSON);
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
        "find" => Command::Find {
            vm: arguments.required("VM")?,
            pattern: {
                let word = arguments.required("PATTERN")?;
                Pattern::parse(word).map_err(|why| ParseError::NoPattern(word, why))?
            },
        },
        "trace" => Command::Trace {
            vm: arguments.required("VM")?,
            action: match arguments.optional()? {
                None => TraceAction::Status,
                Some("on") => TraceAction::On,
                Some("off") => TraceAction::Off,
                Some("clear") => TraceAction::Clear,
                Some("show") => TraceAction::Show(match arguments.optional()? {
                    None => usize::MAX,
                    Some(word) => count(word)?,
                }),
                Some(word) => return Err(ParseError::NoTraceAction(word)),
            },
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

fn count(word: &str) -> Result<usize, ParseError<'_>> {
    word.parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or(ParseError::NoCount(word))
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
