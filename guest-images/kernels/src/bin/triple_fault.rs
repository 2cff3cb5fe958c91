//! Shuts the CPU down by a fault that nothing can handle.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;

use kernels::{Report, println};

fn run(_: &mut Report) {
    println!("triple fault now");
    let no_idt = [0_u16; 5];
    // SAFETY: with no IDT the UD2 cannot be delivered, nor can the faults that follow: the end.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const no_idt) }
}

kernels::kernel!(run);
