//! Runs the VMs.

use crate::machine::{Machine, power};

/// Runs what the boot modules describe, until the machine is switched off.
pub fn run(machine: Machine) -> ! {
    log::info!(
        "{} modules, no VM to run: powering off",
        machine.boot_info.modules.len()
    );
    power::off()
}
