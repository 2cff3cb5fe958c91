//! A guest that does at random all that a kernel can do, beside a neighbor: for longer, and with other seeds,
//! it is `cargo xtask experiment fuzz`.

use anyhow::{Result, ensure};
use tests::Case;
use xtask::experiment::fuzz::{Actor, Amount, measure};
use xtask::testbed::choice;

/// The exits that there are to be: fewer than were measured.
const LEAST_EXITS: u64 = 1_000_000;

pub(crate) fn a_guest_that_does_what_it_likes_costs_its_neighbor_nothing(
    case: &Case,
) -> Result<()> {
    let amount = Amount {
        seed: 1,
        seconds: 15.0,
        exits: None,
        actions: None,
    };
    let exit_cost = choice::exit_cost_for_tests()?;
    let outcome = measure(
        &case.file_name(),
        case.kind()?,
        Actor::Kernel,
        amount,
        exit_cost,
    )?;
    println!("{outcome}");
    let misses = outcome.misses();
    ensure!(misses.is_empty(), "{misses:?}\n{outcome}");
    ensure!(outcome.exits() >= LEAST_EXITS, "{outcome}");
    Ok(())
}
