//! What a machine is made of.

use std::fmt;
use std::path::PathBuf;

/// Instructions that make a second of emulated time in Bochs, unless told otherwise.
pub const DEFAULT_IPS: u64 = 1_000_000_000;

/// The emulator that runs the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bochs, which emulates VMX in software; its time is the count of instructions.
    Bochs,
    /// QEMU with KVM: needs a KVM that offers nested VMX.
    QemuKvm,
    /// QEMU's own emulation, which has no VMX: shows how tarpit refuses a machine.
    QemuTcg,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bochs => "Bochs",
            Self::QemuKvm => "QEMU/KVM",
            Self::QemuTcg => "QEMU (TCG)",
        })
    }
}

/// The medium or the image that the machine boots.
#[derive(Clone, Debug)]
pub enum Boot {
    /// A CD with its own boot loader.
    Iso(PathBuf),
    /// A multiboot 1 image that QEMU loads itself, with tarpit's options.
    Multiboot {
        /// The image.
        image: PathBuf,
        /// Its command line.
        command_line: String,
    },
}

/// The first serial line of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Com1 {
    /// A line whose other end is here.
    #[default]
    Connected,
    /// One to which nobody listens: it is COM2 that is connected.
    Unheard,
    /// None: it is COM2 that is connected.
    Missing,
}

/// The size and the speed of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Physical CPUs.
    pub cpus: u32,
    /// Bochs only: instructions that make a second of emulated time.
    pub ips: u64,
    /// Bochs only: the processor that it is, a model of `bochs-bin --help cpu`; by default the one that has all that
    /// tarpit can make use of, or that of the environment.
    pub model: Option<&'static str>,
    /// Bochs only: what there is as COM1.
    pub com1: Com1,
}

impl Default for Hardware {
    /// Makes a machine with one CPU, 1 GiB and [`DEFAULT_IPS`].
    fn default() -> Self {
        Self {
            memory_mib: 1024,
            cpus: 1,
            ips: DEFAULT_IPS,
            model: None,
            com1: Com1::default(),
        }
    }
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name of the log files. Machines that run at the same time need different names.
    pub name: String,
    /// The medium or the image that it boots.
    pub boot: Boot,
    /// The size and the speed of the machine.
    pub hardware: Hardware,
    /// Whether it has a second serial line, for detectors.
    pub detector: bool,
}
