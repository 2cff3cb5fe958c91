//! The physical machine that tarpit runs on: everything that touches host hardware, apart
//! from VMX.

pub mod acpi;
pub mod boot_info;
pub mod cpu;
pub mod heap;
pub mod host_timer;
pub mod image;
pub mod local_apic;
pub mod logger;
pub mod memory;
pub mod paging;
pub mod pic;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod smp;
pub mod tsc;

use crate::options::Options;

/// What [`crate::start`] found out about the machine, for [`crate::run`] to use.
#[derive(Debug)]
pub struct Machine {
    /// Where the boot loader put things: modules (guest kernels and initrds) above all.
    pub boot_info: boot_info::BootInfo,
    /// tarpit's command line, parsed.
    pub options: Options,
    /// Processors, timers and interrupt controllers.
    pub acpi: acpi::Acpi,
    /// The TSC's frequency and how it was measured.
    pub tsc: tsc::Calibration,
    /// Where other CPUs wake up.
    pub trampoline: image::Trampoline,
}
