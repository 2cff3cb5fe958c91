//! The operator's terminal on a serial line, which all CPUs write to.

use alloc::collections::VecDeque;
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

    /// Returns whether some of what was written waits.
    fn has_backlog(&self) -> bool {
        self.sent() < self.written()
    }
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

/// The bytes that may wait for the line before more of an answer is given to it: a tenth of a second's.
pub(super) const BACKLOG: u64 = 1024;

/// The part of a command's answer that the line has not been given yet. It is given whole lines, a few at a time:
/// guests write between them from other CPUs, and run between them on this one.
#[derive(Default)]
pub(super) struct Unshown(VecDeque<u8>);

impl Unshown {
    /// Forgets it.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Shows the next line of it at `terminal`, unless that is busy; if the answer `is_whole`, what follows the
    /// last line end is a line, too. Returns whether there was anything to show now.
    pub(super) fn show_line(&mut self, terminal: &Terminal, is_whole: bool) -> bool {
        if LineOutput(terminal.line()).backlog() >= BACKLOG {
            return false;
        }
        let end = self.0.iter().position(|&byte| byte == b'\n');
        let length = match end {
            Some(end) => end + 1,
            None if is_whole => self.0.len(),
            None => 0,
        };
        let line: Vec<u8> = self.0.drain(..length).collect();
        if length > 0 {
            terminal.with(|_, out| out.write(&line));
        }
        length > 0
    }

    /// Returns whether all has been shown.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Shows all that is left at `terminal`, however long it takes.
    pub(super) fn show_all(&mut self, terminal: &Terminal) {
        let rest: Vec<u8> = self.0.drain(..).collect();
        terminal.with(|_, out| out.write(&rest));
    }
}

/// The output of a command's answer, which is shown later.
pub(super) struct AnswerOutput<'a> {
    terminal: &'a Terminal,
    unshown: &'a mut Unshown,
}

impl<'a> AnswerOutput<'a> {
    pub(super) const fn new(terminal: &'a Terminal, unshown: &'a mut Unshown) -> Self {
        Self { terminal, unshown }
    }
}

impl Output for AnswerOutput<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.unshown.0.extend(bytes);
    }

    fn backlog(&self) -> u64 {
        LineOutput(self.terminal.line()).backlog() + self.unshown.0.len() as u64
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
