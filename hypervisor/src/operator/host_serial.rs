//! The machine's own serial lines.

use super::terminal::SerialLine;
use crate::machine::serial::{self, detector};

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

/// The serial line that tarpit has for detectors: see [`detector`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct DetectorSerial;

impl SerialLine for DetectorSerial {
    fn write(&self, bytes: &[u8]) {
        detector::write(bytes);
    }

    fn read(&self) -> Option<u8> {
        detector::try_read_byte()
    }

    fn capacity(&self) -> u64 {
        detector::capacity()
    }

    fn written(&self) -> u64 {
        detector::written()
    }

    fn sent(&self) -> u64 {
        detector::sent()
    }

    fn poll(&self) {
        detector::poll();
    }
}
