//! The operator's console: one serial line for commands and for all guests' consoles.
//!
//! [`Console`] takes the bytes that come from the operator and from the guests, and writes
//! what the terminal is to show. It knows no VM beyond its name: a finished line is parsed by
//! [`parse`], carried out by the caller, and answered with [`answer`] or [`error`].
//!
//! ```
//! use hypervisor::console::{Command, Console, Input, parse};
//!
//! let mut console = Console::new();
//! let web = console.add_vm("web");
//! let mut screen = Vec::new();
//! let mut out = |bytes: &[u8]| screen.extend_from_slice(bytes);
//! for byte in *b"ps web\r" {
//!     if console.operator_byte(byte, &mut out) == Input::Line {
//!         let request = parse(console.line()).unwrap().unwrap();
//!         assert_eq!(request.command, Command::Ps { vm: "web" });
//!         console.done(&mut out);
//!     }
//! }
//! ```

mod command;
mod completion;
mod help;
mod line_editor;
mod mux;
mod output;
mod pattern;
mod record;
mod suggest;
mod words;

#[cfg(test)]
mod session;

pub use command::{Command, ParseError, Request, TraceAction, UnknownVm, parse, wants_json};
pub use help::{Argument, Overview, Topic};
pub use output::{Output, Text};
pub use pattern::{Pattern, PatternError};
pub use record::{
    Address, Aliases, Cr3, DoneLine, EventLine, MatchLine, ProcessLine, Record, StatsLine,
    TargetLine, TraceLine, VmLine, answer, error, heading, line,
};

use completion::Completion;
use line_editor::{Edited, LineEditor};
use mux::{Around, Mux};

/// Ctrl-]: ends an attachment.
const DETACH: u8 = 0x1d;

/// What a byte from the operator has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing to do.
    None,
    /// A line is finished: carry out [`Console::line`], then call [`Console::done`].
    Line,
    /// The byte is for the console of this VM.
    Guest {
        /// The VM's number.
        vm: usize,
        /// The byte.
        byte: u8,
    },
}

/// The console. See the [module documentation](self).
#[derive(Debug, Default)]
pub struct Console {
    mux: Mux,
    editor: LineEditor,
    /// Whether the prompt is on the terminal.
    prompting: bool,
}

impl Console {
    /// A console without VMs, and without a prompt yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            mux: Mux::new(),
            editor: LineEditor::new(),
            prompting: false,
        }
    }

    /// Adds a VM; the answer is its number.
    pub fn add_vm(&mut self, name: &str) -> usize {
        self.mux.add_vm(name)
    }

    /// The names of the VMs, in the order of their numbers.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.mux.names()
    }

    /// The number of the VM that a command names.
    ///
    /// # Errors
    /// If there is none of that name: an error to be shown.
    pub fn vm<'a>(
        &'a self,
        name: &'a str,
    ) -> Result<usize, UnknownVm<'a, impl Iterator<Item = &'a str> + Clone>> {
        self.mux.vm(name).ok_or(UnknownVm {
            name,
            names: self.names(),
        })
    }

    /// Shows the prompt: the console is open.
    pub fn open(&mut self, out: &mut (impl Output + ?Sized)) {
        self.prompting = true;
        self.editor.show(out);
    }

    /// Takes a byte that VM `vm` has written, at `now` microseconds of host time since boot.
    /// Does not allocate.
    pub fn guest_byte<O: Output + ?Sized>(&mut self, vm: usize, byte: u8, now: u64, out: &mut O) {
        let (editor, prompting) = (&self.editor, self.prompting);
        self.mux.guest_byte(vm, byte, now, out, |around, out| {
            step_aside(editor, prompting, around, out);
        });
    }

    /// Shows guests' lines that are unfinished for a while at `now` microseconds. To be called
    /// a few times a second.
    pub fn flush_stale<O: Output + ?Sized>(&mut self, now: u64, out: &mut O) {
        let (editor, prompting) = (&self.editor, self.prompting);
        self.mux.flush_stale(now, out, |around, out| {
            step_aside(editor, prompting, around, out);
        });
    }

    /// Writes a message of the hypervisor's own, whole lines, around the operator's line.
    pub fn message<O: Output + ?Sized>(&mut self, out: &mut O, write: impl FnOnce(&mut O)) {
        step_aside(&self.editor, self.prompting, Around::Before, out);
        write(out);
        step_aside(&self.editor, self.prompting, Around::After, out);
    }

    /// Takes a byte from the operator.
    pub fn operator_byte<O: Output + ?Sized>(&mut self, byte: u8, out: &mut O) -> Input {
        if let Some(vm) = self.mux.attached() {
            if byte == DETACH {
                self.mux.detach(out);
                self.open(out);
                return Input::None;
            }
            return Input::Guest { vm, byte };
        }
        let mux = &self.mux;
        match self.editor.input(byte, out, &Completion(|| mux.names())) {
            Edited::Open => Input::None,
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

    /// The line that the operator has finished.
    #[must_use]
    pub fn line(&self) -> &str {
        self.editor.line()
    }

    /// The line has been carried out and answered: makes way for the next one.
    pub fn done(&mut self, out: &mut (impl Output + ?Sized)) {
        self.editor.clear();
        if self.mux.attached().is_none() {
            self.open(out);
        }
    }

    /// Attaches the operator to VM `vm`: carries out `attach`.
    pub fn attach(&mut self, vm: usize, out: &mut (impl Output + ?Sized)) {
        self.mux.attach(vm, out);
    }

    /// Ends an attachment to VM `vm`, which is no more.
    pub fn detach_from(&mut self, vm: usize, out: &mut (impl Output + ?Sized)) {
        if self.mux.attached() == Some(vm) {
            self.mux.detach(out);
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
