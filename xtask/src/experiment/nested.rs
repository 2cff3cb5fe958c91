//! tarpit under QEMU/KVM where the machine's own KVM has no nested VMX: a Debian in Bochs has one,
//! since Bochs emulates VMX. So tarpit is a guest of KVM's there, and has a guest of its own: a kernel
//! of ours, or a Debian, one of whose processes is suppressed and released.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::common::countdown::Countdown;
use super::common::subject::{Subject, VM as LINUX};
use super::quick;
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

/// Which kernels, and how.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("ips", |ips| ips.default_value(IPS).help("Instructions that make a second of emulated time")))]
pub struct Options {
    /// Kernels of ours, one after the other (`timers` takes long); `debian` is the experiment `quick`,
    /// which takes a quarter of an hour and does not pass yet
    #[arg(value_name = "KERNEL", default_values = ["exits", "modes", "tasks", "apic", "bench"])]
    kernels: Vec<String>,
    /// Let the processor virtualize the guests' local APICs
    ///
    /// Off by default: Bochs has no posted interrupts, and without them KVM does not pass on which
    /// ends of interrupts tarpit wants to hear of (its `cpu_has_vmx_apicv`), so that level-triggered
    /// interrupts come once and never again. Processors that have the one have the other.
    #[arg(long)]
    virtual_apic: bool,
    #[command(flatten)]
    speed: options::Speed,
}

impl Options {
    /// Returns tarpit's.
    fn tarpit(&self) -> String {
        let virtual_apic = if self.virtual_apic { "on" } else { "off" };
        format!("on-end=poweroff virtual-apic={virtual_apic}")
    }

    /// Returns what the Debian in between does.
    fn init(&self) -> Result<String> {
        let mut script = String::from(
            "#!/bin/busybox sh\n/bin/busybox --install -s /bin\n\
             mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n\
             for module in /modules/*.ko; do insmod $module; done\n",
        );
        for kernel in &self.kernels {
            // QEMU's commas are between modules.
            let modules: Vec<String> = modules(kernel)
                .iter()
                .map(|Module { file, command_line }| {
                    format!("{} {command_line}", file.display()).replace(',', ",,")
                })
                .collect();
            writeln!(
                script,
                "echo\nqemu-system-x86_64 -nodefaults -display none -no-reboot -accel kvm -cpu host \
                 -m 512M -serial stdio -L /{OURS} -kernel /{OURS}/tarpit -append '{}' \
                 -initrd '{}' </dev/console",
                self.tarpit(),
                modules.join(",")
            )?;
        }
        script.push_str("poweroff -f\n");
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

/// Returns what a kernel is told to leave out, since what is below tarpit does not do it as a
/// processor does.
fn words(kernel: &str) -> &'static str {
    match kernel {
        "exits" => "sysenter-unchecked",
        "apic" => "no-nmi",
        _ => "",
    }
}

/// Returns all that the Debian in between needs.
fn programs(options: &Options, built: &Built, package: &Package) -> Result<Vec<Program>> {
    let ours = |name: &str| format!("{OURS}/{name}");
    let mut programs = vec![
        Program {
            path: "init".to_owned(),
            data: options.init()?.into_bytes(),
        },
        Program::busybox()?,
        Program::copy(&built.tarpit, ours("tarpit"))?,
    ];
    for kernel in &options.kernels {
        if kernel == LINUX {
            let initrd = initramfs::pack("workload", &built.workload, Shell::None)?;
            programs.push(Program::copy(&initrd, INITRD.trim_start_matches('/'))?);
            programs.push(Program::copy(&package.image, ours(kernel))?);
        } else {
            programs.push(Program::copy(built.kernel(kernel)?, ours(kernel))?);
        }
    }
    programs.extend(Program::modules(&package.modules(&[KVM])?)?);
    let qemu = Qemu::ensure()?;
    for name in FIRMWARE {
        programs.push(Program::copy(&qemu.firmware(name)?, ours(name))?);
    }
    for (file, place) in qemu.files()? {
        programs.push(Program::copy(&file, place)?);
    }
    Ok(programs)
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

/// Runs the kernels and prints what each found. True if all ended without a failure.
///
/// # Errors
/// When something cannot be built, fetched or started, or a machine ends before its time.
pub fn run(options: &Options) -> Result<bool> {
    choice::ensure_installed(Kind::Bochs)?;
    let built = build::all()?;
    let package = kernel::fetch_with_modules(Series::default())?;
    let claim = Claim::new("nested")?;
    let initrd = {
        let _step = Step::begin("Packing QEMU, KVM and tarpit");
        initramfs::pack_programs(claim.name(), &programs(options, built, &package)?)?
    };
    let contents = Contents::Linux {
        kernel: package.image,
        initrd,
        command_line: LINUX_CONSOLE.to_owned(),
    };
    let spec = Spec {
        name: claim.name().to_owned(),
        boot: Boot::Iso(image::make(claim.name(), &contents, None)?),
        hardware: Hardware {
            ips: options.speed.ips,
            ..Hardware::default()
        },
        detector: false,
    };
    let step = Step::begin("Running tarpit in QEMU/KVM in Linux in Bochs");
    let mut session = Session::start(Kind::Bochs, &spec)?.patience(PATIENCE);
    step.detail("booting Linux");
    session.wait_for("Run /init")?;
    let mut passed = true;
    for kernel in &options.kernels {
        step.detail(kernel.as_str());
        if kernel == LINUX {
            let (back, has_passed) = suppress_in_linux(session)?;
            session = back;
            passed &= has_passed;
        } else {
            let findings = Findings::follow(&mut session, kernel)?;
            println!("{kernel}: {findings}");
            passed &= findings.are_good();
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
