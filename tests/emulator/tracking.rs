//! Which address space runs: each switch to a target is seen, and switches between others cost nothing.

use anyhow::{Result, ensure};
use tests::Case;
use xtask::experiment::switches::{self, Part};
use xtask::testbed::choice;

fn meets_requirements(case: &Case, part: Part, switches: u32) -> Result<()> {
    let exit_cost = choice::exit_cost_for_tests()?;
    let outcome = switches::measure(&case.file_name(), case.kind()?, part, switches, exit_cost)?;
    println!("{outcome}");
    let misses = outcome.misses();
    ensure!(misses.is_empty(), "{misses:#?}\n{outcome}");
    Ok(())
}

/// With a target that sleeps: 100,000 context switches between others and 100,000 system calls with two
/// roots each, with and without PCIDs, exit as often as without it, which is never.
pub(crate) fn others_exit_no_more_beside_a_target_that_sleeps(case: &Case) -> Result<()> {
    meets_requirements(case, Part::Bystanders, 100_000)
}

/// By MOV to CR3 with and without PCIDs and global pages, after INVPCID, from a second root, by
/// hardware tasks, with paging off, and while the VCPU is moved: a guest counts its own switches, and
/// tarpit has seen as many.
pub(crate) fn each_switch_to_a_target_is_seen(case: &Case) -> Result<()> {
    meets_requirements(case, Part::Ways, 2_000)
}

/// The same where two VCPUs switch at the same time, and one of them writes to the target's root.
pub(crate) fn each_switch_of_two_vcpus_is_seen(case: &Case) -> Result<()> {
    meets_requirements(case, Part::Company, 1_000)
}
