//! The main job: one process of a stock Debian is slow, the others gain, the guest sees nothing.

use anyhow::{Result, ensure};
use tests::Case;
use xtask::experiment::quick::{self, Options};

/// The experiment with its requirements: speeds, clock, exits by context switches, kernel log.
pub(crate) fn debian_slows_one_process_and_has_no_complaint(case: &Case) -> Result<()> {
    let mut options = Options::default();
    // Slower than by default, for the suite's sake: a tick is more of a turn then.
    options.speed.ips = 500_000_000;
    let outcome = quick::measure(&case.file_name(), case.kind()?, &options)?;
    println!("{outcome}");
    let misses = outcome.misses();
    ensure!(misses.is_empty(), "{misses:#?}\n{outcome}");
    Ok(())
}
