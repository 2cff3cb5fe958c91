//! Shuts the CPU down by a fault that nothing can handle, and says so on the screen before.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;

use kernels::{Report, println};

/// The text of a VGA: a character and its attribute in turn.
const SCREEN: *mut u16 = 0xb_8000 as *mut u16;
const GRAY: u16 = 0x0700;

fn run(_: &mut Report) {
    for (place, letter) in b"triple fault".iter().enumerate() {
        // SAFETY: the text is within the adapter's memory, which nothing else uses.
        unsafe { SCREEN.add(place).write_volatile(GRAY | u16::from(*letter)) };
    }
    println!("triple fault now");
    let no_idt = [0_u16; 5];
    // SAFETY: with no IDT the UD2 cannot be delivered, nor can the faults that follow: the end.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const no_idt) }
}

kernels::kernel!(run);
