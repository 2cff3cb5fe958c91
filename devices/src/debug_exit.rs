//! The debug-exit port: how a test kernel ends its VM and says with what result.
//!
//! Source: QEMU's `isa-debug-exit` device, which test kernels expect at port 0xF4.

/// The debug-exit device. Stateless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugExit;

impl DebugExit {
    /// The port reads as zero, whatever the width: a kernel can tell from this that there is
    /// something at the port.
    #[must_use]
    pub const fn read(self) -> u32 {
        0
    }

    /// The code that a write of `value` ends the VM with: the value itself. (Deriving a
    /// process exit status from it, QEMU's being `value << 1 | 1`, is up to the runner.)
    #[must_use]
    pub const fn write(self, value: u32) -> u32 {
        value
    }
}
