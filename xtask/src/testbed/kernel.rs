//! Stock kernels of Debian's: the newest of a series of Linux, and what else it has that a guest can
//! boot: Xen, GNU Mach and Memtest86+. They are fetched and unpacked but never installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use elf::ElfBytes;
use elf::endian::AnyEndian;
use flate2::read::GzDecoder;
use xshell::{Shell, cmd};

use crate::testbed::progress::Step;
use crate::testbed::{paths, provision};

/// A kernel that Debian builds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Series {
    /// Linux 6.1 for clouds (CFS scheduler)
    #[default]
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12 for clouds (EEVDF scheduler)
    #[value(name = "6.12")]
    V6_12,
    /// Linux 6.1 with PREEMPT_RT
    #[value(name = "rt")]
    Rt,
}

impl Series {
    /// Returns the name that the command line uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Rt => "rt",
        }
    }

    fn source(self) -> Source {
        Source {
            packages: match self {
                Self::V6_1 => r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64-unsigned$",
                Self::V6_12 => r"^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64-unsigned$",
                Self::Rt => r"^linux-image-6\.1\.0-[0-9]+-rt-amd64-unsigned$",
            },
            image: "vmlinuz-",
            image_end: "",
        }
    }
}

/// The part of a package that is all of it.
const WHOLE: &str = "";

/// The packages that a kernel comes from, and its image in them.
#[derive(Clone, Copy, Debug)]
struct Source {
    /// A regular expression for the names of its packages.
    packages: &'static str,
    /// The beginning of the image's name in them.
    image: &'static str,
    /// The end of that name.
    image_end: &'static str,
}

/// Xen. Its image is compressed.
const XEN: Source = Source {
    packages: r"^xen-hypervisor-[0-9]+\.[0-9]+-amd64$",
    image: "xen-",
    image_end: "-amd64.gz",
};

/// GNU Mach as Debian's amd64 has it: for processors from the 486 by its name, but built for 64 bits, with
/// tasks of 32. Its image is compressed.
const MACH: Source = Source {
    packages: r"^gnumach-image-[0-9]+\.[0-9]+-486$",
    image: "gnumach-",
    image_end: "-486.gz",
};

/// Memtest86+, a program that has the machine to itself.
const MEMTEST: Source = Source {
    packages: r"^memtest86\+$",
    image: "memtest86+x64",
    image_end: ".bin",
};

/// Returns the kernel image of this series, from `target/downloads` or else from Debian's archive.
///
/// # Errors
/// When the archive has none or cannot be reached.
pub fn fetch(series: Series) -> Result<PathBuf> {
    let directory = paths::downloads().join("kernels").join(series.name());
    fetch_part(series.source(), "boot", &directory)
}

/// Fetches Xen, a multiboot image, from `target/downloads` or else from Debian's archive.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_xen() -> Result<PathBuf> {
    fetch_compressed(XEN, "xen")
}

/// Fetches GNU Mach, a multiboot image, from `target/downloads` or else from Debian's archive.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_mach() -> Result<PathBuf> {
    fetch_compressed(MACH, "mach")
}

/// Fetches Memtest86+, a bzImage for 64 bits, from `target/downloads` or else from Debian's archive.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_memtest() -> Result<PathBuf> {
    fetch_part(MEMTEST, "boot", &paths::downloads().join("kernels/memtest"))
}

/// Fetches a kernel and unpacks its image beside what was fetched, in a directory of this name.
fn fetch_compressed(source: Source, name: &str) -> Result<PathBuf> {
    let directory = paths::downloads().join("kernels").join(name);
    let compressed = fetch_part(source, "boot", &directory)?;
    let image = compressed.with_extension("");
    if !image.exists() {
        // Under its name only when it is whole: other runs use it, too.
        let mut temporary = tempfile::NamedTempFile::new_in(&directory)?;
        let mut decoder = GzDecoder::new(File::open(&compressed)?);
        io::copy(&mut decoder, &mut temporary)
            .with_context(|| format!("cannot unpack {}", compressed.display()))?;
        temporary.persist(&image)?;
    }
    Ok(image)
}

/// A kernel with its modules.
#[derive(Clone, Debug)]
pub struct Package {
    /// The kernel image.
    pub image: PathBuf,
    /// The directory of all modules.
    pub modules: PathBuf,
}

impl Package {
    /// Returns the files of these modules and of all that they need, in the order in which they can be
    /// loaded. `names` are those of modprobe: `virtio_blk`, for instance. Which module needs which differs
    /// between builds of one series, and some are built into one kernel and not into another: those have no file.
    ///
    /// # Errors
    /// When there is no such module, or one cannot be read.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let (mut all, mut built_in) = (BTreeMap::new(), BTreeSet::new());
        find_modules(&self.modules, &mut all, &mut built_in)
            .with_context(|| format!("cannot look through {}", self.modules.display()))?;
        let names: Vec<&str> = (names.iter().copied())
            .filter(|&name| !built_in.contains(name))
            .collect();
        let file = |name: &str| {
            let file = all.get(name);
            file.with_context(|| format!("no module {name} in {}", self.modules.display()))
        };
        let order = load_order(&names, |name| {
            let file = file(name)?;
            needs_of(&std::fs::read(file)?)
                .with_context(|| format!("cannot read {}", file.display()))
        })?;
        order.iter().map(|name| file(name).cloned()).collect()
    }
}

/// Adds the files of all modules below `directory` to `modules`, by modprobe's names, and the names of those that are
/// built into the kernel to `built_in`.
fn find_modules(
    directory: &Path,
    modules: &mut BTreeMap<String, PathBuf>,
    built_in: &mut BTreeSet<String>,
) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, modules, built_in)?;
        } else if path
            .file_name()
            .is_some_and(|name| name == "modules.builtin")
        {
            let list = std::fs::read_to_string(&path)?;
            built_in.extend(list.lines().filter_map(|line| module_name(Path::new(line))));
        } else if let Some(name) = module_name(&path) {
            modules.insert(name, path);
        }
    }
    Ok(())
}

/// Returns modprobe's name of the module in this file, if it is one's.
fn module_name(file: &Path) -> Option<String> {
    file.extension().filter(|extension| *extension == "ko")?;
    Some(file.file_stem()?.to_string_lossy().replace('-', "_"))
}

/// Returns the names of the modules that one needs, from its file: `depends` in its section
/// `.modinfo`.
fn needs_of(module: &[u8]) -> Result<Vec<String>> {
    let elf = ElfBytes::<AnyEndian>::minimal_parse(module)?;
    let section = elf.section_header_by_name(".modinfo")?;
    let section = section.context("no section .modinfo: is this a module of Linux?")?;
    let (facts, _) = elf.section_data(&section)?;
    let depends = facts
        .split(|&byte| byte == 0)
        .find_map(|fact| fact.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(depends.context("does not say what it depends on")?);
    let names = names.split(',').filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}

/// Returns `wanted` and what they need, each after what it needs itself.
fn load_order(wanted: &[&str], needs: impl Fn(&str) -> Result<Vec<String>>) -> Result<Vec<String>> {
    let mut order = Vec::<String>::new();
    // What is still to be loaded, the next one last; true where its needs lie above it.
    let mut stack: Vec<_> = wanted
        .iter()
        .rev()
        .map(|&name| (name.to_owned(), false))
        .collect();
    let mut begun = BTreeSet::new();
    while let Some((name, is_expanded)) = stack.pop() {
        if is_expanded {
            order.push(name);
        } else if begun.insert(name.clone()) {
            let needs = needs(&name)?;
            stack.push((name, true));
            stack.extend(needs.into_iter().rev().map(|need| (need, false)));
        }
    }
    Ok(order)
}

/// Fetches as [`fetch`] does, with the modules of the same build.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_with_modules(series: Series) -> Result<Package> {
    let directory = paths::downloads().join("packages").join(series.name());
    Ok(Package {
        image: fetch_part(series.source(), WHOLE, &directory)?,
        modules: directory.join("lib/modules"),
    })
}

/// Returns the kernel image in this part of a source's newest package, which is kept in
/// `directory`.
fn fetch_part(source: Source, part: &str, directory: &Path) -> Result<PathBuf> {
    if let Some(image) = image_below(directory, source) {
        return Ok(image);
    }
    let sh = Shell::new()?;
    let package = match resolve(&sh, source)? {
        Some(package) => package,
        None => {
            provision::update_package_lists()?;
            resolve(&sh, source)?.with_context(|| {
                format!("no package matches {}: is this Debian 12?", source.packages)
            })?
        }
    };
    if download(source, &package, part, directory).is_err() {
        // The archive has moved on from the version that apt's lists name.
        provision::update_package_lists()?;
        let package = resolve(&sh, source)?.context("the package has vanished")?;
        download(source, &package, part, directory)?;
    }
    image_below(directory, source).with_context(|| format!("{package} holds no kernel image"))
}

fn resolve(sh: &Shell, source: Source) -> Result<Option<String>> {
    let pattern = source.packages;
    let listing = cmd!(sh, "apt-cache search --names-only {pattern}")
        .quiet()
        .read()
        .context("apt-cache failed: is this Debian? --kernel FILE takes any bzImage")?;
    Ok(newest(&listing))
}

/// Returns the package with the highest version in apt-cache's lines of `package - description`.
fn newest(listing: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|package| numbers(package))
        .map(str::to_owned)
}

/// Returns the numbers in a package's name: they order as the versions do.
fn numbers(package: &str) -> Vec<u64> {
    package
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Fetches a package and puts this part of it in the place of `directory`.
fn download(source: Source, package: &str, part: &str, directory: &Path) -> Result<()> {
    let _step = Step::begin(format!("Fetching {package} from Debian's archive"));
    let parent = directory.parent().context("no parent directory")?;
    let unpacked = provision::unpack(&[package], parent)?;
    match std::fs::rename(unpacked.path().join(part), directory) {
        // Another run was faster.
        Err(_) if image_below(directory, source).is_some() => Ok(()),
        result => {
            result.with_context(|| format!("cannot keep {package} in {}", directory.display()))
        }
    }
}

/// Returns the kernel image in this directory, or in `boot` below it.
fn image_below(directory: &Path, source: Source) -> Option<PathBuf> {
    let mut images: Vec<PathBuf> = [directory, &directory.join("boot")]
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with(source.image) && name.ends_with(source.image_end)
            })
        })
        .collect();
    images.sort();
    images.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_has_the_highest_number_not_the_last_name() {
        let listing = "\
linux-image-6.12.9+deb12-cloud-amd64-unsigned - Linux 6.12
linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.88+deb12-cloud-amd64-unsigned - Linux 6.12
";
        assert_eq!(
            newest(listing).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64-unsigned")
        );
    }

    #[test]
    fn modules_are_loaded_after_those_that_they_need() -> Result<()> {
        // As in 6.1.0-48 and in 6.1.0-56: the one needs the other the other way round.
        for (a, b) in [("virtio", "virtio_ring"), ("virtio_ring", "virtio")] {
            let order = load_order(&["virtio_blk", "virtio_pci"], |name| {
                Ok(match name {
                    "virtio_blk" => vec![a.to_owned(), b.to_owned()],
                    "virtio_pci" => vec![
                        b.to_owned(),
                        "virtio_pci_modern_dev".to_owned(),
                        a.to_owned(),
                    ],
                    it if it == a => vec![b.to_owned()],
                    _ => Vec::new(),
                })
            })?;
            let expected = [b, a, "virtio_blk", "virtio_pci_modern_dev", "virtio_pci"];
            assert_eq!(order, expected);
        }
        Ok(())
    }

    #[test]
    fn a_module_that_is_not_there_is_named() -> Result<()> {
        let none = tempfile::tempdir()?;
        let package = Package {
            image: PathBuf::new(),
            modules: none.path().to_owned(),
        };
        let error = package.modules(&["virtio_blk"]).unwrap_err().to_string();
        assert!(error.starts_with("no module virtio_blk in "), "{error}");
        let list = none.path().join("modules.builtin");
        std::fs::write(
            list,
            "kernel/fs/ext4/ext4.ko\nkernel/drivers/block/virtio_blk.ko\n",
        )?;
        assert_eq!(
            package.modules(&["virtio_blk", "ext4"])?,
            [""; 0].map(PathBuf::from)
        );
        let error = package.modules(&["virtio_blk", "squashfs"]).unwrap_err();
        assert!(error.to_string().starts_with("no module squashfs in "));
        Ok(())
    }

    #[test]
    fn an_archive_without_the_series_has_no_newest() {
        assert_eq!(newest(""), None);
    }

    #[test]
    fn each_series_matches_its_own_packages_only() -> Result<()> {
        let names = [
            (
                Series::V6_1.source(),
                "linux-image-6.1.0-56-cloud-amd64-unsigned",
            ),
            (
                Series::V6_12.source(),
                "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            ),
            (
                Series::Rt.source(),
                "linux-image-6.1.0-56-rt-amd64-unsigned",
            ),
            (XEN, "xen-hypervisor-4.17-amd64"),
            (MACH, "gnumach-image-1.8-486"),
            (MEMTEST, "memtest86+"),
        ];
        for (source, own) in names {
            let pattern = regex::Regex::new(source.packages)?;
            for (_, name) in names {
                assert_eq!(pattern.is_match(name), name == own, "{source:?} and {name}");
            }
        }
        Ok(())
    }
}
