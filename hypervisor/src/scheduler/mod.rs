//! Which VCPU a physical CPU runs, and what it does when there is none.
//!
//! [`policy`] decides, on numbers alone. [`hub`] is where the CPUs meet: the policy behind a
//! lock, the VCPUs, and the interrupts that make a CPU look. [`cpu_loop`] is what each CPU
//! does all day: ask, run, say what came of it.

pub mod cpu_loop;
pub mod hub;
pub mod latency;
pub mod policy;
mod queue;

pub use cpu_loop::CpuLoop;
pub use hub::{Hub, VcpuCell};
pub use latency::Latency;
pub use policy::{Decision, PinError, Policy, Settings, VcpuRef};
