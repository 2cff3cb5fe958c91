//! Detectors at the second serial line.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::{Case, tarpit};
use xtask::detector::{Address, Client};
use xtask::testbed::machine::End;
use xtask::testbed::module::Guest;
use xtask::testbed::paths;
use xtask::testbed::relay::Relay;

/// The longest wait for an event.
const PATIENCE: Duration = Duration::from_secs(180);

/// Two processes of a kernel of ours: the example of a detector finds one by what is in its memory, and
/// suppresses it; a rule does the same with the other. Memory and registers can be read meanwhile.
pub(crate) fn a_program_finds_a_process_and_a_rule_another(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?
        .detector()
        .kernel("figure1", &Guest::new("small"))?
        .boot()?;
    let line = session
        .machine()
        .take_detector()
        .context("no second line")?;
    let relay = Relay::start(&case.file_name(), line)?;
    let cr3 = session.wait_for_match(r"figure1: process A cr3=(0x[0-9a-f]+)\s*$")?;
    let a = cr3.get(1).context("no CR3")?.clone();
    let cr3 = session.wait_for_match(r"figure1: process B cr3=(0x[0-9a-f]+)\s*$")?;
    let b = cr3.get(1).context("no CR3")?.clone();
    session.wait_for("figure1: slices=50 ")?;

    // The example is told of events of before, too, so it comes first.
    let said = example(&relay, &["small", "figure1: process B", "100", "1"])?;
    ensure!(said.contains(&format!("suppressed small {b}\n")), "{said}");

    let mut client = Client::connect(&Address::Path(relay.path().to_owned()))?;
    let targets = client.command("targets small")?;
    ensure!(targets.len() == 1, "{targets:?}");
    ensure!(
        targets[0]["cr3"] == b.as_str() && targets[0]["clock"] == 100,
        "{targets:?}"
    );
    memory_and_registers_are_read(&mut client, &a)?;

    client.command("watch small \"figure1: process A\" --suppress 50")?;
    let found = event(&mut client, "rule_match")?;
    ensure!(
        found["cr3"] == a.as_str() && found["suppressed"] == 50,
        "{found}"
    );
    let targets = client.command("targets small")?;
    ensure!(targets.len() == 2, "{targets:?}");
    let rules = client.command("rules")?;
    ensure!(rules[0]["matches"] == 1, "{rules:?}");
    session.wait_for("vm small: rule 1 (")?;

    client.command("shutdown")?;
    let end = session.wait_for_end()?;
    ensure!(matches!(end, End::PoweredOff { .. }), "{end}");
    Ok(())
}

/// The mark in a process's page, and where the VCPU is.
fn memory_and_registers_are_read(client: &mut Client, cr3: &str) -> Result<()> {
    let found = client.command("find small \"figure1: process A\"")?;
    let address = found.first().and_then(|it| it["address"].as_str());
    let digits = address.and_then(|it| it.strip_prefix("0x"));
    let address = u64::from_str_radix(digits.context("A is not found")?, 16)?;
    let bytes = client.read("small", Some(cr3), address, 18)?;
    let text: Option<Vec<u8>> = bytes.into_iter().collect();
    ensure!(text.as_deref() == Some(b"figure1: process A"), "{text:?}");
    let registers = client.registers("small", 0)?;
    ensure!(registers["general"]["rsp"].is_string(), "{registers}");
    ensure!(
        registers["cr0"]
            .as_str()
            .is_some_and(|it| it.ends_with('1') || it.ends_with('3')),
        "{registers}"
    );
    ensure!(client.read("small", None, 0, 1 << 17).is_err(), "too much");
    Ok(())
}

/// Runs the example, and returns what it prints.
fn example(relay: &Relay, words: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .current_dir(paths::workspace())
        .args([
            "run",
            "--quiet",
            "-p",
            "xtask",
            "--example",
            "detector",
            "--",
        ])
        .arg(relay.path())
        .args(words)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// Returns the next event of this name.
fn event(client: &mut Client, name: &str) -> Result<Value> {
    let until = Instant::now() + PATIENCE;
    while let Some(event) = client.event(until.saturating_duration_since(Instant::now()))? {
        if event["event"] == name {
            return Ok(event);
        }
    }
    bail!("no event `{name}` within {} s", PATIENCE.as_secs())
}
