//! What the operator can be told of the machine itself.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

/// Something about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    /// What it is about: a word.
    pub subject: Cow<'static, str>,
    /// How it is.
    pub state: String,
}

impl Fact {
    /// Makes a fact.
    #[must_use]
    pub(crate) fn new(subject: impl Into<Cow<'static, str>>, state: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            state: state.into(),
        }
    }
}

/// What is known of the machine.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    /// What stays as it was found.
    pub found: Vec<Fact>,
    /// Returns what changes, as it is now.
    pub now: fn() -> Vec<Fact>,
    /// Returns tarpit's last messages, in lines.
    pub log: fn() -> String,
}
