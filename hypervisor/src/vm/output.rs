//! Where a guest's serial output goes.

use super::VmId;
use crate::operator;

/// The far end of a guest's serial line.
#[derive(Debug)]
pub struct GuestOutput {
    vm: VmId,
}

impl GuestOutput {
    /// The line of `vm`.
    #[must_use]
    pub const fn new(vm: VmId) -> Self {
        Self { vm }
    }

    /// Takes a byte that the guest has sent.
    pub fn put(&self, byte: u8) {
        operator::guest_byte(self.vm.0, byte);
    }
}
