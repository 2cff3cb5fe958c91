//! Lines of text for tests: of words that a parser knows, of numbers, and of anything else.

use core::fmt::Write;
use std::string::String;

/// A piece of a line: its kind, and what it is made of.
pub(crate) type Piece = (u8, u64);

/// Makes a line of pieces one behind the other, most of them of `words`: spaces are words as well.
pub(crate) fn line(pieces: &[Piece], words: &[&str]) -> String {
    let mut line = String::new();
    for &(kind, value) in pieces {
        let _ = match kind {
            0..16 => write!(line, "{value}"),
            16..24 => write!(line, "{}", value & 0xff),
            24..32 => write!(line, "{value:#x}"),
            32..36 => write!(line, "{value:x}"),
            36..40 => write!(line, "{}", char::from_u32(value as u32).unwrap_or('\u{9b}')),
            40..48 => write!(line, "{}", char::from(value as u8 & 0x7f)),
            48..96 => write!(line, " "),
            _ => {
                let index = usize::from(kind - 96) + (value as usize & 0xff) * 160;
                write!(line, "{}", words[index % words.len()])
            }
        };
    }
    line
}
