//! The stock Linux on the bare machine, without tarpit: what overheads are measured against.

use anyhow::Result;
use clap::Args;

use crate::testbed::choice;
use crate::testbed::claim::Claim;
use crate::testbed::image::{self, Contents};
use crate::testbed::initramfs::{self, Shell};
use crate::testbed::machine::{Boot, End, Hardware, Kind, Spec};
use crate::testbed::module::LINUX_CONSOLE;
use crate::testbed::progress::Step;
use crate::testbed::serial::{PATIENCE, Session};
use crate::testbed::{build, kernel, options, paths};

/// The parameter for the guest's program: to boot, and then to do nothing.
pub const WORKLOAD: &str = "workload.mode=idle";

/// Which kernel, and how fast the machine is.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(mut_arg("ips", |ips| ips.help("Instructions that make a second of emulated time")))]
pub struct Options {
    /// Which Linux.
    #[command(flatten)]
    pub kernel: options::Kernel,
    /// How fast Bochs is.
    #[command(flatten)]
    pub speed: options::Speed,
}

/// The times of events in a boot, in Bochs's ticks (instructions) since power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootTicks {
    /// The kernel's first line.
    pub kernel: u64,
    /// The first line from userland.
    pub userland: u64,
}

impl BootTicks {
    /// Follows a Linux with the workload in this session from power-on to userland.
    ///
    /// # Errors
    /// When it does not get there, or the machine is not Bochs.
    pub fn measure(session: &mut Session) -> Result<Self> {
        session.wait_for("Linux version")?;
        let kernel = session.machine().ticks()?;
        session.wait_for("workload: userland")?;
        let userland = session.machine().ticks()?;
        Ok(Self { kernel, userland })
    }

    /// Returns the time from the kernel's first line to userland.
    pub fn since_kernel(self) -> u64 {
        self.userland.saturating_sub(self.kernel)
    }
}

/// Boots the stock kernel with the idle workload in Bochs, to userland and to power-off.
///
/// # Errors
/// When something cannot be built or fetched, or the boot fails.
pub fn measure(options: &Options) -> Result<BootTicks> {
    choice::ensure_installed(Kind::Bochs)?;
    let contents = Contents::Linux {
        kernel: kernel::fetch(options.kernel.series)?,
        initrd: initramfs::pack("baseline", &build::workload()?, Shell::None)?,
        command_line: format!("{LINUX_CONSOLE} {WORKLOAD}"),
    };
    let claim = Claim::new("baseline")?;
    let iso = image::make(claim.name(), &contents, None)?;
    let spec = Spec {
        name: claim.name().to_owned(),
        boot: Boot::Iso(iso),
        hardware: Hardware {
            ips: options.speed.ips,
            ..Hardware::default()
        },
        detector: false,
    };
    let step = Step::begin(format!(
        "Booting Linux {} in Bochs without tarpit, {} instructions a second",
        options.kernel.series.name(),
        options.speed.ips
    ));
    let mut session = Session::start(Kind::Bochs, &spec)?.patience(PATIENCE * 5);
    let ticks = BootTicks::measure(&mut session)?;
    step.detail("in userland");
    session.wait_for("workload: ready")?;
    session.send_line("poweroff")?;
    match session.wait_for_end()? {
        End::PoweredOff { .. } => Ok(ticks),
        end => anyhow::bail!(
            "{end} (log: {})",
            paths::shown(&session.machine().files().emulator)
        ),
    }
}

/// Measures and prints.
///
/// # Errors
/// As [`measure`].
pub fn run(options: &Options) -> Result<()> {
    let ticks = measure(options)?;
    let BootTicks { kernel, userland } = ticks;
    println!(
        "Linux {} without tarpit, in ticks:",
        options.kernel.series.name()
    );
    println!("  power-on to the kernel's first line {kernel:>14}");
    println!("  power-on to userland                {userland:>14}");
    println!(
        "  first line to userland              {:>14}",
        ticks.since_kernel()
    );
    Ok(())
}
