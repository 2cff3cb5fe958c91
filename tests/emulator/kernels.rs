//! Kernels of our own as guests: each checks one side of its virtual machine from inside.
//!
//! `virtual-apic=off` makes tarpit do all of the local APIC in software, as on processors that
//! cannot virtualize it: what a guest sees must not depend on it. Two of Bochs's processors stand for those that lack
//! something; `cargo xtask experiment processors` tries all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Case, IPS, tarpit};
use xtask::testbed::Setup;
use xtask::testbed::findings::Findings;
use xtask::testbed::module::Guest;

/// Boots `program` in the VM `guest` on a machine and lets it run to its end, which must be one without failures.
fn passes_in(machine: Setup, program: &str, guest: &Guest) -> Result<()> {
    let mut session = machine
        .options("on-end=poweroff")
        .kernel(program, guest)?
        .boot()?
        .patience(Duration::from_secs(600));
    let findings = Findings::follow(&mut session, program)?;
    ensure!(findings.are_good(), "{findings}");
    Ok(())
}

/// The same by these options of tarpit's.
fn passes(case: &Case, program: &str, options: &str) -> Result<()> {
    passes_in(
        tarpit(case)?.options(options),
        program,
        &Guest::new(program),
    )
}

/// The same on another processor that Bochs models.
fn passes_on(case: &Case, model: &'static str, program: &str) -> Result<()> {
    let machine = Setup::new(&case.file_name()).processor(model).ips(IPS);
    passes_in(machine, program, &Guest::new(program))
}

pub(crate) fn exits_and_instructions_on_devices(case: &Case) -> Result<()> {
    passes(case, "exits", "")
}

pub(crate) fn processor_modes_from_real_to_long(case: &Case) -> Result<()> {
    passes(case, "modes", "")
}

pub(crate) fn hardware_task_switches(case: &Case) -> Result<()> {
    passes(case, "tasks", "")
}

pub(crate) fn processors_start_after_init(case: &Case) -> Result<()> {
    let guest = Guest {
        vcpus: 2,
        ..Guest::new("start_up").command_line("others=1")
    };
    passes_in(tarpit(case)?, "start_up", &guest)
}

pub(crate) fn apics_virtualized_by_the_processor(case: &Case) -> Result<()> {
    passes(case, "apic", "virtual-apic=on")
}

pub(crate) fn apics_in_software(case: &Case) -> Result<()> {
    passes(case, "apic", "virtual-apic=off")
}

/// It has neither TSC scaling nor APIC virtualization.
pub(crate) fn apics_on_the_oldest_processor(case: &Case) -> Result<()> {
    passes_on(case, "corei5_arrandale_m520", "apic")
}

/// It has no TSC scaling.
pub(crate) fn exits_on_a_processor_without_tsc_scaling(case: &Case) -> Result<()> {
    passes_on(case, "corei7_haswell_4770", "exits")
}

pub(crate) fn timers_with_a_virtualized_apic(case: &Case) -> Result<()> {
    passes(case, "timers", "virtual-apic=on")
}

pub(crate) fn timers_with_an_apic_in_software(case: &Case) -> Result<()> {
    passes(case, "timers", "virtual-apic=off")
}

/// VCPUs on two CPUs interrupt each other all the time: each interrupt is a kick of a CPU that may be anywhere.
pub(crate) fn interrupts_come_only_where_they_are_let_in(case: &Case) -> Result<()> {
    let guest = Guest {
        vcpus: 2,
        ..Guest::new("masked")
    };
    passes_in(tarpit(case)?.cpus(2), "masked", &guest)
}

/// IA32_SPEC_CTRL is the guest's own on a processor that has it, whose exits take another way, and is not there on one
/// that does not.
pub(crate) fn controls_of_speculation_are_those_of_the_processor(case: &Case) -> Result<()> {
    for (model, has) in [("tigerlake", 1), ("corei7_haswell_4770", 0)] {
        let name = format!("speculation-{has}");
        let guest = Guest::new("speculation").command_line(&format!("has={has}"));
        let machine = Setup::new(&format!("{}-{name}", case.file_name())).processor(model);
        passes_in(machine, "speculation", &guest).context(model)?;
    }
    Ok(())
}

/// The guest's fault ends the guest, with a dump, and not tarpit.
pub(crate) fn a_triple_fault_ends_the_vm_with_a_dump(case: &Case) -> Result<()> {
    let guest = Guest::new("triple_fault");
    let mut session = tarpit(case)?.kernel("triple_fault", &guest)?.boot()?;
    let said = session.wait_for("vm triple_fault ended: triple fault")?;
    for part in ["state of VCPU 0", "rip ", "cr3 ", "gdtr ", "code at "] {
        ensure!(said.contains(part), "no `{part}` in the dump:\n{said}");
    }
    let vms = session.query("vms")?;
    ensure!(
        vms.len() == 1 && vms[0]["state"] == "ended",
        "the console goes on: {vms:?}"
    );
    let screen = session.query("screen triple_fault")?;
    ensure!(
        screen
            .first()
            .is_some_and(|row| row["text"] == "triple fault"),
        "the screen is what the guest left there: {screen:?}"
    );
    Ok(())
}
