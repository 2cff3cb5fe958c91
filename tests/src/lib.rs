//! What the tests that boot machines have in common: putting a machine together, and the list of
//! cases.
//!
//! A case boots tarpit with its modules and then talks to the console as an operator would:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let mut session = tests::tarpit("example").options("on-end=poweroff").boot()?;
//! session.wait_for("tarpit: version")?;
//! session.wait_for_end()?;
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Trial};
use xtask::build::{self, Built};
use xtask::image::{self, Contents};
use xtask::initramfs::{self, Shell};
use xtask::kernel::{self, Series};
use xtask::machine::{self, Boot, Kind, Spec};
use xtask::module::{Guest, LINUX_CONSOLE, Module};
use xtask::serial::Session;

/// Emulated seconds of this many instructions: a fast boot, with room for Linux's own ticks.
pub const IPS: u64 = 100_000_000;

/// A machine with tarpit that is being put together.
#[derive(Clone, Debug)]
pub struct Setup {
    spec: Spec,
    kind: Kind,
    options: String,
    modules: Vec<Module>,
    multiboot_1: bool,
}

/// The best machine here with tarpit and no guest. The case's name names the log files.
pub fn tarpit(case: &str) -> Setup {
    let name = case.replace("::", "-");
    Setup {
        spec: Spec {
            ips: IPS,
            ..Spec::from_iso(&name, Path::new(""))
        },
        kind: machine::best().kind,
        options: String::new(),
        modules: Vec::new(),
        multiboot_1: false,
    }
}

impl Setup {
    /// On this machine instead of the best.
    #[must_use]
    pub fn on(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// With this RAM in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.spec.memory_mib = mib;
        self
    }

    /// With so many physical CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.spec.cpus = cpus;
        self
    }

    /// With another length of an emulated second, in instructions.
    #[must_use]
    pub fn ips(mut self, ips: u64) -> Self {
        self.spec.ips = ips;
        self
    }

    /// With this command line for tarpit.
    #[must_use]
    pub fn options(mut self, options: &str) -> Self {
        options.clone_into(&mut self.options);
        self
    }

    /// With one more boot module.
    #[must_use]
    pub fn module(mut self, module: Module) -> Self {
        self.modules.push(module);
        self
    }

    /// With a guest kernel of our own, by its program's name under `guest-images/kernels`.
    ///
    /// # Errors
    /// When there is none of this name, or it does not compile.
    pub fn kernel(self, program: &str, guest: &Guest) -> Result<Self> {
        Ok(self.module(guest.kernel(built()?.kernel(program)?)))
    }

    /// With a stock Debian kernel and the workload. The guest's command line gets the console in
    /// front, and no other parameter.
    ///
    /// # Errors
    /// When the kernel cannot be fetched, or the workload does not compile.
    pub fn debian(self, series: Series, guest: &Guest) -> Result<Self> {
        let kernel = kernel::fetch(series)?;
        let initrd = initramfs::pack("workload", &built()?.workload, Shell::None)?;
        let command_line = format!("{LINUX_CONSOLE} {}", guest.command_line);
        let guest = guest.clone().command_line(command_line.trim_end());
        Ok(self
            .module(guest.kernel(&kernel))
            .module(Module::initrd(&initrd, &guest.name)))
    }

    /// Loaded by QEMU itself, which speaks multiboot 1, and without modules.
    #[must_use]
    pub fn by_multiboot_1(mut self) -> Self {
        self.multiboot_1 = true;
        self
    }

    /// Switches it on.
    ///
    /// # Errors
    /// When something cannot be built, or the emulator does not start.
    pub fn boot(mut self) -> Result<Session> {
        let tarpit = built()?.tarpit.clone();
        self.spec.boot = if self.multiboot_1 {
            Boot::Multiboot {
                image: tarpit,
                command_line: self.options,
            }
        } else {
            let options = self.options.split_whitespace().map(str::to_owned).collect();
            let contents = Contents::Tarpit {
                tarpit,
                options,
                modules: self.modules,
            };
            Boot::Iso(image::make(&self.spec.name, &contents, None)?)
        };
        Session::start(self.kind, &self.spec)
    }
}

/// All that is bootable, built once.
///
/// # Errors
/// When it does not compile.
pub fn built() -> Result<&'static Built> {
    static BUILT: OnceLock<Result<Built, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build::all().map_err(|error| format!("{error:#}")));
    built.as_ref().map_err(|error| anyhow!("{error}"))
}

/// A file of a case's own, below `target/images`, as a boot module needs it.
///
/// # Errors
/// When it cannot be written.
pub fn file(case: &str, name: &str, content: &[u8]) -> Result<PathBuf> {
    let directory = xtask::paths::images();
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{}-{name}", case.replace("::", "-")));
    std::fs::write(&path, content)?;
    Ok(path)
}

/// A test with a name of its own, which is what the case is called with.
pub type Case = (&'static str, fn(&str) -> Result<()>);

/// Names cases by their paths: `cases![boot::greets]` is the case `boot::greets`.
#[macro_export]
macro_rules! cases {
    ($($case:path),* $(,)?) => {
        &[$((stringify!($case), $case as fn(&str) -> ::anyhow::Result<()>)),*]
    };
}

/// Runs the cases as the command line says (see `--help`), and exits.
pub fn run(cases: &[Case]) -> ! {
    let arguments = Arguments::from_args();
    let trials = cases
        .iter()
        .map(|&(name, case)| Trial::test(name, move || Ok(case(name)?)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit()
}
