//! Where the console writes to.

use alloc::vec::Vec;
use core::fmt;

/// A serial line, or what stands for it in tests.
pub(crate) trait Output {
    /// Writes `bytes` as they are.
    fn write(&mut self, bytes: &[u8]);

    /// Returns the number of bytes that were written and are still on their way.
    fn backlog(&self) -> u64 {
        0
    }
}

impl Output for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A formatter of text to an [`Output`], with the line ends that terminals want.
pub(crate) struct Text<'a, O: ?Sized>(pub &'a mut O);

impl<O: Output + ?Sized> fmt::Write for Text<'_, O> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                self.0.write(b"\r\n");
            }
            if !line.is_empty() {
                self.0.write(line.as_bytes());
            }
        }
        Ok(())
    }
}
