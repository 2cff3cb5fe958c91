//! What the operator is told of the machine.
#![forbid(unsafe_code)]

use alloc::format;
use alloc::vec::Vec;

use super::Machine;
use crate::machine::{log_ring, machine_check, memory, smp, stray};
use crate::operator::{Fact, HostFacts};
use crate::speculation::{Defenses, Issue};

/// Gathers what has been found out about the machine, `cpus` of whose CPUs run.
pub(super) fn gather(machine: &Machine, cpus: u32, defenses: &Defenses) -> HostFacts {
    let tsc = &machine.tsc;
    let mut found = alloc::vec![
        Fact::new(
            "cpus",
            format!("{cpus} of {}", machine.acpi.cpus.len().max(1))
        ),
        Fact::new(
            "tsc",
            format!(
                "{}, within {} ppm by the {}",
                tsc.frequency, tsc.error_ppm, tsc.source
            ),
        ),
    ];
    found.extend(
        Issue::ALL.map(|issue| Fact::new(issue.name(), format!("{}", defenses.status(issue)))),
    );
    HostFacts {
        found,
        now,
        log: log_ring::lines,
        log_since: log_ring::since,
    }
}

fn now() -> Vec<Fact> {
    let mut facts = alloc::vec![
        Fact::new("memory-free", format!("{} MiB", memory::free_bytes() >> 20)),
        Fact::new("nmis", format!("{}", smp::nmis())),
        Fact::new("hardware-errors", format!("{}", machine_check::found())),
        Fact::new(
            "stray-interrupts",
            format!("{}", stray::counts().map(|(_, count)| count).sum::<u64>()),
        ),
    ];
    facts.extend(stray::counts().map(|(vector, count)| {
        Fact::new(format!("stray-vector-{vector:#04x}"), format!("{count}"))
    }));
    facts
}
