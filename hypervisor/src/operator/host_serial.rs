//! The machine's own serial line.

use super::terminal::SerialLine;
use crate::machine::serial;

/// The serial line that tarpit has for its console: see [`serial`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostSerial;

impl SerialLine for HostSerial {
    fn write(&self, bytes: &[u8]) {
        serial::write(bytes);
    }

    fn read(&self) -> Option<u8> {
        serial::try_read_byte()
    }

    fn capacity(&self) -> u64 {
        serial::RING_SIZE as u64
    }

    fn written(&self) -> u64 {
        serial::written()
    }

    fn sent(&self) -> u64 {
        serial::sent()
    }

    fn poll(&self) {
        serial::poll();
    }
}
