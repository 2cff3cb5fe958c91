//! What kernels that act by chance have in common: the seed, and the lines that say how far they are.
//!
//! `seed=N` on the command line is the seed; without it, the kernel prints `random: seed?` once a second and takes
//! a number from its console, ended by Enter. It answers `random: seed=N`. Every `interval_ms=N` (100) it prints
//! `random: actions=N faults=N`: how many things it has done, and how many of them a fault has ended.

use crate::dice::Dice;
use crate::{multiboot, println, serial, tsc};

/// A run of actions by chance.
#[derive(Debug)]
pub struct RandomRun {
    actions: u64,
    faults: u64,
    /// The ticks from one line to the next.
    interval: u64,
    next_line: u64,
}

impl RandomRun {
    /// Begins a run: takes the seed, and all else that the command line says of it. Returns where all chance
    /// comes from, too.
    #[must_use]
    pub fn begin() -> (Self, Dice) {
        let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
        let seed = multiboot::number("seed").unwrap_or_else(|| ask_for_seed(hertz));
        println!("random: seed={seed}");
        let interval = multiboot::number("interval_ms").unwrap_or(100).max(1);
        let run = Self {
            actions: 0,
            faults: 0,
            interval: hertz / 1000 * interval,
            next_line: 0,
        };
        (run, Dice::new(seed))
    }

    /// Returns the number of actions so far.
    #[must_use]
    pub const fn actions(&self) -> u64 {
        self.actions
    }

    /// Counts a fault.
    pub fn note_fault(&mut self) {
        self.faults += 1;
    }

    /// Counts an action, and prints a line now and then.
    pub fn note_action(&mut self) {
        self.actions += 1;
        // Its own clock may have been moved.
        let now = tsc::now();
        if now >= self.next_line || now + 2 * self.interval < self.next_line {
            serial::init();
            println!("random: actions={} faults={}", self.actions, self.faults);
            self.next_line = now + self.interval;
        }
    }
}

/// Returns the seed that the console tells. Asks once a second, as nobody may have listened.
fn ask_for_seed(hertz: u64) -> u64 {
    let mut seed: u64 = 0;
    let mut ask_at = 0;
    loop {
        let now = tsc::now();
        if now >= ask_at {
            println!("random: seed?");
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
