//! The operator's console, while a guest runs and talks.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tests::{Case, tarpit};
use xtask::testbed::kernel::Series;
use xtask::testbed::machine::End;
use xtask::testbed::module::Guest;
use xtask::testbed::serial::Session;

/// The whole way: stock Debian boots, its processes run, the operator looks and switches off.
pub(crate) fn debian_runs_and_the_console_answers_meanwhile(case: &Case) -> Result<()> {
    let guest = Guest::new("debian").command_line("workload.procs=2 workload.pattern=EVIL-42");
    let mut session = tarpit(case)?
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

    a_signature_leads_to_its_process(&mut session)?;
    a_trace_tells_of_switches_and_ticks(&mut session)?;

    session.send_line("shutdown")?;
    let end = session.wait_for_end()?;
    ensure!(matches!(end, End::PoweredOff { .. }), "{end}");
    Ok(())
}

/// One of the two processes holds the text.
fn a_signature_leads_to_its_process(session: &mut Session) -> Result<()> {
    let found = session.query("find debian EVIL-42")?;
    let [one] = found.as_slice() else {
        bail!("not one process with EVIL-42: {found:?}");
    };
    ensure!(one["complete"] == true, "not searched wholly: {one}");
    let seen = session.query("ps debian")?;
    let process = seen.iter().find(|process| process["cr3"] == one["cr3"]);
    let share = process.and_then(|process| process["cpu_permille"].as_u64());
    ensure!(
        share.is_some_and(|share| share > 100),
        "EVIL-42 is at {one}, which is no busy process of {seen:?}"
    );
    let bytes = session.query("find debian 0x4556494c2d3432")?;
    // All but the aliases, which may become known in between.
    for key in ["cr3", "address", "matches"] {
        ensure!(
            bytes.len() == 1 && bytes[0][key] == one[key],
            "{bytes:?} instead of {found:?}"
        );
    }
    let missing = session.query("find debian 'no process holds this'")?;
    ensure!(missing.is_empty(), "{missing:?}");
    Ok(())
}

/// Without any target.
fn a_trace_tells_of_switches_and_ticks(session: &mut Session) -> Result<()> {
    session.query("trace debian on")?;
    session.wait_for("workload: t=")?;
    session.wait_for("workload: t=")?;
    session.query("trace debian off")?;
    let events = session.query("trace debian show 200")?;
    for name in ["switch-in", "switch-out", "timer"] {
        let count = events.iter().filter(|event| event["event"] == name).count();
        ensure!(count >= 10, "{count} events `{name}`: {events:?}");
    }
    let times: Vec<_> = events.iter().map(|event| event["ns"].as_u64()).collect();
    ensure!(times.is_sorted(), "not in the order of time: {times:?}");
    session.query("trace debian clear")?;
    let events = session.query("trace debian show")?;
    ensure!(events.is_empty(), "{events:?}");
    Ok(())
}
