//! The text screen of a VGA, on which tarpit's messages are seen even without a serial line: 80 columns and
//! 25 rows at B8000H, as a BIOS leaves it.

use core::fmt::{self, Write};

use spin::Mutex;

const COLUMNS: usize = 80;
const ROWS: usize = 25;
/// The address of the cells: a character and its colors each.
const CELLS: u64 = 0xb_8000;
/// Light gray on black, as the BIOS writes.
const COLORS: u16 = 0x07 << 8;
const BLANK: u16 = COLORS | b' ' as u16;

/// The content of the screen.
#[derive(Debug)]
struct Contents {
    cells: [[u16; COLUMNS]; ROWS],
    column: usize,
    /// Whether there is a screen to show it.
    shown: bool,
}

static SCREEN: Mutex<Contents> = Mutex::new(Contents::BLANK);

impl Contents {
    const BLANK: Self = Self {
        cells: [[BLANK; COLUMNS]; ROWS],
        column: 0,
        shown: false,
    };

    /// Puts a byte into the last row; when that is full all move up.
    fn put(&mut self, byte: u8) {
        if byte == b'\n' || self.column == COLUMNS {
            self.cells.rotate_left(1);
            self.cells[ROWS - 1] = [BLANK; COLUMNS];
            self.column = 0;
        }
        if byte != b'\n' {
            let character = match byte {
                b' '..=b'~' => byte,
                _ => b'?',
            };
            self.cells[ROWS - 1][self.column] = COLORS | u16::from(character);
            self.column += 1;
        }
    }

    fn show(&self) {
        if !self.shown {
            return;
        }
        // Four cells at a time: each write goes over the bus.
        for (index, cells) in self.cells.as_flattened().chunks_exact(4).enumerate() {
            let four = (0..)
                .zip(cells)
                .map(|(n, cell)| u64::from(*cell) << (16 * n));
            let at = CELLS as *mut u64;
            // SAFETY: `init` has found a text screen there, which is mapped one to one and nobody else's.
            unsafe { at.add(index).write_volatile(four.sum()) };
        }
    }
}

impl Write for Contents {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.put(byte));
        Ok(())
    }
}

/// The data that a BIOS keeps in its data area about the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BiosScreen {
    mode: u8,
    columns: u16,
    /// The port of the CRTC's index register.
    crtc: u16,
}

impl BiosScreen {
    /// Returns whether it is the color text screen of 80 columns.
    const fn is_text(self) -> bool {
        matches!(self.mode, 2 | 3) && self.columns as usize == COLUMNS && self.crtc == 0x3d4
    }
}

/// Finds out whether there is a text screen, to show messages from now on. Under UEFI there is none.
///
/// # Safety
/// The first page of memory and the screen are mapped one to one, and a BIOS's data area is as the BIOS
/// has left it.
pub(crate) unsafe fn init() {
    // SAFETY: by the caller; the fields are aligned but for none.
    let bios = unsafe {
        BiosScreen {
            mode: (0x449 as *const u8).read_volatile(),
            columns: (0x44a as *const u16).read_volatile(),
            crtc: (0x463 as *const u16).read_unaligned(),
        }
    };
    SCREEN.lock().shown = bios.is_text();
}

/// Writes text at the bottom. Dropped if the screen is being written to elsewhere.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    if let Some(mut screen) = SCREEN.try_lock() {
        // It takes everything; a failing Display loses just its own text.
        let _ = screen.write_fmt(text);
        screen.show();
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    fn row(screen: &Contents, row: usize) -> String {
        let cells = screen.cells[row].iter();
        let text: String = cells.map(|cell| (*cell as u8) as char).collect();
        text.trim_end().into()
    }

    #[test]
    fn the_last_messages_are_at_the_bottom() {
        let mut screen = Contents::BLANK;
        for number in 0..30 {
            write!(screen, "\nmessage {number}").unwrap();
        }
        assert_eq!(row(&screen, 24), "message 29");
        assert_eq!(row(&screen, 0), "message 5");
    }

    #[test]
    fn a_long_line_goes_on_in_the_next_row() {
        let mut screen = Contents::BLANK;
        let long = "x".repeat(80) + "y";
        screen.write_str(&long).unwrap();
        assert_eq!(row(&screen, 23), "x".repeat(80));
        assert_eq!(row(&screen, 24), "y");
    }

    #[test]
    fn what_is_no_plain_character_cannot_spoil_the_screen() {
        let mut screen = Contents::BLANK;
        screen.write_str("a\u{1b}[2J\u{e9}").unwrap();
        assert_eq!(row(&screen, 24), "a?[2J??");
    }

    #[test]
    fn only_the_text_screen_of_80_columns_is_written_to() {
        let text = BiosScreen {
            mode: 3,
            columns: 80,
            crtc: 0x3d4,
        };
        assert!(text.is_text());
        for other in [
            BiosScreen { mode: 0x12, ..text },
            BiosScreen {
                columns: 40,
                ..text
            },
            BiosScreen {
                crtc: 0x3b4,
                ..text
            },
            BiosScreen {
                mode: 0,
                columns: 0,
                crtc: 0,
            },
        ] {
            assert!(!other.is_text(), "{other:?}");
        }
    }
}
