//! The command lines of boot modules: how tarpit learns what to make of a file.

use std::fmt;
use std::path::{Path, PathBuf};

/// The parameter that makes a Linux use COM1. The speed matters where the line is as slow as a real
/// one: without it Linux sets 9600 baud, and a boot is spent waiting for characters to be sent.
pub const LINUX_CONSOLE: &str = "console=ttyS0,115200";

/// Parameters that spare a Linux what an emulator is slow at: lines on the console, tests of ciphers, and
/// clearing memory twice and byte by byte.
pub const QUICK_BOOT: &str = "quiet cryptomgr.notests init_on_alloc=0 clearcpuid=erms";

/// A file that the boot loader puts into memory for tarpit, and its command line.
#[derive(Clone, Debug)]
pub struct Module {
    /// The file on this machine.
    pub file: PathBuf,
    /// The command line that tells tarpit about it.
    pub command_line: String,
}

impl Module {
    /// Makes a guest's initial RAM disk.
    pub fn initrd(file: &Path, vm: &str) -> Self {
        Self {
            file: file.to_owned(),
            command_line: format!("initrd vm={vm}"),
        }
    }

    /// Makes a disk of a guest, which begins as the file. `options` are `ro`, `id=NAME` and `snapshot=keep`, any of them or
    /// none.
    pub fn disk(file: &Path, vm: &str, options: &str) -> Self {
        Self {
            file: file.to_owned(),
            command_line: format!("disk vm={vm} {options}").trim_end().to_owned(),
        }
    }

    /// Makes a network card of a guest in this network. The file is there for the boot loader only. `options` are
    /// `mac=ADDRESS`, `rate=MBIT`, both or none.
    pub fn nic(file: &Path, vm: &str, network: &str, options: &str) -> Self {
        Self {
            file: file.to_owned(),
            command_line: format!("net vm={vm} net={network} {options}")
                .trim_end()
                .to_owned(),
        }
    }

    /// Reads a boot module of a multiboot guest, given as `FILE` or `FILE STRING`.
    pub fn of_guest(given: &str, vm: &str) -> Self {
        let (file, string) = given.split_once(' ').unwrap_or((given, ""));
        let command_line = format!("module vm={vm} -- {string}");
        Self {
            file: file.into(),
            command_line: command_line.trim_end_matches(" -- ").to_owned(),
        }
    }
}

/// A guest: the options of a `kernel` module.
///
/// Its text form is the module's command line,
/// `kernel vm=NAME mem=256M vcpus=1 [pin=0,1] [rng] [hvc] [test-devices] [-- GUEST KERNEL COMMAND LINE]`.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The VM's name.
    pub name: String,
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// The number of VCPUs.
    pub vcpus: u32,
    /// The physical CPU of each VCPU, or one for all; empty for any.
    pub pins: Vec<u32>,
    /// Whether it has an entropy device.
    pub rng: bool,
    /// Whether it has a virtio console.
    pub hvc: bool,
    /// Whether it has the devices that test kernels expect: the port by which they end with a
    /// result, above all.
    pub test_devices: bool,
    /// The guest kernel's own command line.
    pub command_line: String,
}

impl Guest {
    /// Makes a VM with one VCPU and 256 MiB.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 256,
            vcpus: 1,
            pins: Vec::new(),
            rng: false,
            hvc: false,
            test_devices: false,
            command_line: String::new(),
        }
    }

    /// Makes this guest one with another kernel command line.
    #[must_use]
    pub fn command_line(mut self, text: &str) -> Self {
        text.clone_into(&mut self.command_line);
        self
    }

    /// Gives this guest the devices that test kernels expect.
    #[must_use]
    pub fn with_test_devices(mut self) -> Self {
        self.test_devices = true;
        self
    }

    /// Returns the module that holds this guest's firmware, which takes all that a kernel takes but a
    /// command line.
    pub fn firmware(&self, file: &Path) -> Module {
        let kernel = Self {
            command_line: String::new(),
            ..self.clone()
        };
        let kernel = kernel.to_string();
        let options = kernel.trim_start_matches("kernel");
        Module {
            file: file.to_owned(),
            command_line: format!("firmware{options}"),
        }
    }

    /// Returns the module that holds this guest's kernel.
    pub fn kernel(&self, file: &Path) -> Module {
        Module {
            file: file.to_owned(),
            command_line: self.to_string(),
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            memory_mib,
            vcpus,
            pins,
            rng,
            hvc,
            test_devices,
            command_line,
        } = self;
        write!(f, "kernel vm={name} mem={memory_mib}M vcpus={vcpus}")?;
        for (index, cpu) in pins.iter().enumerate() {
            let before = if index == 0 { " pin=" } else { "," };
            write!(f, "{before}{cpu}")?;
        }
        if *rng {
            write!(f, " rng")?;
        }
        if *hvc {
            write!(f, " hvc")?;
        }
        if *test_devices {
            write!(f, " test-devices")?;
        }
        if !command_line.is_empty() {
            write!(f, " -- {command_line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_of_a_guest_has_the_string_that_follows_its_file() {
        let module = Module::of_guest("boot/vmlinuz console=hvc0 quiet", "xen");
        assert_eq!(module.file, Path::new("boot/vmlinuz"));
        assert_eq!(module.command_line, "module vm=xen -- console=hvc0 quiet");
        let module = Module::of_guest("disk.img", "xen");
        assert_eq!(module.command_line, "module vm=xen");
    }

    #[test]
    fn a_guest_is_described_by_its_command_line() {
        let guest = Guest {
            pins: vec![1, 0],
            vcpus: 2,
            ..Guest::new("debian")
        };
        assert_eq!(
            guest.to_string(),
            "kernel vm=debian mem=256M vcpus=2 pin=1,0"
        );
        assert_eq!(
            Guest::new("a")
                .command_line("console=ttyS0 quiet")
                .to_string(),
            "kernel vm=a mem=256M vcpus=1 -- console=ttyS0 quiet"
        );
        assert_eq!(
            Guest::new("test")
                .with_test_devices()
                .command_line("verbose")
                .to_string(),
            "kernel vm=test mem=256M vcpus=1 test-devices -- verbose"
        );
        let guest = Guest {
            rng: true,
            hvc: true,
            ..Guest::new("web")
        };
        assert_eq!(guest.to_string(), "kernel vm=web mem=256M vcpus=1 rng hvc");
    }

    #[test]
    fn a_network_card_may_have_options() {
        let nic = |options| Module::nic(Path::new("n"), "web", "lan0", options).command_line;
        assert_eq!(nic(""), "net vm=web net=lan0");
        assert_eq!(nic("rate=8"), "net vm=web net=lan0 rate=8");
    }

    #[test]
    fn firmware_takes_the_options_of_a_kernel_and_no_command_line() {
        let guest = Guest {
            rng: true,
            ..Guest::new("web").command_line("quiet")
        };
        let module = guest.firmware(Path::new("bios.bin"));
        assert_eq!(module.command_line, "firmware vm=web mem=256M vcpus=1 rng");
    }

    #[test]
    fn a_disk_may_have_options() {
        let disk = |options| Module::disk(Path::new("d"), "web", options).command_line;
        assert_eq!(disk(""), "disk vm=web");
        assert_eq!(disk("ro id=data"), "disk vm=web ro id=data");
        assert_eq!(disk("snapshot=keep"), "disk vm=web snapshot=keep");
    }
}
