//! A device for tests, which works as it is told.

use core::fmt;

use super::device::{DeviceError, Progress, VirtioDevice};
use super::queue::Queue;
use crate::guest_memory::GuestMemory;

/// A device with so many queues, on which it works by `work`.
pub(crate) struct Scripted<F> {
    queues: usize,
    work: F,
    has_input: fn(usize) -> bool,
}

impl<F> Scripted<F>
where
    F: FnMut(usize, &mut Queue, &dyn GuestMemory) -> Result<Progress, DeviceError> + Send,
{
    pub(crate) const fn new(queues: usize, work: F) -> Self {
        Self {
            queues,
            work,
            has_input: |_| false,
        }
    }

    /// Has it say of queues whether there is something to do for them.
    pub(crate) fn with_input(self, has_input: fn(usize) -> bool) -> Self {
        Self { has_input, ..self }
    }
}

impl<F> fmt::Debug for Scripted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl<F> VirtioDevice for Scripted<F>
where
    F: FnMut(usize, &mut Queue, &dyn GuestMemory) -> Result<Progress, DeviceError> + Send,
{
    fn name(&self) -> &'static str {
        "virtio-scripted"
    }

    fn device_type(&self) -> u16 {
        4
    }

    fn pci_class(&self) -> (u8, u8, u8) {
        (0, 0xff, 0)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        self.queues
    }

    fn has_input(&self, index: usize) -> bool {
        (self.has_input)(index)
    }

    fn work(
        &mut self,
        index: usize,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        (self.work)(index, queue, memory)
    }

    fn reset(&mut self) {}
}
