//! The hypervisor proper: the machine, VMs, VCPUs, exit handling, scheduler, suppression,
//! console.
//!
//! [`start::start`] is where the boot code hands over. Everything that is logic rather than
//! hardware is pure and tested on the host.
#![no_std]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod console;
mod cpu_loop;
mod cpuid;
pub mod emulate;
mod guest_boot;
pub mod guest_memory;
pub mod guest_paging;
mod ids;
mod machine;
mod manager;
#[cfg(all(test, feature = "model"))]
mod model;
mod msr;
mod numbers;
mod operator;
mod options;
mod scheduler;
mod search;
mod speculation;
mod start;
mod suppression;
mod sync;
mod task_switch;
#[cfg(test)]
mod test_ram;
#[cfg(test)]
mod test_text;
mod trace;
mod vcpu;
mod vm;
mod vm_config;
mod watch;

pub use machine::fatal::panicked;
pub use machine::image::{ImageLayout, Trampoline};
pub use machine::smp::start_application_processor;
pub use start::start;
