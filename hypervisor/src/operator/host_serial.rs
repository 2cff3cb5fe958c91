//! The machine's own serial lines.

use super::terminal::SerialLine;
use crate::machine::serial::Line;

/// A serial line that tarpit has: see [`Line`].
#[derive(Clone, Copy)]
pub(crate) struct HostSerial(pub &'static Line);

impl SerialLine for HostSerial {
    fn write(&self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn read(&self) -> Option<u8> {
        self.0.try_read_byte()
    }

    fn capacity(&self) -> u64 {
        self.0.capacity()
    }

    fn written(&self) -> u64 {
        self.0.written()
    }

    fn sent(&self) -> u64 {
        self.0.sent()
    }

    fn poll(&self) {
        self.0.poll();
    }
}
