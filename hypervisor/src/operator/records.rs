//! What several commands' answers have in common.

use alloc::string::{String, ToString};
use core::fmt::{self, Write};

use serde::{Serialize, Serializer};

use crate::console::Record;
use crate::suppression::address_space::Root;
use crate::suppression::order::Order;

/// A root, in JSON as the hexadecimal number that the console shows and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cr3(pub Root);

impl Serialize for Cr3 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A number of 64 bits, in JSON as a string of hexadecimal digits: its own are often not exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The other roots of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aliases<'a>(pub &'a [Root]);

impl Serialize for Aliases<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|root| Cr3(*root)))
    }
}

impl fmt::Display for Aliases<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for (index, root) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_char(',')?;
            }
            write!(f, "{root}")?;
        }
        Ok(())
    }
}

/// A target: the answer to `suppress` and `release`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct TargetLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// The root that the operator named.
    pub cr3: Cr3,
    /// Its other roots, as far as they are known.
    pub aliases: Aliases<'a>,
    /// The divisor of timer intervals.
    pub interval: u32,
    /// The factor by which time is multiplied.
    pub clock: u32,
    /// The policy by which it is suppressed.
    pub policy: &'static str,
    /// The multiple of real time at which its guest's clock can run at most, if that is much less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slower_clock: Option<u64>,
}

impl<'a> TargetLine<'a> {
    /// Makes the line of a target with these roots, of which the operator named the first;
    /// `None` if there are none.
    #[must_use]
    pub(crate) fn new(vm: &'a str, roots: &'a [Root], order: &Order) -> Option<Self> {
        let (first, aliases) = roots.split_first()?;
        Some(Self {
            vm,
            cr3: Cr3(*first),
            aliases: Aliases(aliases),
            interval: order.factors.interval.get(),
            clock: order.factors.clock.get(),
            policy: order.policy.name(),
            slower_clock: None,
        })
    }
}

impl Record for TargetLine<'_> {
    const HEADING: &'static str =
        "VM               CR3            INTERVAL     CLOCK  POLICY   ALIASES";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cr3 = self.cr3.0.to_string();
        write!(
            f,
            "{:<16} {:<14} 1/{:<6} {:>7}x  {:<8} {}",
            self.vm, cr3, self.interval, self.clock, self.policy, self.aliases
        )
    }
}

/// A message of tarpit's.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LogLine {
    /// The message, as it was shown.
    pub message: String,
}

impl Record for LogLine {
    const HEADING: &'static str = "";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The answer of a command that did what it says, without more to tell.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct DoneLine<'a> {
    /// The effect of the command, in words.
    pub done: &'a str,
}

impl Record for DoneLine<'_> {
    const HEADING: &'static str = "";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.done)
    }
}
