//! From the boot loader to tarpit's first lines, and what it refuses to run with.

use anyhow::{Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::Setup;
use xtask::testbed::module::Module;

/// The command lines arrive as they were written, spaces and punctuation included.
pub(crate) fn grub_hands_over_modules_and_options(case: &Case) -> Result<()> {
    let file = tests::file(case, "ramdisk", &[0x55; 5000])?;
    let mut session = tarpit(case)?
        .options("loglevel=debug on-end=poweroff")
        .module(Module {
            file,
            command_line: "initrd vm=a;b$c".to_owned(),
        })
        .boot()?;
    session.wait_for("started by GRUB")?;
    session.wait_for("(Multiboot2)")?;
    session.wait_for("initrd vm=a;b$c\n")?;
    Ok(())
}

pub(crate) fn qemu_starts_it_by_multiboot_1(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?.by_multiboot_1().boot()?;
    session.wait_for("(Multiboot1)")?;
    Ok(())
}

pub(crate) fn an_unknown_option_is_named(case: &Case) -> Result<()> {
    let line = fatal(tarpit(case)?.options("loglevel=info color=blue"))?;
    ensure!(
        line.contains("`color=blue`") && line.contains("on-end=stay|poweroff"),
        "{line}"
    );
    Ok(())
}

pub(crate) fn a_bad_option_value_is_answered_with_the_good_ones(case: &Case) -> Result<()> {
    let line = fatal(tarpit(case)?.options("on-end=explode"))?;
    ensure!(
        line.contains("`on-end=explode`") && line.contains("stay|poweroff"),
        "{line}"
    );
    Ok(())
}

pub(crate) fn a_cpu_without_vmx_is_told(case: &Case) -> Result<()> {
    let line = fatal(tarpit(case)?)?;
    ensure!(line.contains("VMX"), "{line}");
    Ok(())
}

fn fatal(setup: Setup) -> Result<String> {
    setup.boot()?.wait_for_fatal()
}
