//! The operator: commands on the VMs, and who carries them out.
//!
//! A command is one file in [`commands`] and an entry of the table there: its name, usage, help
//! and arguments, and what it does. All else follows from the table: [`dispatch`] parses a line
//! and carries it out, [`completion`] knows what may be typed, `help` explains, and wrong words get
//! a suggestion. Commands know nothing of where they are typed: they get a
//! [`Context`](context::Context) with the VMs, the time, and the
//! [`Answer`](crate::console::Answer) to write, as a table or as JSON.
//!
//! A [`Session`] is the operator at a [`Terminal`] on a serial line: it feeds the dispatcher with
//! lines, and lets commands that take their time ([`Job`](command::Job)) go on in steps while
//! guests run. Guests' serial output comes to the terminal by [`GuestOutput`].
//!
//! Programs come by the [`door`], if it is open: to the same commands, by the same dispatcher. What
//! happens is told to both as [`events`].
#![forbid(unsafe_code)]

mod arguments;
mod clock;
mod command;
mod commands;
mod completion;
mod context;
mod dispatch;
mod door;
mod error;
mod events;
mod family_tree;
mod guest_output;
mod host_facts;
mod host_serial;
mod inspect;
mod listing;
pub(crate) mod notices;
mod records;
mod session;
mod suggest;
mod terminal;
mod values;
mod watcher;
mod words;

#[cfg(test)]
mod tests;

pub(crate) use clock::HostClock;
pub(crate) use door::Door;
pub(crate) use guest_output::GuestOutput;
pub(crate) use host_facts::{Fact, HostFacts};
pub(crate) use host_serial::HostSerial;
pub(crate) use session::Session;
pub(crate) use terminal::Terminal;
