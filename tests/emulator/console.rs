//! The operator's console, while a guest runs and talks.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::tarpit;
use xtask::kernel::Series;
use xtask::machine::End;
use xtask::module::Guest;

/// The whole way: stock Debian boots, its processes run, the operator looks and switches off.
pub(crate) fn debian_runs_and_the_console_answers_meanwhile(case: &str) -> Result<()> {
    let guest = Guest::new("debian").command_line("workload.procs=2");
    let mut session = tarpit(case)
        .options("on-end=poweroff")
        .debian(Series::default(), &guest)?
        .boot()?
        .patience(Duration::from_secs(600));
    session.wait_for("workload: ready")?;
    session.wait_for_match(r"workload: t=\d+ counts=\d+,\d+$")?;

    let vms = session.query("vms")?;
    ensure!(
        vms.len() == 1 && vms[0].to_string().contains("\"debian\""),
        "vms: {vms:?}"
    );
    let answer = session.command("vms")?;
    ensure!(answer.contains("debian"), "vms: {answer}");
    let answer = session.command("frobnicate")?;
    ensure!(
        answer.contains("frobnicate"),
        "an unknown command: {answer}"
    );

    session.send_line("shutdown")?;
    let end = session.wait_for_end()?;
    ensure!(matches!(end, End::PoweredOff { .. }), "{end}");
    Ok(())
}
