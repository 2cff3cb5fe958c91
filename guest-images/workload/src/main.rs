//! The Linux workload: the initramfs's `/init`.
//!
//! A static program without a C library, so that it is small (Bochs loads files slowly) and so that
//! nothing runs in a guest process but what is written here. Built for `x86_64-unknown-none`; see
//! `guest-images/README.md`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("build the workload with `cargo build -p workload --target x86_64-unknown-none`");
    std::process::exit(1);
}

#[cfg(target_os = "none")]
mod entry {
    use core::arch::naked_asm;
    use core::fmt::Write;
    use core::panic::PanicInfo;

    use workload::system::Console;

    /// Where Linux starts the program: the stack pointer points at `argc`, then `argv`.
    #[unsafe(no_mangle)]
    #[unsafe(naked)]
    extern "C" fn _start() -> ! {
        naked_asm!(
            "xor ebp, ebp",
            "mov rdi, rsp",
            "and rsp, -16",
            "call {main}",
            "ud2",
            main = sym main,
        )
    }

    extern "C" fn main(stack: *const usize) -> ! {
        // SAFETY: `_start` passes the stack pointer that the kernel gave the program.
        let arguments = unsafe { workload::system::Arguments::from_initial_stack(stack) };
        workload::init::run(arguments)
    }

    #[panic_handler]
    fn panic(info: &PanicInfo) -> ! {
        // Nothing is left to do where even this write fails.
        let _ = writeln!(Console, "workload: {info}");
        workload::system::exit(101)
    }
}
