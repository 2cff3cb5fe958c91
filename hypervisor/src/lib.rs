//! The hypervisor proper.
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod cpuid;
pub mod guest_boot;
pub mod guest_memory;
pub mod msr;
pub mod vm_config;
