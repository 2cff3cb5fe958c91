//! What tarpit does when it cannot go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::module::Guest;

/// Debian's Bochs has a debugger, by which a CPU that is idle in tarpit loses its way, while the other one is in a guest.
pub(crate) fn a_fault_of_its_own_stops_all_cpus_and_tells_where_they_were(
    case: &Case,
) -> Result<()> {
    let mut session = tarpit(case)?
        .cpus(2)
        .kernel("hang", &Guest::new("hang"))?
        .boot()?
        .patience(Duration::from_secs(120));
    session.wait_for("hanging now")?;
    session.command("pin hang 0 1")?;
    session.machine().lead_astray()?;
    let line = session.wait_for_fatal()?;
    ensure!(
        line.contains("#PF page fault") && line.contains("at rip 0x0"),
        "{line}"
    );
    session.wait_for("cpu 0 (APIC ID 0)\n")?;
    session.wait_for_match(r"cpu 1 \(APIC ID 1\): at rip 0x\w+, .* with VCPU 0 of VM 0$")?;
    let screen = session.machine().text_screen()?;
    let shows = |text: &str| screen.iter().any(|row| row.contains(text));
    // What comes last on the line may not be on the screen yet.
    ensure!(
        shows("tarpit: fatal: exception 14 (#PF page fault)") && shows("  cpu 0 (APIC ID 0)"),
        "{screen:#?}"
    );
    Ok(())
}
