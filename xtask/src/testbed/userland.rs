//! A Debian userland, made of Debian's packages without any rights on this machine: an ext4 file system, as on any
//! machine's disk.
//!
//! It is what the packages install, and is set up as for any machine with a serial console. Its init is
//! `sysvinit`: each instruction counts in an emulator, and it needs neither udev nor a bus of messages.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::testbed::progress::Step;
use crate::testbed::{paths, provision};

/// The release.
const SUITE: &str = "bookworm";
/// The packages beside the essential ones and all that they depend on. (`usr-is-merged` is the alternative to
/// `usrmerge`, which needs all of Perl to do what has been done.)
const PACKAGES: &str = "sysvinit-core,usr-is-merged,passwd,nginx-light,busybox,e2fsprogs";
/// The files that dpkg leaves out, as in Debian's images for containers: nobody reads them here.
const LEFT_OUT: [&str; 4] = ["doc", "info", "locale", "man"];
/// The first steps of an administrator, in shell: a login on the serial line and on no screen, root without a
/// password, a name from the kernel's command line instead of the one that is copied from this machine, and the
/// root file system's place, where it is checked at each boot.
const SET_UP: [&str; 4] = [
    r#"sed -i -e '/getty.*tty[1-6]$/d' -e '$aT0:23:respawn:/sbin/getty -L ttyS0 115200 vt102' "$1/etc/inittab""#,
    r#"sed -i 's/^root:[^:]*:/root::/' "$1/etc/shadow""#,
    r#"rm -f "$1/etc/hostname" "$1/etc/resolv.conf""#,
    r#"echo '/dev/vda2 / ext4 errors=remount-ro 0 1' > "$1/etc/fstab""#,
];
/// The size of the file system, a sixth of which is free: each MiB takes an emulated CD drive 14 million instructions to
/// load, and one that is packed takes GRUB 50 million to unpack.
const SIZE: &str = "92M";
/// The commands that make the file system `$2` of the archive `$1`, of the size `$3`, below the directory `$4`. Whoever carries them
/// out is to have files of other owners. No checksums: they cost instructions, and this disk does not err.
const MAKE: &str = "\
set -e
mkdir \"$4/root\"
tar -x -f \"$1\" -C \"$4/root\" --numeric-owner
mke2fs -q -F -t ext4 -b 4096 -m 0 -J size=4 -N 8192 -O ^metadata_csum,^64bit,^resize_inode -L root \\
    -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d \"$4/root\" \"$2\" \"$3\"
e2fsck -f -n \"$2\"
rm -r \"$4/root\"
";

/// Returns the userland, from `target/downloads` or else made anew from Debian's archive.
///
/// # Errors
/// When packages that make it are missing and cannot be installed, the archive cannot be reached, or a
/// program fails.
pub fn make() -> Result<PathBuf> {
    let directory = paths::downloads().join("userland");
    let userland = directory.join("debian.ext4");
    let recipe_file = directory.join("recipe");
    let arguments = arguments();
    let recipe = format!("{}\n{SIZE}\n{MAKE}", arguments.join("\n"));
    let is_kept = std::fs::read_to_string(&recipe_file).is_ok_and(|kept| kept == recipe);
    if is_kept && userland.exists() {
        return Ok(userland);
    }
    provision::ensure_packages(provision::USERLAND_PACKAGES)?;
    std::fs::create_dir_all(&directory)?;
    let _step = Step::begin("Making a Debian userland from its packages, which takes a minute");
    let work = tempfile::tempdir_in(&directory)?;
    let archive = work.path().join("debian.tar");
    finish(
        Command::new("mmdebstrap").args(&arguments).arg(&archive),
        "see if http://deb.debian.org can be reached",
    )?;
    let made = work.path().join("debian.ext4");
    finish(
        Command::new("fakeroot")
            .args(["sh", "-c", MAKE, "make"])
            .args([&*archive, &*made, Path::new(SIZE), work.path()]),
        "see if there is room on the disk",
    )?;
    // The recipe last: it says that the userland is whole. Other runs use it, too.
    put(&made, &userland)?;
    let mut kept = tempfile::NamedTempFile::new_in(&directory)?;
    kept.write_all(recipe.as_bytes())?;
    kept.persist(&recipe_file)
        .with_context(|| format!("cannot write {}", recipe_file.display()))?;
    Ok(userland)
}

fn put(made: &Path, place: &Path) -> Result<()> {
    std::fs::rename(made, place).with_context(|| format!("cannot write {}", place.display()))
}

/// Returns what `mmdebstrap` is told, but for the file to write.
fn arguments() -> Vec<String> {
    let mut arguments = vec![
        // The same for root and for others, who may have no user namespaces.
        "--mode=fakechroot".to_owned(),
        "--variant=essential".to_owned(),
        format!("--include={PACKAGES}"),
        "--hook-directory=/usr/share/mmdebstrap/hooks/merged-usr".to_owned(),
    ];
    let left_out = LEFT_OUT.map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*"));
    arguments.extend(left_out);
    arguments.extend(SET_UP.map(|command| format!("--customize-hook={command}")));
    arguments.push("--format=tar".to_owned());
    arguments.push(SUITE.to_owned());
    arguments
}

/// Runs a command to its end.
fn finish(command: &mut Command, remedy: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.trim().lines().collect();
    let last = lines[lines.len().saturating_sub(10)..].join("\n");
    ensure!(
        output.status.success(),
        "{name} failed ({}; {remedy}):\n{last}",
        output.status
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands as the shell carries them out, on the files that Debian's packages install.
    #[test]
    fn there_is_a_login_on_the_serial_line_alone_for_root_without_a_password() -> Result<()> {
        let root = tempfile::tempdir()?;
        let file = |name: &str| root.path().join("etc").join(name);
        std::fs::create_dir(root.path().join("etc"))?;
        let lines = "id:2:initdefault:\n\
                     1:2345:respawn:/sbin/getty --noclear 38400 tty1\n\
                     6:23:respawn:/sbin/getty 38400 tty6\n\
                     #T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n";
        std::fs::write(file("inittab"), lines)?;
        std::fs::write(file("shadow"), "root:*:20785:0:\nbin:*:20785:0:\n")?;
        std::fs::write(file("hostname"), "build\n")?;
        for command in SET_UP {
            finish(
                Command::new("sh")
                    .args(["-c", command, "hook"])
                    .arg(root.path()),
                "",
            )?;
        }
        assert_eq!(
            std::fs::read_to_string(file("inittab"))?,
            "id:2:initdefault:\n\
             #T0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n\
             T0:23:respawn:/sbin/getty -L ttyS0 115200 vt102\n"
        );
        assert_eq!(
            std::fs::read_to_string(file("shadow"))?,
            "root::20785:0:\nbin:*:20785:0:\n"
        );
        assert!(!file("hostname").exists());
        assert!(std::fs::read_to_string(file("fstab"))?.contains(" / ext4 "));
        Ok(())
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_last_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "seq 20 >&2; exit 3"]);
        let error = finish(&mut command, "do this").unwrap_err().to_string();
        assert!(error.starts_with("sh failed (exit status: 3; do this):\n11\n"));
        assert!(error.ends_with("\n20"), "{error}");
    }
}
