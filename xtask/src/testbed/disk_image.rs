//! Disks that a PC's BIOS boots: GRUB, a Linux and its RAM disk in one partition, its root file system in
//! another, made of files without any rights on this machine.
//!
//! The layout is what `grub-install` makes: GRUB's boot sector in the first sector, with the partition
//! table; its core behind that; the partitions from 1 MiB on. The boot sector reads the core from sector 1
//! on, as it does unless it is told otherwise, and the core knows its own length.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::testbed::progress::Step;
use crate::testbed::{paths, provision};

/// GRUB's files for a PC's BIOS.
const GRUB: &str = "/usr/lib/grub/i386-pc";
/// The modules that the core of GRUB is made of: all that it takes to boot a Linux from the partition.
const MODULES: [&str; 7] = [
    "biosdisk",
    "boot",
    "echo",
    "fat",
    "linux",
    "normal",
    "part_msdos",
];
/// The place of GRUB's configuration.
const PREFIX: &str = "(hd0,msdos1)/boot/grub";

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;
/// The first byte of the first partition.
const PARTITION: usize = MIB;
/// The boot sector's code, in front of what is the disk's own.
const CODE: usize = 440;
/// The offset of the partition table in the first sector.
const TABLE: usize = 446;
/// The type of a partition with a FAT file system that is found by the number of its first sector.
const FAT: u8 = 0x0e;
/// The type of a partition with a file system of Linux.
const LINUX: u8 = 0x83;

/// The root file system's partition, as Linux calls it.
pub const ROOT: &str = "/dev/vda2";

/// A Linux on a disk.
#[derive(Clone, Copy, Debug)]
pub struct Linux<'a> {
    /// A bzImage.
    pub kernel: &'a Path,
    /// Its RAM disk.
    pub initrd: &'a Path,
    /// Its root file system.
    pub root: &'a Path,
    /// Its command line.
    pub command_line: &'a str,
}

/// Makes the disk `target/images/NAME.img`.
///
/// # Errors
/// When packages are missing and cannot be installed, a file cannot be read, or a program fails.
pub fn make(name: &str, linux: &Linux<'_>) -> Result<PathBuf> {
    provision::ensure_packages(provision::IMAGE_PACKAGES)?;
    std::fs::create_dir_all(paths::images())?;
    let path = paths::images().join(format!("{name}.img"));
    let _step = Step::begin(format!("Making {}", paths::shown(&path)));
    let directory = tempfile::tempdir_in(paths::images())?;
    let file = |name: &str| directory.path().join(name);

    let Linux {
        kernel,
        initrd,
        root,
        ..
    } = linux;
    let sh = Shell::new()?;
    let core = file("core.img");
    let modules = MODULES;
    cmd!(sh, "grub-mkimage --directory={GRUB} --format=i386-pc --prefix={PREFIX} --output={core} {modules...}")
        .quiet()
        .run()
        .context("grub-mkimage failed")?;
    let boot = std::fs::read(Path::new(GRUB).join("boot.img")).context("no boot.img of GRUB's")?;
    let mut content = 0;
    for file in [kernel, initrd] {
        let metadata = std::fs::metadata(file);
        let metadata = metadata.with_context(|| format!("cannot read {}", file.display()))?;
        content += usize::try_from(metadata.len())?;
    }
    let disk = file("disk");
    let root = std::fs::read(root).with_context(|| format!("cannot read {}", root.display()))?;
    let core = std::fs::read(&core)?;
    std::fs::write(&disk, with_grub(&boot, &core, content, &root)?)?;

    let config = file("grub.cfg");
    std::fs::write(&config, configuration(linux.command_line))?;
    let sectors = (partition_length(content) / SECTOR).to_string();
    let partition = format!("{}@@{PARTITION}", disk.display());
    let mtools = |command: &str| {
        let command = cmd!(sh, "{command} -i {partition}").quiet();
        // It would compare the disk with a floppy's geometry.
        command.env("MTOOLS_SKIP_CHECK", "1")
    };
    mtools("mformat").args(["-T", &sectors, "::"]).run()?;
    mtools("mmd").args(["::/boot", "::/boot/grub"]).run()?;
    for (from, to) in [
        (*kernel, "::/boot/vmlinuz"),
        (*initrd, "::/boot/initrd"),
        (&*config, "::/boot/grub/grub.cfg"),
    ] {
        mtools("mcopy").arg(from).arg(to).run()?;
    }
    std::fs::rename(&disk, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Returns the length of a partition with so many bytes in files.
fn partition_length(content: usize) -> usize {
    // The file system has tables, and clusters that are not full.
    (content + content / 64 + MIB).next_multiple_of(MIB)
}

/// Returns a disk with GRUB, a partition for so many bytes in files, whose file system is still to
/// be made, and one that holds `root`.
fn with_grub(boot: &[u8], core: &[u8], content: usize, root: &[u8]) -> Result<Vec<u8>> {
    ensure!(boot.len() == SECTOR, "GRUB's boot.img is no sector");
    let room = PARTITION - SECTOR;
    ensure!(
        core.len() <= room,
        "GRUB's core is too large: {} bytes",
        core.len()
    );
    let length = partition_length(content);
    let root_length = root.len().next_multiple_of(MIB);
    let root_partition = PARTITION + length;
    let mut disk = vec![0; root_partition + root_length];
    disk[..CODE].copy_from_slice(&boot[..CODE]);
    disk[SECTOR..][..core.len()].copy_from_slice(core);
    disk[root_partition..][..root.len()].copy_from_slice(root);
    let entries = [
        entry(true, FAT, PARTITION, length)?,
        entry(false, LINUX, root_partition, root_length)?,
    ];
    let entries = entries.as_flattened();
    disk[TABLE..][..entries.len()].copy_from_slice(entries);
    disk[SECTOR - 2..SECTOR].copy_from_slice(&[0x55, 0xaa]);
    Ok(disk)
}

/// Returns an entry of the partition table for so many bytes from there on.
fn entry(is_bootable: bool, kind: u8, from: usize, length: usize) -> Result<[u8; 16]> {
    let mut entry = [0; 16];
    if is_bootable {
        entry[0] = 0x80;
    }
    // No cylinders and heads; first sector and their number.
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = kind;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    let sectors = |bytes: usize| u32::try_from(bytes / SECTOR);
    entry[8..12].copy_from_slice(&sectors(from)?.to_le_bytes());
    entry[12..].copy_from_slice(&sectors(length)?.to_le_bytes());
    Ok(entry)
}

/// Returns GRUB's script.
fn configuration(command_line: &str) -> String {
    format!(
        "echo GRUB: loading Linux\n\
         linux /boot/vmlinuz {command_line}\n\
         echo GRUB: loading its RAM disk\n\
         initrd /boot/initrd\n\
         boot\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grub_is_in_front_of_the_partitions_and_the_table_says_where_those_are() -> Result<()> {
        let (boot, core) = ([0x11; SECTOR], [0x22; 3 * SECTOR + 1]);
        let root = [0x33; MIB + 1];
        let disk = with_grub(&boot, &core, 3 * MIB, &root)?;
        assert!(disk.len() >= 7 * MIB && disk.len().is_multiple_of(MIB));
        assert!(disk[..CODE].iter().all(|&byte| byte == 0x11));
        assert_eq!(disk[SECTOR..][..core.len()], core);
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        let number =
            |at: usize| -> Result<u32> { Ok(u32::from_le_bytes(disk[at..at + 4].try_into()?)) };
        assert_eq!((disk[TABLE], disk[TABLE + 16]), (0x80, 0));
        assert_eq!(number(TABLE + 8)?, 2048);
        let end = 2048 + number(TABLE + 12)?;
        assert_eq!(number(TABLE + 16 + 8)?, end);
        let second = end as usize * SECTOR;
        assert_eq!(disk[second..][..root.len()], root);
        let end = (end + number(TABLE + 16 + 12)?) as usize * SECTOR;
        assert_eq!(end, disk.len());
        assert!(
            disk[TABLE + 32..510].iter().all(|&byte| byte == 0),
            "two partitions"
        );
        assert!(
            with_grub(&boot, &vec![0; MIB], 0, &root).is_err(),
            "no room for the core"
        );
        assert!(with_grub(&[], &core, 0, &root).is_err());
        Ok(())
    }
}
