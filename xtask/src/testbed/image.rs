//! GRUB rescue ISOs: tarpit and its guests as boot modules, or a Linux alone for comparison.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::testbed::module::Module;
use crate::testbed::progress::Step;
use crate::testbed::{paths, provision};

/// The GRUB modules that booting from the CD takes. By default grub-mkrescue adds hundreds.
const GRUB_MODULES: &str = "acpi biosdisk boot iso9660 linux memrw mmap multiboot2 normal wrmsr";

/// The contents of a CD: the system that GRUB boots.
#[derive(Clone, Debug)]
pub enum Contents {
    /// tarpit with its guests.
    Tarpit {
        /// The ELF file.
        tarpit: PathBuf,
        /// tarpit's own options, as in `loglevel=info on-end=stay`.
        options: String,
        /// Guest kernels and RAM disks.
        modules: Vec<Module>,
        /// Other files below `/boot`, by their names there.
        files: Vec<(String, PathBuf)>,
        /// The commands that GRUB executes last, line by line in its script language.
        before_boot: Vec<String>,
    },
    /// A Linux on the bare machine, without tarpit: what overheads are measured against.
    Linux {
        /// A bzImage.
        kernel: PathBuf,
        /// Its RAM disk.
        initrd: PathBuf,
        /// Its command line.
        command_line: String,
    },
}

impl Contents {
    /// Returns the files on the CD, by their paths there, and GRUB's script.
    fn lay_out(&self) -> (Vec<(String, &Path)>, String) {
        let mut files: Vec<(String, &Path)> = Vec::new();
        let mut script = String::new();
        let mut load = |command: &str, file, name: &str, arguments: &str| {
            let on_cd = format!("/boot/{name}");
            script.push_str(command);
            for word in [on_cd.as_str()]
                .into_iter()
                .chain(arguments.split_whitespace())
            {
                let _ = write!(script, " {}", quoted(word));
            }
            script.push('\n');
            files.push((on_cd, file));
        };
        match self {
            Self::Tarpit {
                tarpit,
                options,
                modules,
                files: others,
                before_boot,
            } => {
                load("multiboot2", tarpit.as_path(), "tarpit", options);
                for (index, Module { file, command_line }) in modules.iter().enumerate() {
                    load("module2", file, &format!("module{index}"), command_line);
                }
                for line in before_boot {
                    let _ = writeln!(script, "{line}");
                }
                files.extend(
                    others
                        .iter()
                        .map(|(name, file)| (format!("/boot/{name}"), file.as_path())),
                );
            }
            Self::Linux {
                kernel,
                initrd,
                command_line,
            } => {
                load("linux", kernel.as_path(), "vmlinuz", command_line);
                load("initrd", initrd.as_path(), "initrd", "");
            }
        }
        script.push_str("boot\n");
        (files, script)
    }
}

/// Returns a word as GRUB's script language takes it literally.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Makes the ISO `target/images/NAME.iso`, or `output`.
///
/// # Errors
/// When packages are missing and cannot be installed, a file cannot be read, or grub-mkrescue
/// fails.
pub fn make(name: &str, contents: &Contents, output: Option<&Path>) -> Result<PathBuf> {
    provision::ensure_packages(provision::IMAGE_PACKAGES)?;
    let default = paths::images().join(format!("{name}.iso"));
    let iso = output.map_or(default, Path::to_owned);
    std::fs::create_dir_all(paths::images())?;
    let _step = Step::begin(format!("Making {}", paths::shown(&iso)));

    let (files, script) = contents.lay_out();
    let staging = tempfile::tempdir_in(paths::images())?;
    let grub = staging.path().join("boot/grub");
    std::fs::create_dir_all(&grub)?;
    std::fs::write(grub.join("grub.cfg"), script)?;
    for (on_cd, file) in files {
        let to = staging.path().join(on_cd.trim_start_matches('/'));
        std::fs::copy(file, &to).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let sh = Shell::new()?;
    let directory = staging.path();
    // The directory fixes the platform: with EFI packages about, GRUB would add its EFI images.
    cmd!(sh, "grub-mkrescue --directory=/usr/lib/grub/i386-pc --output={iso} --install-modules={GRUB_MODULES} --fonts= --locales= --themes= {directory}")
        .quiet()
        .ignore_stderr()
        .ignore_stdout()
        .run()
        .context("grub-mkrescue failed")?;
    Ok(iso)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::module::Guest;

    #[test]
    fn grub_loads_tarpit_and_every_module_with_its_command_line() {
        let guest = Guest::new("debian").command_line("console=ttyS0");
        let contents = Contents::Tarpit {
            tarpit: "t/tarpit".into(),
            options: "loglevel=info on-end=stay".into(),
            modules: vec![
                guest.kernel(Path::new("vmlinuz")),
                Module::initrd(Path::new("i"), "debian"),
            ],
            files: Vec::new(),
            before_boot: vec!["write_dword 0xfee00080 0xf0".to_owned()],
        };
        let (files, script) = contents.lay_out();
        assert_eq!(
            script,
            "multiboot2 /boot/tarpit loglevel=info on-end=stay\n\
             module2 /boot/module0 kernel vm=debian mem=256M vcpus=1 -- console=ttyS0\n\
             module2 /boot/module1 initrd vm=debian\n\
             write_dword 0xfee00080 0xf0\n\
             boot\n"
        );
        assert_eq!(files.len(), 3);
        assert_eq!(files[2], ("/boot/module1".to_owned(), Path::new("i")));
    }

    #[test]
    fn words_that_grub_would_interpret_are_quoted() {
        assert_eq!(quoted("root=/dev/sda1,ro"), "root=/dev/sda1,ro");
        assert_eq!(quoted("a;b"), "'a;b'");
        assert_eq!(quoted("$x"), "'$x'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(r#"x="y""#), r#"'x="y"'"#);
    }
}
