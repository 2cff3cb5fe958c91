//! How the run of a machine ends, and what it leaves behind.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::testbed::paths;

/// The files that a run leaves in `target/logs`.
#[derive(Clone, Debug)]
pub struct Files {
    /// All that went over the serial line.
    pub console: PathBuf,
    /// The emulator's own log.
    pub emulator: PathBuf,
    /// The emulator's printed output; answers to our questions are in it.
    pub(super) output: PathBuf,
    /// Bochs's configuration and the like.
    pub(super) configuration: PathBuf,
}

impl Files {
    pub(super) fn new(name: &str) -> Result<Self> {
        let directory = paths::logs();
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let file = |suffix| directory.join(format!("{name}.{suffix}"));
        Ok(Self {
            console: file("console"),
            emulator: file("emulator.log"),
            output: file("emulator.out"),
            configuration: file("bochsrc"),
        })
    }
}

/// The way in which a machine's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A switch-off through ACPI (S5).
    PoweredOff {
        /// The number of instructions that it had executed, in Bochs.
        ticks: Option<u64>,
    },
    /// A reset that it asked for, which our machines do not follow (QEMU only: Bochs starts again).
    Reset,
    /// A shutdown of its CPU after a triple fault.
    TripleFault,
    /// A failure of the emulator: it gave up, or was killed.
    Failed(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff { ticks: None } => f.write_str("powered off"),
            Self::PoweredOff { ticks: Some(ticks) } => {
                write!(f, "powered off after {ticks} ticks")
            }
            Self::Reset => f.write_str("reset"),
            Self::TripleFault => f.write_str("triple fault of the physical CPU"),
            Self::Failed(why) => write!(f, "the emulator ended: {why}"),
        }
    }
}
