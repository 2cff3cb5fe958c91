//! Runs for ever with interrupts off: what it costs its neighbors is the question.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;

use kernels::{Report, println};

fn run(_: &mut Report) {
    println!("hanging now");
    // SAFETY: never ends, touches nothing.
    unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) }
}

kernels::kernel!(run);
