//! Virtual I/O devices (OASIS Virtual I/O Device specification, version 1.2).
//!
//! A device is a file here that implements [`device::VirtioDevice`]: what it is, and how it works
//! on its queues. [`pci::VirtioPci`] makes a function on the PCI bus of it, whose work is done
//! apart from the bus (`worker`). Queues are
//! [`queue::Queue`]s, and all that comes out of them [`chain::Chain`]s; nothing else of the driver
//! is trusted, and nothing of it at all.

pub mod block;
pub mod chain;
pub mod console;
pub mod device;
pub mod disk;
#[cfg(test)]
pub(crate) mod driver;
#[cfg(test)]
pub(crate) mod hostile;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod scripted;
mod worker;
