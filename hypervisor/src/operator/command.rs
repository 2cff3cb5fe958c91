//! What a command is: an entry of the [table](super::commands::COMMANDS).

use alloc::boxed::Box;

use devices::time::HostTicks;

use super::arguments::Arguments;
use super::context::Context;
use super::error::CommandError;
use crate::ids::VmId;

/// A command of the operator's: all that help, completion, the parser and the dispatcher know
/// of it.
#[derive(Debug)]
pub(crate) struct Command {
    /// The word that calls it.
    pub name: &'static str,
    /// The form of the command, in a line: arguments in capitals, what may be left out in brackets.
    pub usage: &'static str,
    /// The effect of the command, in one line.
    pub summary: &'static str,
    /// Further information, in lines of at most 100 characters; may be empty.
    pub details: &'static str,
    /// The arguments that are known by their place, in their order.
    pub parameters: &'static [Parameter],
    /// The arguments that are known by a name in front, in any place. Every command has `--json`
    /// besides.
    pub options: &'static [OptionParameter],
    /// The function that carries it out, or begins to.
    pub run: fn(&Arguments<'_>, &mut Context<'_>) -> Result<Outcome, CommandError>,
}

/// An argument that is known by its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    /// Its name, as in the usage.
    pub name: &'static str,
    /// Whether it may be left out, and what follows it with it.
    pub optional: bool,
    /// The words that may stand there.
    pub candidates: Candidates,
}

impl Parameter {
    /// The name of a VM.
    pub(crate) const VM: Self = Self::required("VM").with(Candidates::Vms);

    /// Declares an argument that must be there.
    #[must_use]
    pub(crate) const fn required(name: &'static str) -> Self {
        Self {
            name,
            optional: false,
            candidates: Candidates::Unknown,
        }
    }

    /// Declares an argument that may be left out.
    #[must_use]
    pub(crate) const fn optional(name: &'static str) -> Self {
        Self {
            optional: true,
            ..Self::required(name)
        }
    }

    /// Declares what may stand there.
    #[must_use]
    pub(crate) const fn with(self, candidates: Candidates) -> Self {
        Self { candidates, ..self }
    }
}

/// The known words that may stand for an argument: the tab key offers them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Candidates {
    /// Nothing: numbers, for instance.
    Unknown,
    /// The names of the VMs.
    Vms,
    /// The names of the commands.
    Commands,
    /// These words, perhaps besides others.
    Words(&'static [&'static str]),
}

/// An argument with a name in front: `--name VALUE` or `--name=VALUE`, or the name alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OptionParameter {
    /// The name, with its hyphens.
    pub name: &'static str,
    /// A value, for messages; empty if it has none.
    pub example: &'static str,
}

impl OptionParameter {
    /// Returns whether it has no value.
    #[must_use]
    pub(crate) const fn is_flag(&self) -> bool {
        self.example.is_empty()
    }
}

/// The outcome of a command that has been begun.
pub(crate) enum Outcome {
    /// A command that has been carried out and answered.
    Done,
    /// A command that goes on in steps, and answers in the course of them.
    GoesOn(Box<dyn Job>),
    /// A request to attach the operator to this VM's console.
    Attach(VmId),
    /// A request to switch the machine off.
    PowerOff,
}

impl Outcome {
    /// Returns that the command goes on with `job`.
    #[must_use]
    pub(crate) fn goes_on(job: impl Job + 'static) -> Self {
        Self::GoesOn(Box::new(job))
    }
}

/// The rest of a command that takes its time. Guests run between its steps.
pub(crate) trait Job: Send {
    /// Goes on until host time `until` or a little longer, or until the line is busy.
    fn step(&mut self, context: &mut Context<'_>, until: HostTicks) -> Progress;
}

/// Whether a [`Job`] has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A job that has answered all.
    Done,
    /// A job that has more to do.
    More,
}
