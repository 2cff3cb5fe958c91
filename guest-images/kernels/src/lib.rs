//! What the test kernels share: the way from a multiboot 1 loader to long mode, a serial console, a
//! small test harness, interrupts and faults, and plain access to the PC's devices.
//!
//! A kernel is a program under `src/bin`: a function that takes a [`Report`], made the kernel's main
//! function by [`kernel!`]. Its result goes to the debug-exit port: 0 where all passed. The device
//! modules deliberately hide nothing: tests write registers, legal values or not.
#![cfg_attr(target_os = "none", no_std)]

pub mod acpi;
mod boot;
pub mod dice;
pub mod exit;
pub mod harness;
pub mod hpet;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
pub mod memory;
pub mod mmio;
pub mod multiboot;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod platform;
pub mod pm_timer;
pub mod random_run;
pub mod rtc;
pub mod segments;
pub mod serial;
pub mod sleep;
pub mod smp;
pub mod tsc;
pub mod virtio;
pub mod work;

pub use harness::Report;

/// Sets the CPU up, runs `kernel`, and ends the machine with its result.
pub fn start(name: &str, kernel: fn(&mut Report)) -> ! {
    serial::init();
    segments::init();
    interrupts::init();
    pic::init();
    println!("kernel {name}");
    let mut report = Report::new();
    kernel(&mut report);
    report.finish()
}

/// Makes the function the kernel's main function.
///
/// On a hosted target it makes a program that says where the kernel can run.
#[macro_export]
macro_rules! kernel {
    ($main:ident) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn kernel_main() -> ! {
            $crate::start(module_path!(), $main)
        }

        #[cfg(not(target_os = "none"))]
        fn main() {
            let _unused: fn(&mut $crate::Report) = $main;
            eprintln!(
                "build the kernels with `cargo build -p kernels --target x86_64-unknown-none`"
            );
            std::process::exit(1);
        }
    };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("PANIC {info}");
    exit::exit(exit::PANICKED)
}
