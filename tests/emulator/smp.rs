//! Several CPUs, several VCPUs, several VMs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::Setup;
use xtask::testbed::findings::Findings;
use xtask::testbed::module::Guest;
use xtask::testbed::serial::Session;

/// The number of switches of the suppression, on and off, while VCPUs compare their clocks.
const SWITCHES: u32 = 4;

/// Three VCPUs on two CPUs compare their TSCs all the while, one goes in and out of a suppressed
/// address space, and suppression itself comes and goes.
pub(crate) fn no_vcpu_sees_time_go_back_under_suppression(case: &Case) -> Result<()> {
    let mut session = with_smp_clock(tarpit(case)?, 3, 10_000_000)?
        .boot()?
        .patience(Duration::from_secs(600));
    session.wait_for("smp_clock: roots ")?;
    let roots = session.wait_for("\n")?;
    let root = roots
        .split_ascii_whitespace()
        .next()
        .context("the guest names no root")?
        .to_owned();
    session.wait_for("smp_clock: 3 CPUs")?;
    for switch in 1..=SWITCHES {
        session.command(&format!("suppress smp_clock {root} 1000"))?;
        session.wait_for(" comparisons, ")?;
        let target = session.query("targets")?;
        ensure!(target.len() == 1, "switch {switch}: {target:?}");
        session.command("release smp_clock all")?;
    }
    let findings = Findings::follow(&mut session, "smp_clock")?;
    ensure!(findings.are_good(), "{findings}");
    Ok(())
}

/// As many VCPUs as a VM can have, four times as many as there are CPUs, all start and see one clock.
pub(crate) fn eight_vcpus_start_on_two_cpus(case: &Case) -> Result<()> {
    let mut session = with_smp_clock(tarpit(case)?, 8, 200_000)?.boot()?;
    all_start_and_see_one_clock(&mut session)
}

/// Puts a VM on two CPUs whose VCPUs compare their clocks.
pub(crate) fn with_smp_clock(setup: Setup, vcpus: u32, comparisons: u32) -> Result<Setup> {
    let words = format!("others={} comparisons={comparisons}", vcpus - 1);
    let guest = Guest {
        vcpus,
        ..Guest::new("smp_clock").command_line(&words)
    };
    setup
        .cpus(2)
        .options("on-end=poweroff")
        .kernel("smp_clock", &guest)
}

/// Waits until the VCPUs of [`with_smp_clock`] have found that they see one clock, and for the end.
pub(crate) fn all_start_and_see_one_clock(session: &mut Session) -> Result<()> {
    session.wait_for("PASS all other CPUs have started")?;
    session.wait_for("PASS no CPU reads a time before one that another has read")?;
    session.wait_for("vm smp_clock ended: debug-exit 0")?;
    session.wait_for_end()?;
    Ok(())
}

/// One VM dies in a triple fault, another spins with interrupts off; Debian beside it boots, and
/// the operator stops and starts the others meanwhile.
pub(crate) fn a_vm_that_crashes_or_spins_leaves_the_others_alone(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?
        .cpus(2)
        .options("on-end=poweroff")
        .kernel("triple_fault", &Guest::new("crash"))?
        .kernel("hang", &Guest::new("spin"))?
        .kernel("exits", &Guest::new("good"))?
        .boot()?
        .patience(Duration::from_secs(600));
    session.wait_for("vm crash ended: triple fault")?;
    session.wait_for("vm good ended: debug-exit 0")?;
    let vms = session.query("vms")?;
    ensure!(
        vms.iter()
            .any(|vm| vm["vm"] == "spin" && vm["state"] == "running"),
        "the spinning one goes on: {vms:?}"
    );
    session.command("start good")?;
    session.wait_for("vm good ended: debug-exit 0")?;
    session.command("stop spin")?;
    session.wait_for_end()?;
    Ok(())
}
