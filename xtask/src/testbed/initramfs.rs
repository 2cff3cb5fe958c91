//! The Linux guest's initramfs: a gzipped cpio archive (`newc`, see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};

use crate::testbed::{paths, provision};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Whether the archive has a shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// The workload only: small, so that an emulated CD drive loads it fast.
    None,
    /// Debian's static busybox too, for the workload's command `shell`.
    Busybox,
}

/// A program in an archive.
#[derive(Clone, Debug)]
pub struct Program {
    /// The path of the program in the archive, without a slash in front.
    pub path: String,
    /// The contents of the program.
    pub data: Vec<u8>,
}

impl Program {
    /// Makes an entry of `file` of this machine, at `path` in the archive.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn copy(file: &Path, path: impl Into<String>) -> Result<Self> {
        let data =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            path: path.into(),
            data,
        })
    }

    /// Makes an entry of Debian's static busybox, which brings a shell.
    ///
    /// # Errors
    /// When it is missing and cannot be installed.
    pub fn busybox() -> Result<Self> {
        provision::ensure_packages(provision::INITRAMFS_PACKAGES)?;
        Self::copy(Path::new("/bin/busybox"), "bin/busybox")
    }

    /// Makes entries of the kernel's modules `files`, which are in the order in which they are to be
    /// loaded: a shell finds them so as `/modules/*.ko`.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn modules(files: &[PathBuf]) -> Result<Vec<Self>> {
        let numbered = files.iter().enumerate();
        numbered
            .map(|(number, file)| Self::copy(file, format!("modules/{number:03}.ko")))
            .collect()
    }
}

/// Packs the workload into the archive that all guests with or without a shell have.
///
/// # Errors
/// As [`pack`].
pub fn of_workload(workload: &Path, shell: Shell) -> Result<PathBuf> {
    let name = match shell {
        Shell::None => "workload",
        Shell::Busybox => "workload-shell",
    };
    pack(name, workload, shell)
}

/// Packs the workload into `target/images/NAME.cpio.gz`.
///
/// # Errors
/// When a file cannot be read or written, or busybox is missing and cannot be installed.
pub fn pack(name: &str, workload: &Path, shell: Shell) -> Result<PathBuf> {
    let mut programs = vec![Program::copy(workload, "init")?];
    if shell == Shell::Busybox {
        programs.push(Program::busybox()?);
    }
    pack_programs(name, &programs)
}

/// Packs programs, one of them `init`, into `target/images/NAME.cpio.gz`.
///
/// # Errors
/// When the file cannot be written.
pub fn pack_programs(name: &str, programs: &[Program]) -> Result<PathBuf> {
    let mut archive = Archive::new(GzEncoder::new(Vec::new(), Compression::best()));
    let parents = programs.iter().flat_map(|program| {
        let slashes = program.path.match_indices('/');
        slashes.map(|(at, _)| &program.path[..at])
    });
    // Sorted, so that each is there before what is in it.
    let directories: BTreeSet<&str> = ["bin", "dev", "proc", "sys", "tmp"]
        .into_iter()
        .chain(parents)
        .collect();
    for directory in directories {
        archive.add(directory, DIRECTORY, &[])?;
    }
    for program in programs {
        archive.add(&program.path, PROGRAM, &program.data)?;
    }
    let packed = archive.finish()?.finish()?;
    let path = paths::images().join(format!("{name}.cpio.gz"));
    std::fs::create_dir_all(paths::images())?;
    // Put into place whole: another run may be reading it.
    let mut file = tempfile::NamedTempFile::new_in(paths::images())?;
    file.write_all(&packed)?;
    file.persist(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// A cpio archive that is being written.
struct Archive<W> {
    to: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn new(to: W) -> Self {
        Self { to, inode: 0 }
    }

    fn add(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.inode += 1;
        let links = 1;
        self.entry(name, self.inode, mode, links, data)
    }

    fn entry(&mut self, name: &str, inode: u32, mode: u32, links: u32, data: &[u8]) -> Result<()> {
        let size = u32::try_from(data.len()).context("too large for a cpio archive")?;
        let name_size = u32::try_from(name.len() + 1)?;
        // Magic, inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), name, check.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.to, "070701")?;
        for field in fields {
            write!(self.to, "{field:08X}")?;
        }
        let header = 6 + 8 * fields.len();
        self.to.write_all(name.as_bytes())?;
        self.to.write_all(&[0])?;
        self.pad(header + name.len() + 1)?;
        self.to.write_all(data)?;
        self.pad(data.len())
    }

    /// Names and files end on multiples of four bytes.
    fn pad(&mut self, written: usize) -> Result<()> {
        let over = written.next_multiple_of(4) - written;
        Ok(self.to.write_all(&[0; 3][..over])?)
    }

    fn finish(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, 0, 1, &[])?;
        Ok(self.to)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Another implementation reads back what ours wrote.
    #[test]
    fn cpio_unpacks_the_archive() -> Result<()> {
        let mut archive = Archive::new(Vec::new());
        archive.add("bin", DIRECTORY, &[])?;
        archive.add("bin/odd", PROGRAM, b"12345")?;
        archive.add("init", PROGRAM, b"#!")?;
        let archive = archive.finish()?;

        let directory = tempfile::tempdir()?;
        let mut cpio = Command::new("cpio")
            .args(["--extract", "--quiet", "--no-absolute-filenames"])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .spawn()?;
        cpio.stdin.take().context("no stdin")?.write_all(&archive)?;
        assert!(cpio.wait()?.success());
        assert_eq!(std::fs::read(directory.path().join("bin/odd"))?, b"12345");
        assert_eq!(std::fs::read(directory.path().join("init"))?, b"#!");
        Ok(())
    }
}
