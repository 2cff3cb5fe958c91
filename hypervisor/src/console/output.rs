//! Where the console writes to.

use core::fmt;

/// The serial line, or what stands for it in tests.
pub trait Output {
    /// Writes `bytes` as they are.
    fn write(&mut self, bytes: &[u8]);
}

impl<F: FnMut(&[u8])> Output for F {
    fn write(&mut self, bytes: &[u8]) {
        self(bytes);
    }
}

/// Formats text to an [`Output`], with the line ends that terminals want.
pub struct Text<'a, O: ?Sized>(pub &'a mut O);

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
