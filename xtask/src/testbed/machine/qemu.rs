//! QEMU: its command line and, by its monitor protocol (QMP), its way of ending.

use std::io::Write;
use std::process::{Child, Command};

use anyhow::{Context, Result};

use super::Ports;
use super::end::{End, Files};
use super::spec::{Boot, Spec};
use crate::testbed::provision::Qemu;

/// Makes the command that runs such a machine.
///
/// # Errors
/// As [`Qemu::ensure`].
pub(super) fn command(spec: &Spec, ports: Ports, kvm: bool) -> Result<Command> {
    let mut command = Qemu::ensure()?.command();
    command.args([
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-qmp",
        "stdio",
    ]);
    if kvm {
        command.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        command.args(["-accel", "tcg", "-cpu", "max"]);
    }
    command.args([
        "-m",
        &format!("{}M", spec.hardware.memory_mib),
        "-smp",
        &spec.hardware.cpus.to_string(),
    ]);
    for port in std::iter::once(ports.console).chain(ports.detector) {
        command.args(["-serial", &format!("tcp:127.0.0.1:{port}")]);
    }
    match &spec.boot {
        Boot::Iso(iso) => command.args(["-boot", "d", "-cdrom"]).arg(iso),
        Boot::Multiboot {
            image,
            command_line,
        } => command
            .arg("-kernel")
            .arg(image)
            .args(["-append", command_line]),
    };
    Ok(command)
}

/// Asks for QMP's capabilities: it reports no event before.
pub(super) fn negotiate(child: &mut Child) -> Result<()> {
    let monitor = child.stdin.as_mut().context("no monitor")?;
    // QEMU may be gone already; why is in its output.
    let _ = monitor.write_all(b"{\"execute\": \"qmp_capabilities\"}\n");
    Ok(())
}

/// Returns what QEMU's last SHUTDOWN event says about the end.
pub(super) fn end(files: &Files) -> Option<End> {
    end_in(&String::from_utf8_lossy(
        &std::fs::read(&files.output).ok()?,
    ))
}

fn end_in(output: &str) -> Option<End> {
    let reason = output.lines().rev().find_map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["event"] == "SHUTDOWN")
            .then(|| event["data"]["reason"].as_str().map(str::to_owned))?
    })?;
    match reason.as_str() {
        "guest-shutdown" => Some(End::PoweredOff { ticks: None }),
        // A triple fault resets a PC; QEMU does not tell the two apart.
        "guest-reset" => Some(End::Reset),
        other => Some(End::Failed(format!("QEMU was shut down by {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_tells_a_power_off_from_a_reset() {
        let event = |reason: &str| {
            format!(
                "{{\"QMP\": {{}}}}\n{{\"return\": {{}}}}\n{{\"event\": \"SHUTDOWN\", \
                 \"data\": {{\"guest\": true, \"reason\": \"{reason}\"}}}}\n"
            )
        };
        assert_eq!(
            end_in(&event("guest-shutdown")),
            Some(End::PoweredOff { ticks: None })
        );
        assert_eq!(end_in(&event("guest-reset")), Some(End::Reset));
        assert!(matches!(
            end_in(&event("host-signal")),
            Some(End::Failed(_))
        ));
        assert_eq!(end_in("{\"QMP\": {}}\n"), None);
    }
}
