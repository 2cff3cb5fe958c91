//! The physical machine that tarpit runs on: everything that touches host hardware, apart
//! from VMX.

pub mod acpi;
pub mod boot_info;
pub mod cpu;
pub mod fatal;
pub mod heap;
pub mod host_time;
pub mod host_timer;
pub mod image;
pub mod io_apic;
pub mod local_apic;
pub mod logger;
pub mod machine_check;
pub mod memory;
pub mod paging;
pub mod pci;
pub mod pic;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod smp;
pub mod speculation;
pub mod stray;
pub mod tsc;
