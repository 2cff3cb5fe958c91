//! The operator's terminal on a serial line, which all CPUs write to.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use spin::Mutex;

use super::clock::HostClock;
use crate::console::{ChannelNames, Console, Input, Output, Text};
use crate::ids::VmId;
use crate::manager::VmManager;

/// A serial line of the machine, or what stands for it in tests.
pub(crate) trait SerialLine: Send + Sync {
    /// Writes `bytes` as they are; what the line does not take at once waits.
    fn write(&self, bytes: &[u8]);

    /// Returns the next byte that has come over the line, if there is one.
    fn read(&self) -> Option<u8>;

    /// Returns the number of bytes that may wait; [`SerialLine::write`] of more takes as long as
    /// the line.
    fn capacity(&self) -> u64;

    /// Returns the number of bytes that have been written since the start.
    fn written(&self) -> u64;

    /// Returns the number of them that the line has taken.
    fn sent(&self) -> u64;

    /// Gives the line what it takes now of what waits.
    fn poll(&self);
}

/// The output of the console: a serial line.
struct LineOutput<'a>(&'a dyn SerialLine);

impl Output for LineOutput<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn backlog(&self) -> u64 {
        self.0.written().saturating_sub(self.0.sent())
    }
}

/// The output of a command's answer: whole lines on a terminal, between those of guests, which write from
/// other CPUs meanwhile.
pub(super) struct AnswerOutput<'a> {
    terminal: &'a Terminal,
    /// The beginning of a line, or all of it.
    line: Vec<u8>,
}

impl<'a> AnswerOutput<'a> {
    pub(super) const fn new(terminal: &'a Terminal) -> Self {
        Self {
            terminal,
            line: Vec::new(),
        }
    }
}

impl Output for AnswerOutput<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        if bytes.ends_with(b"\n") {
            self.terminal.with(|_, out| out.write(&self.line));
            self.line.clear();
        }
    }

    fn backlog(&self) -> u64 {
        LineOutput(self.terminal.line()).backlog()
    }
}

impl Drop for AnswerOutput<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.terminal.with(|_, out| out.write(&self.line));
        }
    }
}

/// The channels are those of the VMs, and have their numbers.
impl ChannelNames for VmManager {
    fn channel_name(&self, channel: usize) -> &str {
        self.name(VmId(channel)).unwrap_or_default()
    }
}

/// A [`Console`] on a serial line, with a channel for each VM. Guests' output comes here from any VM exit, byte by byte.
pub(crate) struct Terminal {
    line: Arc<dyn SerialLine>,
    clock: HostClock,
    console: Mutex<Console>,
}

impl Terminal {
    /// Makes a terminal on `line` for so many VMs, with time stamps by `clock`.
    #[must_use]
    pub(crate) fn new(line: Arc<dyn SerialLine>, clock: HostClock, vms: usize) -> Self {
        Self {
            line,
            clock,
            console: Mutex::new(Console::new(vms)),
        }
    }

    /// Returns the line.
    #[must_use]
    pub(crate) fn line(&self) -> &dyn SerialLine {
        &*self.line
    }

    /// Returns the clock of the time stamps.
    #[must_use]
    pub(crate) const fn clock(&self) -> &HostClock {
        &self.clock
    }

    /// Shows a byte that the guest of `vm`, which has this name, has written.
    pub(crate) fn guest_byte(&self, vm: VmId, name: &str, byte: u8) {
        let now = self.now();
        self.with(|console, out| console.guest_byte(vm.0, name, byte, now, out));
    }

    /// Shows a message of tarpit's own: whole lines.
    pub(crate) fn message(&self, text: fmt::Arguments<'_>) {
        self.with(|console, out| {
            console.message(out, |out| {
                // The line takes everything.
                let _ = Text(out).write_fmt(text);
            });
        });
    }

    /// Ends an attachment to `vm`, whose guest is no more.
    pub(crate) fn detach_from(&self, vm: VmId, vms: &VmManager) {
        self.with(|console, out| console.detach_from(vm.0, vms, out));
    }

    /// Shows the prompt.
    pub(crate) fn open(&self) {
        self.with(|console, out| console.open(out));
    }

    /// Attaches the operator to the guest of `vm`.
    pub(super) fn attach(&self, vm: VmId, vms: &VmManager) {
        self.with(|console, out| console.attach(vm.0, vms, out));
    }

    /// Takes a byte from the operator.
    pub(super) fn operator_byte(&self, byte: u8, vms: &VmManager) -> Input {
        self.with(|console, out| console.operator_byte(byte, vms, out))
    }

    /// Returns what the operator types, or has finished.
    pub(super) fn text(&self) -> String {
        self.console.lock().line().into()
    }

    /// Completes the last word of the line.
    pub(super) fn complete(&self, candidates: &[String]) {
        self.with(|console, out| console.complete(candidates, out));
    }

    /// Makes way for the next line: this one has been carried out and answered.
    pub(super) fn done(&self) {
        self.with(|console, out| console.done(out));
    }

    /// Shows guests' lines that are unfinished for a while, and keeps the line moving.
    pub(super) fn poll(&self, vms: &VmManager) {
        let now = self.now();
        self.with(|console, out| console.flush_stale(vms, now, out));
        self.line.poll();
    }

    /// Returns the microseconds since the console opened.
    fn now(&self) -> u64 {
        self.clock.micros(self.clock.now())
    }

    fn with<R>(&self, act: impl FnOnce(&mut Console, &mut LineOutput<'_>) -> R) -> R {
        act(&mut self.console.lock(), &mut LineOutput(self.line()))
    }
}
