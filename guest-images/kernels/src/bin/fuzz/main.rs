//! Does at random, from a seed, what a kernel can do: instructions that exit, registers, ports, device memory,
//! interrupts, page tables, modes and tasks.
//!
//! `seed=N` on the command line is the seed; without it, the kernel prints `fuzz: seed?` and takes a number
//! from its console, ended by Enter. Every `interval_ms=N` (100) it prints `fuzz: actions=N faults=N`: how many
//! things it has done, and how many of them a fault has ended. It does not end by itself, but it may crash, and
//! it may come to stand still: neither is a failure of tarpit's.
//!
//! After each action what the kernel lives on is put back: descriptor tables, control registers, the local
//! APIC. All faults are taken on a stack of their own, so that few actions cannot be survived.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod code;
mod dice;
mod instructions;
mod interrupts;
mod memory;
mod modes;
mod ports;
mod registers;
mod settle;

use kernels::interrupts::{catch, set_handler};
use kernels::{Report, multiboot, println, serial, tsc};

use dice::Dice;

/// What the kernel would not survive is done once in so many times.
const RUINOUS: u64 = 50_000;

/// Something to do, and how often, in parts of all.
type Action = (fn(&mut Dice), u64);

/// All that is done by chance.
const ACTIONS: &[&[Action]] = &[
    instructions::ACTIONS,
    registers::ACTIONS,
    ports::ACTIONS,
    memory::ACTIONS,
    interrupts::ACTIONS,
    modes::ACTIONS,
];

/// Returns the seed that the console tells. Asks once a second, as nobody may have listened.
fn ask_for_seed(hertz: u64) -> u64 {
    let mut seed: u64 = 0;
    let mut ask_at = 0;
    loop {
        let now = tsc::now();
        if now >= ask_at {
            println!("fuzz: seed?");
            ask_at = now + hertz;
        }
        match serial::receive() {
            Some(digit @ b'0'..=b'9') => {
                seed = seed.wrapping_mul(10).wrapping_add((digit - b'0').into());
            }
            Some(b'\r' | b'\n') => return seed,
            _ => core::hint::spin_loop(),
        }
    }
}

fn choose(dice: &mut Dice) -> fn(&mut Dice) {
    let all = || ACTIONS.iter().flat_map(|actions| actions.iter());
    let mut drawn = dice.below(all().map(|action| action.1).sum());
    for &(action, weight) in all() {
        if drawn < weight {
            return action;
        }
        drawn -= weight;
    }
    instructions::cpuid
}

fn run(_: &mut Report) {
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    let seed = multiboot::number("seed").unwrap_or_else(|| ask_for_seed(hertz));
    println!("fuzz: seed={seed}");
    for vector in 32..=255 {
        set_handler(vector, interrupts::handle);
    }
    set_handler(kernels::interrupts::NMI, |_| {});
    let interval = hertz / 1000 * multiboot::number("interval_ms").unwrap_or(100).max(1);
    let verbose = multiboot::has_word("verbose");
    settle::prepare();
    let mut dice = Dice::new(seed);
    let (mut actions, mut faults) = (0_u64, 0_u64);
    let mut next_line = 0;
    loop {
        let action = choose(&mut dice);
        if verbose {
            println!("fuzz: {actions} {:#x}", action as usize);
        }
        interrupts::begin();
        if catch(|| action(&mut dice)).is_err() {
            faults += 1;
        }
        actions += 1;
        if catch(settle::restore).is_err() {
            faults += 1;
        }
        // Its own clock may have been moved.
        let now = tsc::now();
        if now >= next_line || now + 2 * interval < next_line {
            serial::init();
            println!("fuzz: actions={actions} faults={faults}");
            next_line = now + interval;
        }
    }
}

kernels::kernel!(run);
