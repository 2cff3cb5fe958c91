//! What a VM needs of the host that runs it, given to it when it is made.
#![forbid(unsafe_code)]

use crate::ids::VcpuId;

/// The means to bring VCPUs to look at their [requests](super::requests).
pub(crate) trait Waker: Send + Sync {
    /// Makes physical CPU `cpu` leave its guest or its sleep. Does nothing on that CPU itself.
    fn kick(&self, cpu: u32);

    /// Lets a VCPU that sleeps be scheduled. Does nothing if it does not sleep.
    fn wake(&self, vcpu: VcpuId);
}

/// The far end of a guest's serial line.
pub(crate) trait SerialOutput: Send + Sync {
    /// Takes a byte that the guest of the VM with this name has sent.
    fn write(&self, name: &str, byte: u8);

    /// Returns whether the guest has written more than there is room for: the VCPU that writes
    /// is to wait until there [is some](SerialOutput::has_room).
    fn is_full(&self) -> bool;

    /// Returns whether there is room again.
    fn has_room(&self) -> bool;

    /// Returns how long one who waits does so before it looks again, in host ticks.
    fn delay(&self) -> u64;
}
