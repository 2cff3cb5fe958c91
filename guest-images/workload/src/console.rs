//! Whole lines on the console.

use core::fmt::{self, Write};

use crate::system;

/// One line of output, put together in memory and written in one piece: what the kernel and other
/// processes print does not come in between.
struct Line {
    bytes: [u8; Line::CAPACITY],
    length: usize,
}

impl Line {
    /// Room for the counts of all processes there can be.
    const CAPACITY: usize = 1536;
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length.checked_add(text.len()).ok_or(fmt::Error)?;
        self.bytes
            .get_mut(self.length..end)
            .ok_or(fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// Prints a line that begins with `workload: `. What does not fit is cut off.
pub fn print_line(text: fmt::Arguments) {
    let mut line = Line {
        bytes: [0; Line::CAPACITY],
        length: 0,
    };
    // An overlong line is printed as far as it goes; `end` below always fits after a failure
    // because `write_str` takes whole pieces or nothing.
    let _ = write!(line, "workload: {text}");
    let end = line.length.min(Line::CAPACITY - 1);
    line.bytes[end] = b'\n';
    // There is nowhere to report that the console cannot be written to.
    let _ = system::write_all(&line.bytes[..=end]);
}

/// `println!` for the console, with the prefix of all the workload's lines.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::console::print_line(format_args!($($text)*))
    };
}
