//! A machine with tarpit and guests, put together piece by piece: what `run`, the benchmark, the
//! experiments and the tests start from.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use xtask::testbed::Setup;
//! use xtask::testbed::module::Guest;
//!
//! let mut session = Setup::new("example")
//!     .cpus(2)
//!     .options("on-end=poweroff")
//!     .kernel("exits", &Guest::new("small"))?
//!     .boot()?;
//! session.wait_for("vm small ended: ")?;
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::testbed::build;
use crate::testbed::disk_image;
use crate::testbed::firmware;
use crate::testbed::image::{self, Contents};
use crate::testbed::initramfs::{self, Program, Shell};
use crate::testbed::kernel::{self, Series};
use crate::testbed::machine::{Boot, Com1, Hardware, Kind, Spec};
use crate::testbed::module::{Guest, LINUX_CONSOLE, Module};
use crate::testbed::paths;
use crate::testbed::serial::Session;
use crate::testbed::userland;

/// The drivers and file systems that a Debian on a disk needs.
const DISK_DRIVERS: [&str; 5] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "ext4",
];

/// The drivers of a disk.
const BLOCK_DRIVERS: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// The drivers of a network card.
const NETWORK_DRIVERS: [&str; 2] = ["virtio_pci", "virtio_net"];

/// The loader that brings tarpit into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loader {
    /// GRUB, from a CD, by multiboot 2.
    Grub,
    /// QEMU itself, by multiboot 1. It loads no modules here.
    Qemu,
}

/// A machine with tarpit that is being put together.
#[derive(Clone, Debug)]
pub struct Setup {
    name: String,
    kind: Kind,
    hardware: Hardware,
    loader: Loader,
    options: String,
    modules: Vec<Module>,
    files: Vec<(String, PathBuf)>,
    detector: bool,
    shell: Shell,
    before_boot: Vec<String>,
}

impl Setup {
    /// Bochs with one CPU and 1 GiB, and tarpit without options and guests. The name is that of the
    /// image and of the log files.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::Bochs,
            hardware: Hardware::default(),
            loader: Loader::Grub,
            options: String::new(),
            modules: Vec::new(),
            files: Vec::new(),
            detector: false,
            shell: Shell::None,
            before_boot: Vec::new(),
        }
    }

    /// Puts it on this machine instead of Bochs.
    #[must_use]
    pub fn on(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Gives it this RAM, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.hardware.memory_mib = mib;
        self
    }

    /// Has Bochs be this processor, a model of `bochs-bin --help cpu`.
    #[must_use]
    pub fn processor(mut self, model: &'static str) -> Self {
        self.hardware.model = Some(model);
        self
    }

    /// Gives it so many physical CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.hardware.cpus = cpus;
        self
    }

    /// Gives it another length of an emulated second, in instructions (Bochs only).
    #[must_use]
    pub fn ips(mut self, ips: u64) -> Self {
        self.hardware.ips = ips;
        self
    }

    /// Adds these words to tarpit's command line, behind those that are there.
    #[must_use]
    pub fn options(mut self, words: &str) -> Self {
        for word in words.split_whitespace() {
            if !self.options.is_empty() {
                self.options.push(' ');
            }
            self.options.push_str(word);
        }
        self
    }

    /// Gives it a second serial line, where detectors talk to tarpit.
    #[must_use]
    pub fn detector(mut self) -> Self {
        self.detector = true;
        self.options("detector=on")
    }

    /// Gives the Debian guests that come a shell and its programs, besides the workload.
    #[must_use]
    pub fn busybox(mut self) -> Self {
        self.shell = Shell::Busybox;
        self
    }

    /// Adds one more line of GRUB's script language, which GRUB carries out right before it boots:
    /// `write_dword ADDRESS VALUE`, for instance, leaves a device as firmware might.
    #[must_use]
    pub fn before_boot(mut self, line: &str) -> Self {
        self.before_boot.push(line.to_owned());
        self
    }

    /// Puts a file where GRUB finds it as `/boot/NAME`.
    #[must_use]
    pub fn file(mut self, name: &str, file: PathBuf) -> Self {
        self.files.push((name.to_owned(), file));
        self
    }

    /// Gives it something else as COM1 (Bochs only).
    #[must_use]
    pub fn com1(mut self, com1: Com1) -> Self {
        self.hardware.com1 = com1;
        self
    }

    /// Has exits take so many ticks more.
    #[must_use]
    pub fn exit_cost(self, ticks: u64) -> Self {
        match ticks {
            0 => self,
            ticks => self.options(&format!("exit-cost={ticks}")),
        }
    }

    /// Adds one more boot module.
    #[must_use]
    pub fn module(mut self, module: Module) -> Self {
        self.modules.push(module);
        self
    }

    /// Adds a guest kernel of our own, by its program's name under `guest-images/kernels`.
    ///
    /// # Errors
    /// When there is none of this name, or it does not compile.
    pub fn kernel(self, program: &str, guest: &Guest) -> Result<Self> {
        let guest = guest.clone().with_test_devices();
        Ok(self.module(guest.kernel(build::all()?.kernel(program)?)))
    }

    /// Adds a stock Debian kernel and the workload. The guest's command line gets the console in
    /// front, and no other parameter.
    ///
    /// # Errors
    /// When the kernel cannot be fetched, or the workload does not compile.
    pub fn debian(self, series: Series, guest: &Guest) -> Result<Self> {
        let kernel = kernel::fetch(series)?;
        let initrd = initramfs::of_workload(&build::all()?.workload, self.shell)?;
        Ok(self.linux(&kernel, &initrd, guest))
    }

    /// Adds a guest that starts in SeaBIOS and boots from its disks.
    ///
    /// # Errors
    /// When SeaBIOS cannot be fetched.
    pub fn seabios(self, guest: &Guest) -> Result<Self> {
        let image = firmware::fetch()?;
        Ok(self.module(guest.firmware(&image)))
    }

    /// Adds a guest that starts in SeaBIOS and boots from a disk with GRUB, a stock Debian kernel and a Debian
    /// userland, whose login is on COM1. The guest's command line gets the console and the root file system
    /// in front, and no other parameter; `hostname=NAME` and `address=10.0.0.1/24` make it one of several.
    ///
    /// # Errors
    /// When SeaBIOS, the kernel or the userland's packages cannot be fetched, or the disk cannot be made.
    pub fn debian_disk(self, series: Series, guest: &Guest) -> Result<Self> {
        let kernel = kernel::fetch_with_modules(series)?;
        let init = Program {
            path: "init".to_owned(),
            data: include_str!("disk_root.sh").into(),
        };
        let mut programs = Program::modules(&kernel.modules(&DISK_DRIVERS)?)?;
        programs.extend([Program::busybox()?, init]);
        let name = format!("{}-{}", self.name, guest.name);
        let initrd = initramfs::pack_programs(&name, &programs)?;
        let root = disk_image::ROOT;
        let command_line = format!("{LINUX_CONSOLE} root={root} {}", guest.command_line);
        let linux = disk_image::Linux {
            kernel: &kernel.image,
            initrd: &initrd,
            root: &userland::make()?,
            command_line: command_line.trim_end(),
        };
        let disk = disk_image::make(&name, &linux)?;
        let disk = Module::disk(&disk, &guest.name, "id=root snapshot=keep");
        Ok(self.seabios(guest)?.module(disk))
    }

    /// Adds a stock Debian kernel and the workload, behind the driver of a network card. The guest's command
    /// line gets the console in front, and no other parameter; `address=10.0.0.2/24` is the card's address.
    ///
    /// # Errors
    /// When the kernel cannot be fetched, or the workload does not compile.
    pub fn debian_in_network(self, series: Series, guest: &Guest) -> Result<Self> {
        self.debian_behind(
            series,
            guest,
            &NETWORK_DRIVERS,
            ("workload-network", include_str!("network_init.sh")),
        )
    }

    /// Adds a stock Debian kernel and the workload, behind the driver of disks. The guest's command line gets the
    /// console in front, and no other parameter.
    ///
    /// # Errors
    /// When the kernel cannot be fetched, or the workload does not compile.
    pub fn debian_with_disks(self, series: Series, guest: &Guest) -> Result<Self> {
        self.debian_behind(
            series,
            guest,
            &BLOCK_DRIVERS,
            ("workload-disks", include_str!("disk_init.sh")),
        )
    }

    /// Adds a stock Debian kernel and the workload, behind these drivers and an `init` that is the text of a shell
    /// script, in a RAM disk of this name.
    fn debian_behind(
        self,
        series: Series,
        guest: &Guest,
        drivers: &[&str],
        (name, init): (&str, &str),
    ) -> Result<Self> {
        let kernel = kernel::fetch_with_modules(series)?;
        let init = Program {
            path: "init".to_owned(),
            data: init.into(),
        };
        let workload = Program::copy(&build::all()?.workload, "workload")?;
        let mut programs = Program::modules(&kernel.modules(drivers)?)?;
        programs.extend([Program::busybox()?, workload, init]);
        let initrd = initramfs::pack_programs(name, &programs)?;
        Ok(self.linux(&kernel.image, &initrd, guest))
    }

    /// Gives this VM a network card in a network. `options` are `mac=ADDRESS`, `rate=MBIT`, both or none.
    ///
    /// # Errors
    /// When the file that such a module has cannot be written.
    pub fn nic(self, vm: &str, network: &str, options: &str) -> Result<Self> {
        let file = paths::images().join("nothing");
        std::fs::create_dir_all(paths::images())?;
        std::fs::write(&file, [0])?;
        Ok(self.module(Module::nic(&file, vm, network, options)))
    }

    /// Adds any Linux. The guest's command line gets the console in front, and no other parameter.
    #[must_use]
    pub fn linux(self, kernel: &Path, initrd: &Path, guest: &Guest) -> Self {
        let command_line = format!("{LINUX_CONSOLE} {}", guest.command_line);
        let guest = guest.clone().command_line(command_line.trim_end());
        self.module(guest.kernel(kernel))
            .module(Module::initrd(initrd, &guest.name))
    }

    /// Adds Memtest86+, with its screen on the guest's console, too.
    ///
    /// # Errors
    /// As [`kernel::fetch_memtest`].
    pub fn memtest(self, guest: &Guest) -> Result<Self> {
        let command_line = format!("{LINUX_CONSOLE} {}", guest.command_line);
        let guest = guest.clone().command_line(command_line.trim_end());
        Ok(self.module(guest.kernel(&kernel::fetch_memtest()?)))
    }

    /// Has QEMU itself load it, which speaks multiboot 1, and without modules.
    #[must_use]
    pub fn by_multiboot_1(mut self) -> Self {
        self.loader = Loader::Qemu;
        self
    }

    /// Returns the boot modules so far.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Makes the bootable CD `target/images/NAME.iso`, or `output`.
    ///
    /// # Errors
    /// When tarpit does not compile, or as [`image::make`].
    pub fn image(&self, output: Option<&Path>) -> Result<PathBuf> {
        let contents = Contents::Tarpit {
            tarpit: build::all()?.tarpit.clone(),
            options: self.options.clone(),
            modules: self.modules.clone(),
            files: self.files.clone(),
            before_boot: self.before_boot.clone(),
        };
        image::make(&self.name, &contents, output)
    }

    /// Switches it on.
    ///
    /// # Errors
    /// When something cannot be built, or the emulator does not start.
    pub fn boot(self) -> Result<Session> {
        let boot = match self.loader {
            Loader::Grub => Boot::Iso(self.image(None)?),
            Loader::Qemu => Boot::Multiboot {
                image: build::all()?.tarpit.clone(),
                command_line: self.options,
            },
        };
        let spec = Spec {
            name: self.name,
            boot,
            hardware: self.hardware,
            detector: self.detector,
        };
        Session::start(self.kind, &spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_has_the_console_in_front_of_its_words_and_its_ram_disk_behind_its_kernel() {
        let guest = Guest::new("debian").command_line("quiet");
        let setup = Setup::new("t").linux(Path::new("k"), Path::new("i"), &guest);
        let lines: Vec<_> = setup
            .modules()
            .iter()
            .map(|module| module.command_line.as_str())
            .collect();
        assert_eq!(
            lines,
            [
                "kernel vm=debian mem=256M vcpus=1 -- console=ttyS0,115200 quiet",
                "initrd vm=debian"
            ]
        );
    }

    #[test]
    fn tarpit_is_told_what_an_exit_costs_unless_it_costs_nothing() {
        let options = |ticks| Setup::new("t").exit_cost(ticks).options;
        assert_eq!(options(1500), "exit-cost=1500");
        assert_eq!(options(0), "");
    }

    #[test]
    fn options_add_up() {
        let setup = Setup::new("t")
            .options("on-end=poweroff")
            .options("")
            .options(" virtual-apic=off  loglevel=debug ");
        assert_eq!(
            setup.options,
            "on-end=poweroff virtual-apic=off loglevel=debug"
        );
    }
}
