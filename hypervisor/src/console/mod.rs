//! The operator's terminal: one serial line for what is typed and for all guests' output.
//!
//! [`Console`] takes the bytes that come from the operator and from the guests, and writes
//! what the terminal is to show. It knows neither VMs nor commands: a guest's output is that of
//! a numbered channel, whose name it is told when it is to be shown, a line that has been entered is handed to the caller, and
//! what the caller answers with goes through an [`Answer`].
#![forbid(unsafe_code)]

mod answer;
mod line_editor;
mod mux;
mod output;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use line_editor::{Edited, LineEditor};
use mux::{Around, Mux};

pub(crate) use answer::{Answer, Format, Record, RequestId, Row};
pub(crate) use mux::ChannelNames;
pub(crate) use output::{Output, Text};

/// Ctrl-]: ends an attachment.
const DETACH: u8 = 0x1d;

/// The effect of a byte from the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing to do.
    None,
    /// A finished line: carry out [`Console::line`], then call [`Console::done`].
    Line,
    /// A word to complete, the last of [`Console::line`]: call [`Console::complete`].
    Complete,
    /// A byte for the guest whose channel the operator is attached to.
    Guest {
        /// The channel's number.
        channel: usize,
        /// The byte.
        byte: u8,
    },
}

/// The console. See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Console {
    mux: Mux,
    editor: LineEditor,
    /// Whether the prompt is on the terminal.
    prompting: bool,
}

impl Console {
    /// Makes a console with so many channels, numbered from 0, and without a prompt yet.
    #[must_use]
    pub(crate) fn new(channels: usize) -> Self {
        Self {
            mux: Mux::new(channels),
            editor: LineEditor::new(),
            prompting: false,
        }
    }

    /// Shows the prompt: the console is open.
    pub(crate) fn open(&mut self, out: &mut (impl Output + ?Sized)) {
        self.prompting = true;
        self.editor.show(out);
    }

    /// Takes a byte of the output of a guest with this name, at `now` microseconds of host time since boot. Does
    /// not allocate.
    pub(crate) fn guest_byte<O: Output + ?Sized>(
        &mut self,
        channel: usize,
        name: &str,
        byte: u8,
        now: u64,
        out: &mut O,
    ) {
        let (editor, prompting) = (&self.editor, self.prompting);
        let step_aside = |around, out: &mut O| step_aside(editor, prompting, around, out);
        self.mux
            .guest_byte(channel, name, byte, now, out, step_aside);
    }

    /// Shows guests' lines that are unfinished for a while at `now` microseconds. To be called
    /// a few times a second.
    pub(crate) fn flush_stale<O: Output + ?Sized>(
        &mut self,
        names: &dyn ChannelNames,
        now: u64,
        out: &mut O,
    ) {
        let (editor, prompting) = (&self.editor, self.prompting);
        self.mux.flush_stale(names, now, out, |around, out| {
            step_aside(editor, prompting, around, out);
        });
    }

    /// Writes a message of the hypervisor's own, whole lines, around the operator's line.
    pub(crate) fn message<O: Output + ?Sized>(&mut self, out: &mut O, write: impl FnOnce(&mut O)) {
        step_aside(&self.editor, self.prompting, Around::Before, out);
        write(out);
        step_aside(&self.editor, self.prompting, Around::After, out);
    }

    /// Takes a byte from the operator.
    pub(crate) fn operator_byte<O: Output + ?Sized>(
        &mut self,
        byte: u8,
        names: &dyn ChannelNames,
        out: &mut O,
    ) -> Input {
        if let Some(channel) = self.mux.attached() {
            if byte == DETACH {
                self.mux.detach(names, out);
                self.open(out);
                return Input::None;
            }
            return Input::Guest { channel, byte };
        }
        match self.editor.input(byte, out) {
            Edited::Open => Input::None,
            Edited::Complete => Input::Complete,
            Edited::Dropped => {
                self.open(out);
                Input::None
            }
            Edited::Entered => {
                self.prompting = false;
                Input::Line
            }
        }
    }

    /// Returns what the operator types, or has finished.
    #[must_use]
    pub(crate) fn line(&self) -> &str {
        self.editor.line()
    }

    /// Completes the last word of the line as far as all those of `candidates` agree that
    /// begin with it; if it is as far already, lists them.
    pub(crate) fn complete(
        &mut self,
        candidates: &[impl AsRef<str>],
        out: &mut (impl Output + ?Sized),
    ) {
        self.editor.complete(candidates, out);
    }

    /// Makes way for the next line: this one has been carried out and answered.
    pub(crate) fn done(&mut self, out: &mut (impl Output + ?Sized)) {
        self.editor.clear();
        if self.mux.attached().is_none() {
            self.open(out);
        }
    }

    /// Attaches the operator to a channel: what is typed goes to the guest, and only this
    /// guest's output is shown, byte by byte, until Ctrl-].
    pub(crate) fn attach(
        &mut self,
        channel: usize,
        names: &dyn ChannelNames,
        out: &mut (impl Output + ?Sized),
    ) {
        self.mux.attach(channel, names, out);
    }

    /// Ends an attachment to this channel, whose guest is no more.
    pub(crate) fn detach_from(
        &mut self,
        channel: usize,
        names: &dyn ChannelNames,
        out: &mut (impl Output + ?Sized),
    ) {
        if self.mux.attached() == Some(channel) {
            self.mux.detach(names, out);
            self.open(out);
        }
    }
}

/// Takes the operator's line off the terminal before others write, and puts it back.
fn step_aside(
    editor: &LineEditor,
    prompting: bool,
    around: Around,
    out: &mut (impl Output + ?Sized),
) {
    match around {
        _ if !prompting => {}
        Around::Before => editor.hide(out),
        Around::After => editor.show(out),
    }
}
