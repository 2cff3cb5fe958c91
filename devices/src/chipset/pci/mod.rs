//! PCI: a root bus behind a host bridge, with the functions that the machine was given.
//!
//! Sources: PCI Local Bus Specification 3.0; PCI Firmware Specification 3.0, 4 (memory-mapped
//! configuration).
//!
//! There is one bus. Device 0 is the host bridge, which has nothing to configure; each function
//! of ours is a device of its own from 1 on. Configuration space is reached by ports (mechanism
//! #1) and by memory (ECAM). Memory BARs are decoded in one window, the host bridge's; what
//! firmware would have done is done: they are placed and switched on. A machine that starts in
//! firmware leaves it to that ([`BusSetup`]).
//!
//! The INTA pin of device `n` is wired to the interrupt `n` modulo 4 of the four that the bus has
//! ([`Wire::Pci`](super::wires::Wire)).

pub mod config;
pub mod function;
mod host;
pub mod msix;

pub use function::{BarAccess, FunctionContext, Header, PciFunction, Work};
pub use host::{BusSetup, MAX_FUNCTIONS, PciHost, PendingWork, interrupt_of};
