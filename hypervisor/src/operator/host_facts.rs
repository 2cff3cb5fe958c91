//! What the operator can be told of the machine itself.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Serialize;

/// A fact about the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fact {
    /// The subject of the fact: a word.
    pub subject: Cow<'static, str>,
    /// The state of the subject.
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

/// The known facts about the machine.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    /// The facts that stay as they were found.
    pub found: Vec<Fact>,
    /// The function that returns the facts that change, as they are now.
    pub now: fn() -> Vec<Fact>,
    /// The function that returns tarpit's last messages, in lines.
    pub log: fn() -> String,
    /// The function that returns the messages since a position, which is 0 at first, and the position
    /// of what comes next.
    pub log_since: fn(u64) -> (String, u64),
}
