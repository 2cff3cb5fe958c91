//! Puts tarpit and a guest together into a bootable image, as `image` and `run` are told.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::image::{self, Contents};
use crate::initramfs::{self, Shell};
use crate::kernel::{self, Series};
use crate::module::{Guest, LINUX_CONSOLE, Module};
use crate::{build, paths};

/// The Linux guest's name for `--guest`.
const LINUX: &str = "debian";

/// Which guest, and how large.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// The guest: `debian` (a stock Debian kernel with the workload as its userland), or one of
    /// our own kernels under guest-images/kernels by name
    #[arg(long, default_value = LINUX, value_name = "NAME")]
    pub guest: String,
    /// Debian kernel for `--guest debian`; fetched once, kept in target/downloads
    #[arg(long, default_value = "6.1", value_name = "SERIES")]
    pub kernel_series: Series,
    /// A kernel of yours instead: a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk of yours instead of the workload
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// A multiboot 1 image as the guest; `run` exits with its result
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "kernel"])]
    pub multiboot: Option<PathBuf>,
    /// A boot module for the multiboot image, behind its initial RAM disk if it has one: a file, and
    /// after a space the module's string. Can be given several times
    #[arg(long = "module", value_name = "FILE [STRING]", requires = "multiboot")]
    pub modules: Vec<String>,
    /// More words for the guest kernel's command line
    #[arg(
        long,
        value_name = "STR",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub append: String,
    /// VCPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub vcpus: u32,
    /// RAM of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub memory: u32,
    /// Run all VCPUs on this physical CPU
    #[arg(long, value_name = "CPU")]
    pub pin: Option<u32>,
    /// Words for tarpit's own command line, as in "loglevel=debug on-end=poweroff"
    #[arg(
        long,
        value_name = "STR",
        default_value = "",
        hide_default_value = true
    )]
    pub tarpit_options: String,
}

/// A bootable image and whom it boots.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The CD.
    pub iso: PathBuf,
    /// The VM's name.
    pub vm: String,
}

/// Builds all and makes the CD `target/images/NAME.iso`, or `output`.
///
/// # Errors
/// When something cannot be built, fetched or read.
pub fn make(name: &str, options: &Options, output: Option<&Path>) -> Result<Bundle> {
    let built = build::all()?;
    let mut tarpit_options: Vec<String> = options
        .tarpit_options
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let guest = |name: &str, command_line: &str| Guest {
        memory_mib: options.memory,
        vcpus: options.vcpus,
        pins: options.pin.into_iter().collect(),
        ..Guest::new(name).command_line(format!("{command_line} {}", options.append).trim())
    };
    let initrd = |guest: &Guest| {
        let file = options.initrd.as_ref();
        file.map(|file| Module::initrd(file, &guest.name))
    };
    let (guest, modules) = if let Some(file) = &options.multiboot {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let guest = guest(&vm_name(&name), "");
        if !tarpit_options
            .iter()
            .any(|option| option.starts_with("on-end="))
        {
            tarpit_options.push("on-end=poweroff".to_owned());
        }
        let mut modules = vec![guest.kernel(file)];
        modules.extend(initrd(&guest));
        let others = options.modules.iter();
        modules.extend(others.map(|given| Module::of_guest(given, &guest.name)));
        (guest, modules)
    } else if options.guest == LINUX || options.kernel.is_some() {
        let guest = guest(LINUX, LINUX_CONSOLE);
        let kernel = match &options.kernel {
            Some(file) => file.clone(),
            None => kernel::fetch(options.kernel_series)?,
        };
        let initrd = match &options.initrd {
            Some(file) => file.clone(),
            None => initramfs::pack("workload-shell", &built.workload, Shell::Busybox)?,
        };
        let modules = vec![guest.kernel(&kernel), Module::initrd(&initrd, &guest.name)];
        (guest, modules)
    } else {
        let guest = guest(&options.guest, "");
        let mut modules = vec![guest.kernel(built.kernel(&options.guest)?)];
        modules.extend(initrd(&guest));
        (guest, modules)
    };
    let contents = Contents::Tarpit {
        tarpit: built.tarpit,
        options: tarpit_options,
        modules,
    };
    let iso = image::make(name, &contents, output)?;
    eprintln!("Image: {}", paths::shown(&iso));
    Ok(Bundle {
        iso,
        vm: guest.name,
    })
}

/// A VM's name from a file's: letters, digits, `-` and `_`.
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
