//! tarpit under QEMU/KVM where the machine's own KVM has no nested VMX: a Debian in Bochs has one,
//! since Bochs emulates VMX. So tarpit is a guest of KVM's there, and has a guest of its own: a kernel
//! of ours, or a Debian, one of whose processes is suppressed and released. Or, to compare, tarpit is left out, and
//! kernels of ours are KVM's guests.

mod bare;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::common::countdown::Countdown;
use super::common::subject::{Subject, VM as LINUX};
use super::{bench, quick};
use crate::testbed::build::{self, Built};
use crate::testbed::choice;
use crate::testbed::claim::Claim;
use crate::testbed::findings::Findings;
use crate::testbed::image::{self, Contents};
use crate::testbed::initramfs::{self, Program, Shell};
use crate::testbed::kernel::{self, Package, Series};
use crate::testbed::machine::{Boot, Hardware, Kind, Spec};
use crate::testbed::module::{Guest, LINUX_CONSOLE, Module};
use crate::testbed::progress::Step;
use crate::testbed::provision::Qemu;
use crate::testbed::serial::Session;
use crate::testbed::{Setup, options};

/// KVM, as modprobe names it.
const KVM: &str = "kvm_intel";

/// The firmware that QEMU loads to start a multiboot kernel.
const FIRMWARE: [&str; 4] = [
    "bios-256k.bin",
    "kvmvapic.bin",
    "multiboot.bin",
    "multiboot_dma.bin",
];

/// The archive's directory for what is ours.
const OURS: &str = "tarpit";

/// The Debian guest's RAM disk there.
const INITRD: &str = "/tarpit/initrd";

/// Instructions in a second, unless told otherwise.
const IPS: &str = "500000000";

/// The longest time that a kernel may take: three levels of machines, on a busy one.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The kernels that run unless told otherwise.
const KERNELS: [&str; 5] = ["exits", "modes", "tasks", "apic", bench::GUEST];

/// The beginning of what the Debian in between does.
const BEGINNING: &str = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\n\
    mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
    for module in /modules/*.ko; do insmod $module; done\n";

/// Its end, which leaves the serial line time for what has been said.
const END: &str = "sleep 1\npoweroff -f\n";

/// QEMU, as all machines there have it.
const QEMU: &str =
    "qemu-system-x86_64 -nodefaults -display none -no-reboot -accel kvm -cpu host -L /tarpit";

/// Which kernels, and how.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value(IPS).help("Instructions that make a second of emulated time")))]
pub struct Options {
    /// Kernels of ours, one after the other (`timers` takes long); `debian` is the experiment `quick`,
    /// which takes a quarter of an hour and does not pass yet [default: exits modes tasks apic bench; with --bare: bench]
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// Run the kernels under QEMU/KVM itself, without tarpit: what KVM makes of the same in the same emulator
    ///
    /// `bench` has a disk there, and with another one a network of taps, a bridge and vhost. What it measures is printed
    /// as by `cargo xtask bench`, beside the numbers of KVM's that are recorded there, and written to
    /// target/bench-kvm.json. `exits` does not come to an end: it has instructions access devices that KVM does not
    /// emulate there, so that QEMU stands still.
    #[arg(long)]
    bare: bool,
    /// Let the processor virtualize the guests' local APICs
    ///
    /// Off by default: Bochs has no posted interrupts, and without them KVM does not pass on which
    /// ends of interrupts tarpit wants to hear of (its `cpu_has_vmx_apicv`), so that level-triggered
    /// interrupts come once and never again. Processors that have the one have the other.
    #[arg(long, conflicts_with = "bare")]
    virtual_apic: bool,
    #[command(flatten)]
    speed: options::Speed,
}

impl Options {
    /// Returns the kernels that are to run.
    fn kernels(&self) -> Vec<&str> {
        match (self.kernels.as_slice(), self.bare) {
            ([], false) => KERNELS.to_vec(),
            ([], true) => vec![bench::GUEST],
            (given, _) => given.iter().map(String::as_str).collect(),
        }
    }

    /// Returns tarpit's.
    fn tarpit(&self) -> String {
        let virtual_apic = if self.virtual_apic { "on" } else { "off" };
        format!("on-end=poweroff virtual-apic={virtual_apic}")
    }

    /// Returns what the Debian in between does.
    fn init(&self) -> Result<String> {
        let mut script = BEGINNING.to_owned();
        for kernel in self.kernels() {
            // QEMU's commas are between modules.
            let modules: Vec<String> = modules(kernel)
                .iter()
                .map(|Module { file, command_line }| {
                    format!("{} {command_line}", file.display()).replace(',', ",,")
                })
                .collect();
            writeln!(
                script,
                "echo\n{QEMU} -m 512M -serial stdio -kernel /{OURS}/tarpit -append '{}' \
                 -initrd '{}' </dev/console",
                self.tarpit(),
                modules.join(",")
            )?;
        }
        script.push_str(END);
        Ok(script)
    }
}

/// Returns the experiment that is made on a Debian.
fn experiment() -> quick::Options {
    quick::Options::default()
}

/// Returns the boot modules of a kernel's VM, where they are in the archive.
fn modules(kernel: &str) -> Vec<Module> {
    let file = PathBuf::from(format!("/{OURS}/{kernel}"));
    if kernel == LINUX {
        let guest = experiment().linux().booted();
        let setup = Setup::new(kernel).linux(&file, Path::new(INITRD), &guest);
        return setup.modules().to_vec();
    }
    let guest = Guest {
        memory_mib: 32,
        ..Guest::new(kernel)
            .command_line(words(kernel))
            .with_test_devices()
    };
    vec![guest.kernel(&file)]
}

/// Returns what a kernel is told to leave out, since KVM does not do it as a processor does.
fn words(kernel: &str) -> &'static str {
    match kernel {
        "exits" => "sysenter-unchecked",
        "apic" => "no-nmi",
        _ => "",
    }
}

/// Returns where a file of ours is in the archive.
fn place(name: &str) -> String {
    format!("{OURS}/{name}")
}

/// Returns tarpit and its guests for the Debian in between.
fn programs(options: &Options, built: &Built, package: &Package) -> Result<Vec<Program>> {
    let mut programs = vec![Program::copy(&built.tarpit, place("tarpit"))?];
    for kernel in options.kernels() {
        if kernel == LINUX {
            let initrd = initramfs::pack("workload", &built.workload, Shell::None)?;
            programs.push(Program::copy(&initrd, INITRD.trim_start_matches('/'))?);
            programs.push(Program::copy(&package.image, place(kernel))?);
        } else {
            programs.push(Program::copy(built.kernel(kernel)?, place(kernel))?);
        }
    }
    Ok(programs)
}

/// The Debian in which QEMU and KVM run.
struct Debian<'a> {
    /// Its kernel, with the modules.
    package: &'a Package,
    /// The modules that it loads, as modprobe names them.
    modules: &'a [&'a str],
    /// The kernel's parameters, beside its console.
    parameters: &'a str,
    /// The script of what it does.
    init: String,
    /// The files that it has beside QEMU and busybox.
    programs: Vec<Program>,
}

impl Debian<'_> {
    /// Boots it in Bochs, up to where it does what it is to do. `name` names the run's files.
    ///
    /// # Errors
    /// When a file is missing or cannot be written, or the machine cannot be started.
    fn boot(self, name: &str, ips: u64) -> Result<Session> {
        let step = Step::begin("Packing QEMU, KVM and kernels");
        let mut programs = self.programs;
        programs.push(Program {
            path: "init".to_owned(),
            data: self.init.into_bytes(),
        });
        programs.push(Program::busybox()?);
        programs.extend(Program::modules(&self.package.modules(self.modules)?)?);
        let qemu = Qemu::ensure()?;
        for name in FIRMWARE {
            programs.push(Program::copy(&qemu.firmware(name)?, place(name))?);
        }
        for (file, place) in qemu.files()? {
            programs.push(Program::copy(&file, place)?);
        }
        let contents = Contents::Linux {
            kernel: self.package.image.clone(),
            initrd: initramfs::pack_programs(name, &programs)?,
            command_line: format!("{LINUX_CONSOLE} {}", self.parameters)
                .trim_end()
                .to_owned(),
        };
        drop(step);
        let spec = Spec {
            name: name.to_owned(),
            boot: Boot::Iso(image::make(name, &contents, None)?),
            hardware: Hardware {
                ips,
                ..Hardware::default()
            },
            detector: false,
        };
        let _step = Step::begin("Booting Linux with QEMU/KVM in Bochs");
        let mut session = Session::start(Kind::Bochs, &spec)?.patience(PATIENCE);
        session.wait_for("Run /init")?;
        Ok(session)
    }
}

/// Makes the experiment on the Debian that is about to boot. True if it met its requirements.
fn suppress_in_linux(session: Session) -> Result<(Session, bool)> {
    let options = experiment();
    let linux = [options.linux()];
    let mut countdown = Countdown::begin(LINUX, "Experiment quick there", options.host_seconds());
    countdown.phase("booting");
    let mut subject = Subject::take_over(session, &linux, &mut countdown)?;
    let outcome = quick::observe(&mut subject, Kind::QemuKvm, &options, &mut countdown)?;
    println!("{outcome}");
    for miss in outcome.misses() {
        println!("MISSED: {miss}");
    }
    Ok((subject.leave()?, outcome.misses().is_empty()))
}

/// Follows a kernel to its end and prints what it found. True if that is no failure.
fn passes(session: &mut Session, kernel: &str) -> Result<bool> {
    let findings = Findings::follow(session, kernel)?;
    println!("{kernel}: {findings}");
    Ok(findings.are_good())
}

/// Runs the kernels and prints what each found. True if all ended without a failure.
///
/// # Errors
/// When something cannot be built, fetched or started, or a machine ends before its time.
pub fn run(options: &Options) -> Result<bool> {
    choice::ensure_installed(Kind::Bochs)?;
    let built = build::all()?;
    let package = kernel::fetch_with_modules(Series::default())?;
    let claim = Claim::new("nested")?;
    if options.bare {
        return bare::run(claim.name(), options, built, &package);
    }
    let debian = Debian {
        package: &package,
        modules: &[KVM],
        parameters: "",
        init: options.init()?,
        programs: programs(options, built, &package)?,
    };
    let mut session = debian.boot(claim.name(), options.speed.ips)?;
    let step = Step::begin("Running tarpit in QEMU/KVM in Linux in Bochs");
    let mut passed = true;
    for kernel in options.kernels() {
        step.detail(kernel);
        if kernel == LINUX {
            let (back, has_passed) = suppress_in_linux(session)?;
            session = back;
            passed &= has_passed;
        } else {
            passed &= passes(&mut session, kernel)?;
        }
    }
    session.wait_for_end()?;
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn each_kernel_is_a_guest_of_a_tarpit_of_its_own() -> Result<()> {
        let options = Line::try_parse_from(["nested", "exits", "apic"])?.options;
        let script = options.init()?;
        assert_eq!(script.matches("-kernel /tarpit/tarpit").count(), 2);
        assert!(script.contains(
            "-initrd '/tarpit/apic kernel vm=apic mem=32M vcpus=1 test-devices -- no-nmi'"
        ));
        assert!(script.contains("virtual-apic=off"));
        let kvm = script.find("insmod");
        assert!(kvm.is_some() && kvm < script.find("qemu-system"));
        Ok(())
    }

    #[test]
    fn without_tarpit_it_is_bench_that_runs_unless_told_otherwise() -> Result<()> {
        let kernels = |line: &[&str]| -> Result<String> {
            Ok(Line::try_parse_from(line)?.options.kernels().join(" "))
        };
        assert_eq!(kernels(&["nested"])?, KERNELS.join(" "));
        assert_eq!(kernels(&["nested", "--bare"])?, "bench");
        assert_eq!(kernels(&["nested", "--bare", "exits"])?, "exits");
        assert!(Line::try_parse_from(["nested", "--bare", "--virtual-apic"]).is_err());
        Ok(())
    }

    #[test]
    fn a_debian_has_its_ram_disk_and_its_commas() -> Result<()> {
        let script = Line::try_parse_from(["nested", "debian"])?.options.init()?;
        let initrd = script.split("-initrd '").nth(1).context("no -initrd")?;
        assert!(initrd.starts_with("/tarpit/debian kernel vm=debian mem=256M"));
        assert!(initrd.contains("console=ttyS0,,115200"), "{initrd}");
        assert!(
            initrd.contains(",/tarpit/initrd initrd vm=debian'"),
            "{initrd}"
        );
        Ok(())
    }
}
