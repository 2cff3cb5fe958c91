//! What firmware and boot loaders leave behind.

use anyhow::{Context, Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::module::Guest;

use crate::smp::{all_start_and_see_one_clock, with_smp_clock};

/// With more CPUs than IDs of 8 bits, firmware has the boot CPU's local APIC in x2APIC mode.
pub(crate) fn an_x2apic_stays_one(case: &Case) -> Result<()> {
    let mut session = with_smp_clock(tarpit(case)?, 2, 20_000)?
        .before_boot("wrmsr 0x1b 0xfee00d00")
        .boot()?;
    session.wait_for("2 of 2 CPUs running")?;
    all_start_and_see_one_clock(&mut session)
}

/// A timer of the local APIC that is about to strike, an input of the I/O APIC that the PIT drives, a
/// priority that keeps interrupts out: the guest runs, and the host sleeps, wakes and answers.
pub(crate) fn what_it_leaves_armed_has_no_effect(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?
        .kernel("triple_fault", &Guest::new("web"))?
        // Nothing of this interrupts GRUB: not the timer that it uses itself, which is input 2.
        .before_boot("write_dword 0xfee00080 0xf0")
        // Divide by 1, vector 30H, not masked, in 5 million ticks.
        .before_boot("write_dword 0xfee003e0 0xb")
        .before_boot("write_dword 0xfee00320 0x30")
        .before_boot("write_dword 0xfee00380 5000000")
        // Input 2: vector 68H, not masked.
        .before_boot("write_dword 0xfec00000 0x14")
        .before_boot("write_dword 0xfec00010 0x68")
        .boot()?;
    session.wait_for("I/O APIC at 0xfec00000: 1 inputs were open, and are masked\n")?;
    session.wait_for("vm web ended: triple fault")?;
    // No CPU has anything to do any more.
    let facts = session.query("host")?;
    let state = |subject: &str| {
        let fact = facts.iter().find(|fact| fact["subject"] == subject);
        fact.with_context(|| format!("nothing on {subject} in {facts:?}"))
    };
    ensure!(state("nmis")?["state"] == "0", "{facts:?}");
    state("stray-interrupts")?;
    // Bochs's Skylake-X knows of no remedy.
    let mds = &state("mds")?["state"];
    ensure!(*mds == "vulnerable: no microcode", "{mds}");
    Ok(())
}
