//! The debug-exit port: how a test kernel ends its VM and says with what result.
//!
//! Source: QEMU's `isa-debug-exit` device, which test kernels expect at port 0xF4.

use super::PowerRequest;
use super::bus::{Access, Context, Device};

/// The debug-exit device. Stateless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugExit;

impl Device for DebugExit {
    /// Reads as zero, whatever the width: a kernel can tell from this that there
    /// is something at the port.
    fn read(&mut self, _: Access, _: &mut Context<'_>) -> u64 {
        0
    }

    /// Ends the VM with the value itself as its code. (Deriving a process exit status from it,
    /// QEMU's being `value << 1 | 1`, is up to the runner.)
    fn write(&mut self, _: Access, value: u64, cx: &mut Context<'_>) {
        cx.host.power(PowerRequest::DebugExit(value as u32));
    }

    fn reset(&mut self, _: &mut Context<'_>) {}
}
