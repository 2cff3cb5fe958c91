//! `cargo xtask run`: boots tarpit and gives the user its console.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::guest;
use super::terminal::{self, Left};
use crate::testbed::claim::Claim;
use crate::testbed::machine::{Boot, End, Hardware, Kind, Spec};
use crate::testbed::provision::disk_space;
use crate::testbed::relay::Relay;
use crate::testbed::serial::{Fatal, Session, fatal_line};
use crate::testbed::verdict::VmEnd;
use crate::testbed::{options, paths};

const IPS_HELP: &str = "\
Bochs: instructions that make a second of emulated time. Less boots faster (100000000 takes under a \
minute), more gives a shortened tick of the guest room for more instructions";

/// What to run, and on what.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    #[command(flatten)]
    machine: MachineOptions,
    /// Let detectors talk to tarpit by COM2: `ctl`, `top`, `exporter` and your own connect to a socket
    /// in target/logs (a CD given by --iso needs the option `detector=on`)
    #[arg(long)]
    detector: bool,
    /// Boot this CD as it is, and build nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "kernel", "initrd", "multiboot", "ticks"])]
    iso: Option<PathBuf>,
    #[command(flatten)]
    guest: guest::Options,
}

/// The machine, as the user describes it.
#[derive(Args, Clone, Copy, Debug)]
#[command(mut_arg("ips", |ips| ips.help(IPS_HELP)))]
pub(super) struct MachineOptions {
    #[command(flatten)]
    emulator: options::Machine,
    /// Physical CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: u32,
    /// RAM of the machine in MiB; by default what the guest takes and 512, at least 1024
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..=65536))]
    machine_memory: Option<u32>,
    #[command(flatten)]
    speed: options::Speed,
    #[command(flatten)]
    exit_cost: options::ExitCost,
}

/// Boots, and stays until the machine ends or the user quits. Gives the exit status.
///
/// # Errors
/// When something cannot be built or started, or tarpit halts because it cannot run.
pub(super) fn run(options: &Options) -> Result<u8> {
    let claim = Claim::new("run")?;
    let (iso, vm) = match &options.iso {
        Some(iso) => (iso.clone(), None),
        None => {
            disk_space::ensure(disk_space::FOR_RUN)?;
            let (setup, vm) = options.guest.setup(claim.name())?;
            let setup = setup.exit_cost(options.machine.exit_cost.ticks);
            let iso = if options.detector {
                setup.detector()
            } else {
                setup
            }
            .image(None)?;
            eprintln!("Image: {}", paths::shown(&iso));
            (iso, options.guest.multiboot.is_some().then_some(vm))
        }
    };
    let MachineOptions {
        emulator,
        cpus,
        machine_memory,
        speed,
        ..
    } = options.machine;
    let kind = emulator.pick()?;
    if kind == Kind::Bochs {
        let ips = speed.ips;
        eprintln!("Bochs: {ips} instructions make a second of emulated time");
    }
    let spec = Spec {
        name: claim.name().to_owned(),
        boot: Boot::Iso(iso),
        hardware: Hardware {
            memory_mib: machine_memory.unwrap_or_else(|| (options.guest.memory + 512).max(1024)),
            cpus,
            ips: speed.ips,
            ..Hardware::default()
        },
        detector: options.detector,
    };
    let mut session = Session::start(kind, &spec)?;
    let line = session.machine().take_detector();
    let relay = line
        .map(|line| Relay::start(claim.name(), line))
        .transpose()?;
    if let Some(relay) = &relay {
        let path = paths::shown(relay.path());
        eprintln!("Detectors: `cargo xtask ctl`, `top` and `exporter` with `--connect {path}`");
    }
    eprintln!(
        "Console (Ctrl-A x quits; transcript in {}):",
        paths::shown(&session.machine().files().console)
    );

    let mut fatal = None;
    let mut vm_end = None;
    let left = terminal::relay(&mut session, |line| {
        fatal = fatal_line(line).map(|line| Fatal(line.to_owned()));
        vm_end = vm.as_deref().and_then(|vm| VmEnd::from_line(line, vm));
        fatal.is_some() || vm_end.is_some()
    })?;
    if let Some(fatal) = fatal {
        return Err(fatal.into());
    }
    if let Some(end) = vm_end {
        let status = end.status();
        eprintln!("The guest ended: {end:?}; exit status {status}");
        return Ok(status);
    }
    if left == Left::Quit {
        eprintln!("\nQuit.");
        return Ok(0);
    }
    let end = session.machine().wait(Duration::from_secs(10))?;
    eprintln!("The machine {}", how(&end));
    Ok(match end {
        // A test guest that ended without a word has not passed.
        End::PoweredOff { .. } if vm.is_none() => 0,
        _ => 4,
    })
}

fn how(end: &End) -> String {
    match end {
        End::Failed(why) => format!("failed: {why}"),
        other => format!("ended: {other}"),
    }
}
