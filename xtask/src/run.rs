//! `cargo xtask run`: boots tarpit and gives the user its console.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::bundle;
use crate::claim::Claim;
use crate::machine::{self, DEFAULT_IPS, End, Spec, Wish};
use crate::paths;
use crate::serial::{Fatal, Session, fatal_line};
use crate::terminal::{self, Left};
use crate::verdict::VmEnd;

/// What to run, and on what.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    machine: MachineOptions,
    /// Boot this CD as it is, and build nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "kernel", "initrd", "multiboot"])]
    iso: Option<PathBuf>,
    #[command(flatten)]
    bundle: bundle::Options,
}

/// The machine, as the user describes it.
#[derive(Args, Clone, Debug)]
pub struct MachineOptions {
    /// Which emulator; by default QEMU where KVM really offers nested VMX, else Bochs
    #[arg(long, value_name = "NAME")]
    machine: Option<Wish>,
    /// Physical CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: u32,
    /// RAM of the machine in MiB; by default what the guest takes and 512, at least 1024
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..=65536))]
    machine_memory: Option<u32>,
    /// Bochs: instructions that make a second of emulated time. Less boots faster (100000000
    /// takes under a minute), more gives a shortened tick of the guest room for more
    /// instructions
    #[arg(long, value_name = "N", default_value_t = DEFAULT_IPS, value_parser = clap::value_parser!(u64).range(1_000_000..=4_000_000_000))]
    ips: u64,
}

/// Boots, and stays until the machine ends or the user quits. Gives the exit status.
///
/// # Errors
/// When something cannot be built or started, or tarpit halts because it cannot run.
pub fn run(options: &Options) -> Result<u8> {
    let claim = Claim::new("run")?;
    let (iso, vm) = match &options.iso {
        Some(iso) => (iso.clone(), None),
        None => {
            let bundle = bundle::make(claim.name(), &options.bundle, None)?;
            (
                bundle.iso,
                options.bundle.multiboot.is_some().then_some(bundle.vm),
            )
        }
    };
    let kind = machine::pick(options.machine.machine)?;
    if kind == machine::Kind::Bochs {
        eprintln!(
            "Bochs: {} instructions make a second of emulated time",
            options.machine.ips
        );
    }
    let spec = Spec {
        memory_mib: options
            .machine
            .machine_memory
            .unwrap_or_else(|| (options.bundle.memory + 512).max(1024)),
        cpus: options.machine.cpus,
        ips: options.machine.ips,
        ..Spec::from_iso(claim.name(), &iso)
    };
    let mut session = Session::start(kind, &spec)?;
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
