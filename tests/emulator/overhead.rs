//! What tarpit costs a guest that is left alone, in ticks (instructions in Bochs).

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Case, IPS, tarpit};
use xtask::experiment::baseline::{self, BootTicks};
use xtask::experiment::bench;
use xtask::testbed::choice;
use xtask::testbed::kernel::Series;
use xtask::testbed::module::Guest;
use xtask::testbed::options::Speed;

/// From power-on to userland, against the same kernel in the same emulator without tarpit. The
/// kernel's own part, from its first line on, is held to the same bound.
pub(crate) fn debian_boots_in_at_most_one_and_a_half_times_the_ticks(case: &Case) -> Result<()> {
    let guest = Guest::new("debian").command_line(baseline::WORKLOAD);
    let mut session = tarpit(case)?
        .debian(Series::default(), &guest)?
        .boot()?
        .patience(Duration::from_secs(900));
    let with = BootTicks::measure(&mut session)?;
    drop(session);
    let without = baseline::measure(&baseline::Options {
        speed: Speed { ips: IPS },
        ..Default::default()
    })?;

    let ratio = |with: u64, without: u64| with as f64 / without as f64;
    let whole = ratio(with.userland, without.userland);
    let kernel = ratio(with.since_kernel(), without.since_kernel());
    println!("boot to userland: {whole:.3} times the ticks; the kernel's part {kernel:.3} times");
    ensure!(
        whole <= 1.5 && kernel <= 1.5,
        "{whole:.3}, {kernel:.3}: {with:?}, {without:?}"
    );
    Ok(())
}

/// Measured from inside by a guest of ours: CPUID, a port, an MSR, an interrupt.
pub(crate) fn operations_cost_no_more_than_they_may(case: &Case) -> Result<()> {
    const ROUNDS: u32 = 20;
    let costs = bench::measure(
        &case.file_name(),
        case.kind()?,
        None,
        ROUNDS,
        choice::exit_cost_for_tests()?,
    )?;
    println!("{costs}");
    let misses = costs.misses();
    ensure!(misses.is_empty(), "{misses:?}\n{costs}");
    Ok(())
}
