//! Instructions that exit, or that look as if they might.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use kernels::dice::Dice;
use x86_64::registers::model_specific::Msr;

use crate::Action;
use crate::code::{self, execute};

pub(crate) const ACTIONS: &[Action] = &[
    (cpuid, 40),
    (single, 80),
    (monitor, 5),
    (xsetbv, 10),
    (stepped, 20),
    (time, 10),
    (self_modifying, 20),
    (many, 60),
];

/// Instructions without a memory operand that matters.
const SINGLE: [&[u8]; 28] = [
    &[0x0f, 0x08],                   // INVD
    &[0x0f, 0x09],                   // WBINVD
    &[0xf3, 0x90],                   // PAUSE
    &[0x0f, 0x33],                   // RDPMC
    &[0x0f, 0x01, 0xc1],             // VMCALL
    &[0x0f, 0x01, 0xd9],             // VMMCALL
    &[0x0f, 0x01, 0xc2],             // VMLAUNCH
    &[0x0f, 0x01, 0xc3],             // VMRESUME
    &[0x0f, 0x01, 0xc4],             // VMXOFF
    &[0xf3, 0x0f, 0xc7, 0x36],       // VMXON [RSI]
    &[0x66, 0x0f, 0xc7, 0x36],       // VMCLEAR [RSI]
    &[0x0f, 0xc7, 0x36],             // VMPTRLD [RSI]
    &[0x0f, 0xc7, 0x3e],             // VMPTRST [RSI]
    &[0x0f, 0x78, 0xc8],             // VMREAD
    &[0x0f, 0x79, 0xc8],             // VMWRITE
    &[0x66, 0x0f, 0x38, 0x80, 0x0e], // INVEPT
    &[0x66, 0x0f, 0x38, 0x81, 0x0e], // INVVPID
    &[0x66, 0x0f, 0x38, 0x82, 0x0e], // INVPCID
    &[0x0f, 0x01, 0xd4],             // VMFUNC
    &[0x0f, 0x37],                   // GETSEC
    &[0x0f, 0x01, 0xcf],             // ENCLS
    &[0x0f, 0xaa],                   // RSM
    &[0x0f, 0x01, 0x3e],             // INVLPG [RSI]
    &[0x0f, 0x01, 0xe0],             // SMSW EAX
    &[0x0f, 0x06],                   // CLTS
    &[0x66, 0x0f, 0x01, 0xcc],       // TDCALL
    &[0x66, 0x0f, 0x01, 0xcf],       // SEAMCALL
    &[0x0f, 0x01, 0xf8],             // SWAPGS
];

/// CPUID, by any leaf.
pub(crate) fn cpuid(dice: &mut Dice) {
    let leaf = match dice.below(4) {
        0 => dice.any() as u32,
        1 => 0x8000_0000 + dice.below(0x20) as u32,
        2 => 0x4000_0000 + dice.below(0x10) as u32,
        _ => dice.below(0x20) as u32,
    };
    let _ = core::hint::black_box(__cpuid_count(leaf, dice.value() as u32));
}

/// Instructions that exit, or may, and that no fault ends, one after the other: most of a run's exits are these,
/// as nothing has to be put back after them.
fn many(dice: &mut Dice) {
    /// Ports whose reading changes nothing that matters.
    const PORTS: [u16; 6] = [0x40, 0x61, 0x71, 0x80, 0x21, 0x608];
    for _ in 0..dice.below(1200) {
        let value = dice.any();
        // SAFETY: what is written is what was read, and reading changes nothing that matters.
        unsafe {
            match value >> 60 {
                0..5 => {
                    let leaf = dice.of(&[0, 0x4000_0000, 0x8000_0000]) + (value as u32 & 0x1f);
                    let _ = core::hint::black_box(__cpuid_count(leaf, value as u32 >> 8 & 3));
                }
                5..8 => asm!("vmcall", inout("rax") value => _),
                8 => asm!("wbinvd"),
                9 | 10 => {
                    let number = dice.of(&crate::registers::HARMLESS_MSRS);
                    let _ = core::hint::black_box(Msr::new(number).read());
                }
                11 => {
                    asm!("in al, dx", in("dx") PORTS[value as usize % PORTS.len()], out("al") _);
                }
                12 => asm!("mov {0}, cr0", "xor {0}, 8", "mov cr0, {0}", "clts", out(reg) _),
                13 => {
                    asm!("mov {0}, cr4", "xor {0}, 0x80", "mov cr4, {0}", "xor {0}, 0x80", "mov cr4, {0}", out(reg) _)
                }
                14 => asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _),
                _ => asm!("pause", "mov {0}, dr6", "mov {0}, cr8", "mov cr8, {0}", out(reg) _),
            }
        }
    }
}

fn single(dice: &mut Dice) {
    let registers = core::array::from_fn(|_| match dice.below(3) {
        0 => crate::memory::page(1) as u64,
        1 => dice.below(16),
        _ => dice.value(),
    });
    let code = dice.of(&SINGLE);
    execute(dice.below(8000) as usize, code, &registers);
}

fn monitor(dice: &mut Dice) {
    let registers = [crate::memory::page(1) as u64, 0, dice.below(4), 0, 0, 0];
    let code: &[u8] = dice.of(&[&[0x0f, 0x01, 0xc8][..], &[0x0f, 0x01, 0xc9]]);
    execute(0, code, &registers);
}

fn xsetbv(dice: &mut Dice) {
    let value = dice.value();
    // What the kernel has by itself comes next.
    for value in [value, 7] {
        // SAFETY: the kernel keeps nothing in what this switches on and off.
        unsafe {
            asm!("xsetbv", in("ecx") dice.below(2) as u32 & 1, in("eax") value as u32, in("edx") (value >> 32) as u32);
        }
    }
}

/// An instruction that exits, under a single step.
fn stepped(dice: &mut Dice) {
    // PUSHFQ; OR [RSP], TF; POPFQ, and, in the shadow of a MOV SS now and then, the instruction.
    let mut code = [0x90; 32];
    code[..10].copy_from_slice(&[0x9c, 0x48, 0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, 0x9d]);
    let mut length = 10;
    if dice.once_in(3) {
        code[10..12].copy_from_slice(&[0x8e, 0xd0]);
        length = 12;
    }
    let instruction = dice.of(&[
        &[0x0f, 0xa2][..],
        &[0x0f, 0x32],
        &[0xe4, 0x71],
        &[0x8b, 0x06],
        &[0x0f, 0x08],
    ]);
    code[length..length + instruction.len()].copy_from_slice(instruction);
    let apic = 0xfee0_0030;
    execute(64, &code, &[0x10, 0x10, 0, 0, apic, apic]);
}

fn time(_: &mut Dice) {
    // SAFETY: reads the time.
    unsafe {
        core::arch::x86_64::_rdtsc();
        asm!("rdtscp", out("eax") _, out("ecx") _, out("edx") _);
    }
}

/// Code that changes what follows it, and then executes that; across the border of a page, maybe.
fn self_modifying(dice: &mut Dice) {
    // MOV WORD [RIP + 0], IMM; and what it writes over.
    let new = dice.of(&[[0x0f, 0xa2], [0x0f, 0x32], [0x0f, 0x0b], [0x90, 0x90]]);
    let code = [
        0x66, 0xc7, 0x05, 0, 0, 0, 0, new[0], new[1], 0x90, 0x90, 0xcc,
    ];
    let offset = dice.of(&[0, 4090, 4086, 4080, 100]);
    execute(offset, &code, &[0; 6]);
    let _ = code::place(offset);
}
