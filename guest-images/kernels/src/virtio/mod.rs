//! Virtio devices over PCI, as a driver sees them. Virtual I/O Device (VIRTIO) Version 1.2, whose sections the
//! comments name.

pub mod device;
pub mod queue;

pub use device::Device;
pub use queue::{Buffer, Queue};
