//! What is typed behind a command, brought into the order of its parameters.

use alloc::vec::Vec;

use super::command::{Command, Parameter};
use super::error::CommandError;

/// A command with the arguments that were given to it. Those that it cannot do without are
/// there.
#[derive(Clone, Debug)]
pub(crate) struct Arguments<'a> {
    command: &'static Command,
    /// The arguments, in the order of the command's parameters; those left out are not there.
    values: Vec<&'a str>,
    /// The values of the command's options, in their order.
    options: Vec<Option<&'a str>>,
}

impl<'a> Arguments<'a> {
    /// Brings the words behind `command` into the order of its parameters.
    ///
    /// # Errors
    /// If one is missing or too many.
    pub(crate) fn new(
        command: &'static Command,
        words: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, CommandError> {
        let mut values = Vec::new();
        let mut options = alloc::vec![None; command.options.len()];
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word.starts_with("--") {
                let (name, value) = match word.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (word, None),
                };
                let (option, place) = command
                    .options
                    .iter()
                    .zip(&mut options)
                    .find(|(option, _)| option.name == name)
                    .ok_or_else(|| CommandError::unknown_option(command, word))?;
                let value = match (option.is_flag(), value) {
                    (true, None) => "",
                    (true, Some(_)) => return Err(CommandError::unknown_option(command, word)),
                    (false, value) => value
                        .or_else(|| words.next())
                        .ok_or_else(|| CommandError::no_value(option.name, option.example))?,
                };
                if place.replace(value).is_some() {
                    return Err(CommandError::repeated(option.name));
                }
            } else if values.len() < command.parameters.len() {
                values.push(word);
            } else {
                return Err(CommandError::unexpected(command, word));
            }
        }
        match command.parameters.get(values.len()) {
            Some(missing) if !missing.optional => Err(CommandError::missing(command, missing)),
            _ => Ok(Self {
                command,
                values,
                options,
            }),
        }
    }

    /// Returns the command that they are for.
    #[must_use]
    pub(crate) const fn command(&self) -> &'static Command {
        self.command
    }

    /// Returns the argument that the command's usage calls `name`, if it is there.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        let mut parameters = self.command.parameters.iter();
        let place = parameters.position(|parameter| parameter.name == name);
        debug_assert!(place.is_some(), "{} has no {name}", self.command.name);
        self.values.get(place?).copied()
    }

    /// Returns the argument that the command's usage calls `name`.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn required(&self, name: &'static str) -> Result<&'a str, CommandError> {
        self.get(name).ok_or_else(|| {
            let mut parameters = self.command.parameters.iter();
            let declared = parameters.find(|parameter| parameter.name == name);
            let unknown = Parameter::required(name);
            CommandError::missing(self.command, declared.unwrap_or(&unknown))
        })
    }

    /// Returns the value of the option `name`, if it is there.
    #[must_use]
    pub(crate) fn option(&self, name: &str) -> Option<&'a str> {
        let mut options = self.command.options.iter();
        let place = options.position(|option| option.name == name);
        debug_assert!(place.is_some(), "{} has no {name}", self.command.name);
        *self.options.get(place?)?
    }
}
