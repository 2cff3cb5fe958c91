//! The hypervisor proper: the machine, VMs, VCPUs, exit handling, scheduler, suppression,
//! console.
//!
//! [`start::start`] is where the boot code hands over. Everything that is logic rather than
//! hardware is pure and tested on the host.
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod cpu_loop;
pub mod cpuid;
pub mod emulate;
pub mod guest_boot;
pub mod guest_memory;
pub mod guest_paging;
pub mod ids;
pub mod machine;
pub mod manager;
pub mod msr;
pub mod operator;
pub mod options;
pub mod scheduler;
pub mod search;
pub mod speculation;
pub mod start;
pub mod suppression;
pub mod task_switch;
#[cfg(test)]
mod test_ram;
pub mod trace;
pub mod vcpu;
pub mod vm;
pub mod vm_config;
