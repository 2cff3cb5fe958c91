//! What a user can say about a machine and its guests. Each option that several commands take is
//! defined here once; commands flatten them into their own.
//!
//! A command with another default says so where it flattens the option:
//! `#[command(mut_arg("ips", |ips| ips.default_value("250000000")))]`.

use anyhow::Result;
use clap::Args;

use crate::testbed::choice::{self, Wish};
use crate::testbed::kernel::Series;
use crate::testbed::machine::{DEFAULT_IPS, Kind};

/// Which emulator.
#[derive(Args, Clone, Copy, Debug, Default)]
#[group(skip)]
pub struct Machine {
    /// Which emulator; by default QEMU where KVM really offers nested VMX, else Bochs
    #[arg(long = "machine", value_name = "NAME")]
    wish: Option<Wish>,
}

impl Machine {
    /// Chooses one, says which and why, and installs it if it is missing.
    ///
    /// # Errors
    /// When its packages are missing and cannot be installed.
    pub fn pick(self) -> Result<Kind> {
        choice::pick(self.wish)
    }
}

/// How fast Bochs is.
#[derive(Args, Clone, Copy, Debug)]
#[group(skip)]
pub struct Speed {
    /// Bochs: instructions that make a second of emulated time
    #[arg(long, value_name = "N", default_value_t = DEFAULT_IPS, value_parser = clap::value_parser!(u64).range(1_000_000..=4_000_000_000))]
    pub ips: u64,
}

impl Default for Speed {
    fn default() -> Self {
        Self { ips: DEFAULT_IPS }
    }
}

/// What an exit from a guest costs.
#[derive(Args, Clone, Copy, Debug, Default)]
#[group(skip)]
pub struct ExitCost {
    /// Ticks that each exit takes on top: a model of hardware, where an exit takes 1000 to 2000, or of
    /// a hypervisor below tarpit, with 20000 to 60000
    #[arg(long = "exit-cost", value_name = "TICKS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    pub ticks: u64,
}

/// Which Linux.
#[derive(Args, Clone, Copy, Debug, Default)]
#[group(skip)]
pub struct Kernel {
    /// Debian kernel
    #[arg(long = "kernel-series", default_value = Series::default().name(), value_name = "SERIES")]
    pub series: Series,
}

/// How many machines may run at the same time.
#[derive(Args, Clone, Copy, Debug)]
#[group(skip)]
pub struct Jobs {
    /// Machines that run at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub jobs: u32,
}

/// What becomes of a table.
#[derive(Args, Clone, Copy, Debug)]
#[group(skip)]
pub struct Results {
    /// Put the table into docs/results.md
    #[arg(long = "update-results", alias = "update-readme")]
    pub update: bool,
}
