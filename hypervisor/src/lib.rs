//! The hypervisor proper.
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod emulate;
pub mod guest_memory;
pub mod guest_paging;
pub mod suppression;
#[cfg(test)]
mod test_ram;
