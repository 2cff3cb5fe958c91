//! `cargo xtask`: the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::experiment::{self, Experiment, baseline, bench, nested};
use crate::testbed::{build, paths};

mod clean;
mod compress_disk;
mod ctl;
mod dependencies;
mod exporter;
mod fuzz;
mod guest;
mod run;
mod tally;
mod terminal;
mod test;
mod top;

/// Builds, runs and tests tarpit
///
/// Each command sets up what it needs: Debian packages (as root; otherwise it prints the command
/// to run), the Rust target and a stock Debian kernel, which is fetched once into
/// target/downloads and never installed.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    max_term_width = 100,
    after_help = "Exit status: 0 for success, 1 if a test failed, 2 for an error; `run --help` tells \
                  those of a guest.\n\nExamples:\n  \
                  cargo xtask run                        a Debian guest, console in this terminal\n  \
                  cargo xtask run --vcpus 2 --cpus 2     with two VCPUs on two physical CPUs\n  \
                  cargo xtask run --multiboot tsc.flat --append verbose\n  \
                  cargo xtask experiment quick           one process suppressed, then released\n  \
                  cargo xtask image --output tarpit.iso  for another machine\n  \
                  cargo xtask test                       everything; ends with `N passed, N failed, N skipped`"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile tarpit and its guests (release, x86_64-unknown-none)
    Build,
    /// Make a bootable CD: GRUB, tarpit and a guest as boot modules
    Image(ImageOptions),
    /// Compress a disk image, so that a boot loader has less to load
    ///
    /// Of a raw image it makes a qcow2 image, which `run --disk` and the boot module `disk` take as they do raw
    /// ones. A guest unpacks what it reads; so a system that is compressed already is best left as it is. What
    /// `qemu-img convert -O qcow2 -c` makes is as good.
    CompressDisk(compress_disk::Options),
    /// Build all, boot it on the best machine here, and open its serial console
    ///
    /// On a terminal the console is live: every key goes to the machine but Ctrl-A, which is the
    /// escape: Ctrl-A x quits, Ctrl-A a types Ctrl-A. Elsewhere the console is only shown. All of
    /// it is kept in target/logs/run.console. Several runs can go on at the same time.
    ///
    /// Exit status: 0 when the machine was switched off or the user quit; 2 for an error of xtask
    /// or when tarpit says that it cannot run (`tarpit: fatal: ...`); 4 when the machine crashed.
    /// With --multiboot the status is the guest's result: (v << 1) | 1 for a value v that it
    /// writes to port 0xf4 (so success, 0, is status 1, as with QEMU's isa-debug-exit and
    /// kvm-unit-tests), 0 for a power-off, 4 for any other end.
    Run(run::Options),
    /// Run every test: format, lints, host tests, then machines in the emulator
    Test(test::Options),
    /// Feed parsers, devices and the emulator with inputs that nobody thought of, for a time
    ///
    /// The targets are tests in modules called `fuzz`. Among the other tests each has a few inputs that are the
    /// same each time; here libFuzzer looks for inputs that reach new code. They are kept in target/fuzz-inputs,
    /// and the next run goes on from them. Exit status 1 where a target failed.
    Fuzz(fuzz::Options),
    /// Measure a stock Linux's boot in Bochs without tarpit, in ticks
    Baseline(baseline::Options),
    /// Measure what a guest's operations cost under tarpit, in ticks
    ///
    /// Prints them beside what Linux KVM takes in the same emulator and writes target/bench.json.
    /// Exit status 1 where one costs more than it may. With --exits: which exits a Linux has that idles,
    /// computes, makes system calls, switches, faults and prints, and how many.
    Bench(bench::Options),
    /// Try tarpit under QEMU/KVM on a machine without nested VMX: in a Debian in Bochs
    ///
    /// Linux's KVM runs tarpit in a virtual machine, by nested VMX on the VMX that Bochs emulates.
    /// Each kernel of ours is a guest of tarpit's there; QEMU, KVM's modules and all else come from
    /// Debian's packages. Exit status 1 where a kernel finds a failure. With --bare the kernels are KVM's
    /// guests themselves, to compare.
    Nested(nested::Options),
    /// Make an experiment on a guest, and write what came out to target/experiments
    #[command(subcommand)]
    Experiment(Experiment),
    /// Give a command to a tarpit that runs, by its line for detectors, and print the answer
    ///
    /// For a tarpit with the option `detector=on`: that of `cargo xtask run --detector`, or any other,
    /// by --connect. Exit status 2 where the command is refused.
    Ctl(ctl::Options),
    /// Watch a tarpit that runs: its VMs, processes, targets and rules, with keys to suppress and release
    Top(top::Options),
    /// Serve Prometheus the metrics of one or many tarpits, by HTTP
    Exporter(exporter::Options),
    /// Remove images and logs (and downloads, if told)
    Clean(clean::Options),
}

#[derive(Args)]
struct ImageOptions {
    /// Where to write it [default: target/images/tarpit.iso]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    guest: guest::Options,
}

/// Does what the command line says, and gives the exit status.
pub fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            // Not 1: that is a test kernel's success (see `run --multiboot`).
            ExitCode::from(2)
        }
    }
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Build => {
            let built = build::all()?;
            for path in [&built.tarpit, &built.workload]
                .into_iter()
                .chain(&built.kernels)
            {
                println!("{}", paths::shown(path));
            }
        }
        Command::Image(options) => {
            let (setup, _) = options.guest.setup("tarpit")?;
            let iso = setup.image(options.output.as_deref())?;
            eprintln!("Image: {}", paths::shown(&iso));
        }
        Command::CompressDisk(options) => compress_disk::run(&options)?,
        Command::Run(options) => return run::run(&options),
        Command::Test(options) => return Ok(u8::from(!test::run(&options)?)),
        Command::Fuzz(options) => return Ok(u8::from(!fuzz::run(&options)?)),
        Command::Baseline(options) => baseline::run(&options)?,
        Command::Bench(options) => return Ok(u8::from(!bench::run(&options)?)),
        Command::Nested(options) => return Ok(u8::from(!nested::run(&options)?)),
        Command::Experiment(experiment) => {
            return Ok(u8::from(!experiment::run(&experiment)?));
        }
        Command::Ctl(options) => ctl::run(&options)?,
        Command::Top(options) => top::run(&options)?,
        Command::Exporter(options) => exporter::run(&options)?,
        Command::Clean(options) => clean::run(options)?,
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_for_tarpit_is_all_that_follows() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|_| ());
        assert!(parse("xtask ctl suppress web 0x1000 50 --cap 0.5").is_ok());
        assert!(parse("xtask ctl --connect host:1 --json vms").is_ok());
        assert!(parse("xtask ctl").is_err());
        assert!(parse("xtask ctl --follow").is_ok());
        assert!(parse("xtask exporter --connect a=host:1 --connect /dev/ttyS1").is_ok());
        assert!(parse("xtask run --detector").is_ok());
        assert!(parse("xtask fuzz").is_ok());
        assert!(parse("xtask fuzz options vm_config --seconds 300").is_ok());
        assert!(parse("xtask fuzz --seconds 0").is_err());
        assert!(parse("xtask compress-disk disk.img disk.qcow2").is_ok());
        assert!(parse("xtask compress-disk disk.img").is_err());
    }

    #[test]
    fn a_multiboot_guest_takes_no_other_kernel() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|_| ());
        assert!(parse("xtask run --multiboot tsc.flat --append verbose").is_ok());
        assert!(parse("xtask run --multiboot tsc.flat --kernel vmlinuz").is_err());
        assert!(parse("xtask run --vcpus 0").is_err());
        assert!(parse("xtask run --ips 0").is_err());
    }
}
