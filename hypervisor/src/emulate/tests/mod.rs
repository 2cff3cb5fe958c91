//! Tests of the emulator: against the CPU that runs them, and against the manual.

mod fast_moves;
mod faults;
mod fuzz;
mod hardware;
mod machine;
mod modes;
mod native;
mod random;
mod stack;
mod strings;
mod system;
mod vectors;
