//! The hypervisor proper.
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod fatal;
pub mod guest_memory;
pub mod machine;
pub mod options;
pub mod run;
pub mod start;

pub use machine::Machine;
pub use run::run;
