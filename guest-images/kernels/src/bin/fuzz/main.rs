//! Does at random, from a seed, what a kernel can do: instructions that exit, registers, ports, device memory,
//! interrupts, page tables, modes and tasks.
//!
//! [`kernels::random_run`] has the command line and the lines that it prints; with `verbose` each action is told.
//! It does not end by itself, but it may crash, and it may come to stand still: neither is a failure of tarpit's.
//!
//! After each action what the kernel lives on is put back: descriptor tables, control registers, the local
//! APIC. All faults are taken on a stack of their own, so that few actions cannot be survived.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod code;
mod instructions;
mod interrupts;
mod memory;
mod modes;
mod ports;
mod registers;
mod settle;

use kernels::dice::Dice;
use kernels::interrupts::{catch, set_handler};
use kernels::random_run::RandomRun;
use kernels::{Report, multiboot, println};

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
    let (mut run, mut dice) = RandomRun::begin();
    for vector in 32..=255 {
        set_handler(vector, interrupts::handle);
    }
    set_handler(kernels::interrupts::NMI, |_| {});
    let verbose = multiboot::has_word("verbose");
    settle::prepare();
    loop {
        let action = choose(&mut dice);
        if verbose {
            println!("fuzz: {} {:#x}", run.actions(), action as usize);
        }
        interrupts::begin();
        if catch(|| action(&mut dice)).is_err() {
            run.note_fault();
        }
        if catch(settle::restore).is_err() {
            run.note_fault();
        }
        run.note_action();
    }
}

kernels::kernel!(run);
