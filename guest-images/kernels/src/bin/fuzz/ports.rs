//! Ports, in all widths and by string instructions.

use core::arch::asm;

use kernels::dice::Dice;

use crate::memory;
use crate::{Action, RUINOUS};

pub(crate) const ACTIONS: &[Action] = &[
    (input, 80),
    (output, 60),
    (string_input, 15),
    (string_output, 15),
    (configuration, 20),
];

/// Ports of devices, each the first of some.
const PORTS: [u16; 16] = [
    0x20, 0xa0, 0x40, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x4d0, 0x3d4, 0x3f8, 0x510, 0x600, 0xcf8,
    0xcfc,
];

fn port(dice: &mut Dice) -> u16 {
    match dice.below(4) {
        0 => dice.any() as u16,
        _ => dice.of(&PORTS) + dice.below(8) as u16,
    }
}

/// Returns whether a write there resets or ends the machine, or says something on the console: seldom by
/// chance.
fn is_drastic(port: u16, dice: &mut Dice) -> bool {
    let is_console = (0x3f8 - 3..0x400).contains(&port);
    let ends = matches!(port, 0x61..=0x67 | 0x8f..=0x93 | 0xf1..=0xf7 | 0xcf6..=0xcf9 | 0x5fd..=0x607 | 0xdfc..=0xe07);
    is_console || ends && !dice.once_in(RUINOUS)
}

fn input(dice: &mut Dice) {
    let port = port(dice);
    // SAFETY: reading a port touches no memory.
    unsafe {
        match dice.below(3) {
            0 => asm!("in al, dx", in("dx") port, out("al") _),
            1 => asm!("in ax, dx", in("dx") port, out("ax") _),
            _ => asm!("in eax, dx", in("dx") port, out("eax") _),
        }
    }
}

fn output(dice: &mut Dice) {
    let port = port(dice);
    if is_drastic(port, dice) {
        return;
    }
    let value = dice.value() as u32;
    // SAFETY: no device writes to memory that is not told to in more than one step.
    unsafe {
        match dice.below(3) {
            0 => asm!("out dx, al", in("dx") port, in("al") value as u8),
            1 => asm!("out dx, ax", in("dx") port, in("ax") value as u16),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value),
        }
    }
}

/// Where a string instruction's operand is: in RAM, at the border of a page that is not there, at a device.
fn operand(dice: &mut Dice) -> u64 {
    match dice.below(6) {
        0 => memory::address(dice),
        1 => dice.value(),
        _ => memory::page(1) as u64 + dice.below(3000),
    }
}

fn string_input(dice: &mut Dice) {
    let (port, address, count) = (port(dice), operand(dice), dice.below(300));
    // SAFETY: into pages of ours, or a device, or the fault is caught.
    unsafe {
        match dice.below(4) {
            0 => {
                asm!("rep insb", in("dx") port, inout("rdi") address => _, inout("rcx") count => _)
            }
            1 => {
                asm!("rep insw", in("dx") port, inout("rdi") address => _, inout("rcx") count => _)
            }
            2 => asm!("insd", in("dx") port, inout("rdi") address => _),
            _ => {
                asm!("std", "rep insd", "cld", in("dx") port, inout("rdi") address => _, inout("rcx") count & 7 => _)
            }
        }
    }
}

fn string_output(dice: &mut Dice) {
    let (port, address, count) = (port(dice), operand(dice), dice.below(300));
    if is_drastic(port, dice) {
        return;
    }
    // SAFETY: from anywhere, or the fault is caught.
    unsafe {
        match dice.below(4) {
            0 => {
                asm!("rep outsb", in("dx") port, inout("rsi") address => _, inout("rcx") count => _)
            }
            1 => {
                asm!("rep outsw", in("dx") port, inout("rsi") address => _, inout("rcx") count => _)
            }
            2 => asm!("outsd", in("dx") port, inout("rsi") address => _),
            _ => {
                asm!("fs", "rep outsd", in("dx") port, inout("rsi") address => _, inout("rcx") count => _)
            }
        }
    }
}

/// Configuration space of PCI, by ports.
fn configuration(dice: &mut Dice) {
    let address = 0x8000_0000 | dice.below(8) << 11 | dice.below(0x100);
    let value = dice.value() as u32;
    // SAFETY: no device here masters the bus without a driver that has set it up.
    unsafe {
        asm!("out dx, eax", in("dx") 0xcf8_u16, in("eax") address as u32);
        match dice.below(3) {
            0 => asm!("in eax, dx", in("dx") 0xcfc_u16, out("eax") _),
            1 => asm!("out dx, eax", in("dx") 0xcfc_u16, in("eax") value),
            _ => asm!("out dx, ax", in("dx") 0xcfe_u16, in("ax") value as u16),
        }
    }
}
