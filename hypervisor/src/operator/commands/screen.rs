//! `screen`: shows the text screen of a VM.

use alloc::string::String;
use core::fmt;

use devices::chipset::vga_text::{self, COLUMNS};
use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Record;

pub(super) static COMMAND: Command = Command {
    name: "screen",
    usage: "screen VM",
    summary: "show what is on a VM's VGA text screen",
    details: "Only what is in text mode is shown; systems that use the serial line leave it blank.\n\
              Blank lines at the end are left out, unless the cursor is there or below.",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm(arguments)?;
    let screen = vm.board.lock().chipset.text_screen();
    let rows = vga_text::read_rows(screen, &vm.ram).map_err(|_| no_screen())?;
    let cursor = screen
        .cursor
        .map(|position| position.wrapping_sub(screen.start))
        .map(|place| (usize::from(place / COLUMNS), place % COLUMNS));
    let written = rows.iter().rposition(|row| !row.is_empty());
    let last = written.max(cursor.map(|(row, _)| row));
    let lines = rows.iter().zip(0..).take(last.map_or(0, |last| last + 1));
    let lines = lines.map(|(text, row)| ScreenLine {
        vm: &vm.name,
        row,
        text,
        cursor: cursor.filter(|place| place.0 == row).map(|place| place.1),
    });
    context.answer.records(lines);
    Ok(Outcome::Done)
}

/// Makes the error of a VM without memory where the screen is: it has that, however small it is.
fn no_screen() -> CommandError {
    CommandError::new("no_screen", "the VM has no memory where its screen is")
}

/// A line on the screen.
#[derive(Clone, Copy, Debug, Serialize)]
struct ScreenLine<'a> {
    /// The VM's name.
    vm: &'a str,
    /// The row, from 0 at the top.
    row: usize,
    /// The text of the row, without spaces at the end.
    text: &'a String,
    /// The column of the cursor, if the cursor is in this row and on.
    cursor: Option<u16>,
}

impl Record for ScreenLine<'_> {
    const HEADING: &'static str = "";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}
