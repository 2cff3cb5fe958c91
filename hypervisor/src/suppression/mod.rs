//! Which process runs, and what its guest's clocks do about it.
//!
//! - [`address_space`]: what a CR3 value says about the process that runs;
//! - [`target`]: the address spaces that are suppressed;
//! - [`usage`]: the address spaces seen, and their shares of the CPU;
//! - [`policy`]: events in, rates of the virtual clock out.
//!
//! All of it is bookkeeping: the VCPUs tell what they see, and do what comes out.

pub mod address_space;
mod factors;
pub mod pace;
pub mod policy;
pub mod target;
pub mod usage;
pub mod watch;

#[cfg(test)]
mod simulation;

pub use factors::{Factor, FactorOutOfRange, Factors};
