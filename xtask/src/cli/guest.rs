//! The guest as the user of `image` and `run` describes it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::testbed::initramfs::{self, Shell};
use crate::testbed::module::{Guest, Module};
use crate::testbed::{Setup, build, kernel, options};

/// The Linux guest's name for `--guest`.
const LINUX: &str = "debian";

/// The name of a whole Debian on a disk, for `--guest`.
const LINUX_DISK: &str = "debian-disk";

/// The name of Memtest86+, for `--guest`.
const MEMTEST: &str = "memtest86+";

/// The name of a guest that starts in firmware.
const FROM_DISK: &str = "disk";

const SERIES_HELP: &str =
    "Debian kernel for `--guest debian` and `debian-disk`; fetched once, kept in target/downloads";

/// Which guest, and how large.
#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(mut_arg("series", |series| series.help(SERIES_HELP)))]
pub(super) struct Options {
    /// The guest: `debian` (a stock Debian kernel with the workload as its userland), `debian-disk` (a Debian
    /// with nginx and a login for root on the console, from a disk by SeaBIOS and GRUB), `memtest86+` (its
    /// screen is for `attach`), or one of our own kernels under guest-images/kernels by name
    #[arg(long, default_value = LINUX, value_name = "NAME")]
    pub(super) guest: String,
    #[command(flatten)]
    pub(super) debian: options::Kernel,
    /// A kernel of yours instead: a bzImage
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,
    /// An initial RAM disk of yours instead of the workload
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,
    /// A multiboot 1 image as the guest; `run` exits with its result
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "kernel"])]
    pub(super) multiboot: Option<PathBuf>,
    /// A boot module for the multiboot image, behind its initial RAM disk if it has one: a file, and
    /// after a space the module's string. Can be given several times
    #[arg(long = "module", value_name = "FILE [STRING]", requires = "multiboot")]
    pub(super) modules: Vec<String>,
    /// More words for the guest kernel's command line
    #[arg(
        long,
        value_name = "STR",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(super) append: String,
    /// VCPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(super) vcpus: u32,
    /// RAM of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) memory: u32,
    /// Run all VCPUs on this physical CPU
    #[arg(long, value_name = "CPU")]
    pub(super) pin: Option<u32>,
    /// A disk that begins as this file, raw or qcow2, and after a space `ro`, `id=NAME` and `snapshot=keep`, any of
    /// them. Can be given several times
    #[arg(long = "disk", value_name = "FILE [OPTIONS]")]
    pub(super) disks: Vec<String>,
    /// Start the guest in SeaBIOS instead of a kernel: it boots from its first `--disk` that can be booted
    /// from. Fetched once, kept in target/downloads
    #[arg(long, requires = "disks", conflicts_with_all = ["guest", "kernel", "initrd", "multiboot", "append"])]
    pub(super) firmware: bool,
    /// Give the guest an entropy device
    #[arg(long)]
    pub(super) rng: bool,
    /// Words for tarpit's own command line, as in "loglevel=debug on-end=poweroff"
    #[arg(
        long,
        value_name = "STR",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) tarpit_options: String,
}

impl Options {
    /// Makes tarpit with this guest, and the name of the guest's VM. `name` is that of the image
    /// and of the log files.
    ///
    /// # Errors
    /// When something cannot be built, fetched or read.
    pub(super) fn setup(&self, name: &str) -> Result<(Setup, String)> {
        let (mut setup, vm) = self.without_disks(name)?;
        for given in &self.disks {
            let (file, options) = given.split_once(' ').unwrap_or((given, ""));
            setup = setup.module(Module::disk(Path::new(file), &vm, options));
        }
        Ok((setup, vm))
    }

    fn without_disks(&self, name: &str) -> Result<(Setup, String)> {
        let setup = Setup::new(name).options(&self.tarpit_options);
        let guest = |name: &str| Guest {
            memory_mib: self.memory,
            vcpus: self.vcpus,
            pins: self.pin.into_iter().collect(),
            rng: self.rng,
            ..Guest::new(name).command_line(self.append.trim())
        };
        if self.firmware {
            let guest = guest(FROM_DISK);
            Ok((setup.seabios(&guest)?, guest.name))
        } else if let Some(file) = &self.multiboot {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let guest = guest(&vm_name(&name)).with_test_devices();
            let mut setup = self.with_initrd(setup.module(guest.kernel(file)), &guest);
            let mut words = self.tarpit_options.split_whitespace();
            if !words.any(|word| word.starts_with("on-end=")) {
                setup = setup.options("on-end=poweroff");
            }
            for given in &self.modules {
                setup = setup.module(Module::of_guest(given, &guest.name));
            }
            Ok((setup, guest.name))
        } else if self.guest == LINUX_DISK && self.kernel.is_none() {
            let guest = guest(LINUX);
            let setup = setup.debian_disk(self.debian.series, &guest)?;
            Ok((setup, guest.name))
        } else if self.guest == MEMTEST && self.kernel.is_none() {
            let guest = guest("memtest");
            let setup = setup.memtest(&guest)?;
            Ok((setup, guest.name))
        } else if self.guest == LINUX || self.kernel.is_some() {
            let guest = guest(LINUX);
            let kernel = match &self.kernel {
                Some(file) => file.clone(),
                None => kernel::fetch(self.debian.series)?,
            };
            let initrd = match &self.initrd {
                Some(file) => file.clone(),
                None => {
                    let workload = &build::all()?.workload;
                    initramfs::of_workload(workload, Shell::Busybox)?
                }
            };
            Ok((setup.linux(&kernel, &initrd, &guest), guest.name))
        } else {
            let guest = guest(&self.guest);
            let setup = setup.kernel(&self.guest, &guest)?;
            Ok((self.with_initrd(setup, &guest), guest.name))
        }
    }

    fn with_initrd(&self, setup: Setup, guest: &Guest) -> Setup {
        match &self.initrd {
            Some(file) => setup.module(Module::initrd(file, &guest.name)),
            None => setup,
        }
    }
}

/// Returns a VM's name from a file's: letters, digits, `-` and `_`.
fn vm_name(file: &str) -> String {
    let name: String = file
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    if name.is_empty() {
        "guest".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_name_is_one_plain_word() {
        assert_eq!(vm_name("tsc_adjust"), "tsc_adjust");
        assert_eq!(vm_name("my test.v2"), "my-test-v2");
        assert_eq!(vm_name(""), "guest");
    }
}
