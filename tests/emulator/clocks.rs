//! All clocks of a guest against each other, from inside, while the operator changes its rates.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::findings::Findings;
use xtask::testbed::module::Guest;

/// The factors that one of the guest's two address spaces is suppressed with, in turn. The guest
/// changes between the two every 3 ms, so the rates change as often.
const FACTORS: [u32; 4] = [2, 10, 1000, 1];

/// The ways in which it is suppressed, each with each factor.
const POLICIES: [&str; 2] = ["paper", "bounded"];

/// Runs the kernel `clocks`, which reads the TSC, the PM timer, the HPET, the PIT, the RTC and the
/// LAPIC timer over and over, and fails if one goes back or is off from the others by more than a
/// tick of its own.
fn agree_at_all_rates(case: &Case, options: &str) -> Result<()> {
    let guest = Guest::new("clocks");
    let mut session = tarpit(case)?
        .options(&format!("on-end=poweroff {options}"))
        .kernel("clocks", &guest)?
        .boot()?
        .patience(Duration::from_secs(600));
    let cr3 = session.wait_for_match(r"space A cr3=(0x[0-9a-f]+)")?;
    let cr3 = cr3.last().context("the CR3 of space A")?.clone();
    session.wait_for("clock=hpet")?;
    for policy in POLICIES {
        for factor in FACTORS {
            let command = format!("suppress clocks {cr3} {factor} --policy {policy}");
            let target = session.query(&command)?;
            ensure!(
                target.len() == 1 && target[0]["clock"] == factor,
                "suppress: {target:?}"
            );
            session.wait_for_match(r"clocks: t=\d+ rounds=")?;
        }
    }
    let vms = session.query("vms")?;
    let drift = vms[0]["drift_ms"].as_i64().context("drift_ms")?;
    ensure!(drift > 0, "no time was gained for good: {vms:?}");
    let targets = session.query("targets")?;
    let lead = targets[0]["highest_lead_us"].as_i64();
    let lead = lead.context("highest_lead_us")?;
    ensure!(lead > 0, "no time was gained to be given back: {targets:?}");
    session.command(&format!("release clocks {cr3}"))?;
    session.send_line("attach clocks")?;
    session.wait_for("attached to clocks")?;
    session.send(b"q")?;
    let findings = Findings::follow(&mut session, "clocks")?;
    ensure!(findings.are_good(), "{findings}");
    Ok(())
}

pub(crate) fn agree_at_all_rates_with_tsc_scaling(case: &Case) -> Result<()> {
    agree_at_all_rates(case, "tsc-scaling=on")
}

pub(crate) fn agree_at_all_rates_without_tsc_scaling(case: &Case) -> Result<()> {
    agree_at_all_rates(case, "tsc-scaling=off")
}
