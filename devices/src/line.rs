//! Interrupt lines: how a device tells an interrupt controller about its output.

/// One interrupt wire from a device to whatever it is connected to.
///
/// Levels, not edges, are the currency: an edge-triggered input detects the edge
/// itself, so setting a level twice is harmless.
pub trait Line {
    /// Drives the wire to `asserted`.
    fn set_level(&mut self, asserted: bool);

    /// Drives the wire high, then low: one edge for an edge-triggered input.
    fn pulse(&mut self) {
        self.set_level(true);
        self.set_level(false);
    }
}

impl<F: FnMut(bool)> Line for F {
    fn set_level(&mut self, asserted: bool) {
        self(asserted);
    }
}
