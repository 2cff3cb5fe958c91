//! Access to a guest's physical memory, which devices share with page walks, loaders and the emulator.
#![forbid(unsafe_code)]

pub use devices::guest_memory::{GuestMemory, NotRam};
