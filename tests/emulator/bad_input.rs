//! What tarpit says to boot modules and machines that are wrong: each is told in one line,
//! and nothing hangs.

use anyhow::{Context, Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::initramfs::{self, Shell};
use xtask::testbed::kernel::{self, Series};
use xtask::testbed::module::{Guest, Module};
use xtask::testbed::{Setup, build};

pub(crate) fn without_a_module_it_asks_for_one(case: &Case) -> Result<()> {
    told(tarpit(case)?, &["no guest to run", "`kernel vm=NAME`"])
}

pub(crate) fn a_module_that_is_no_kernel_is_told_what_it_is(case: &Case) -> Result<()> {
    let file = tests::file(case, "text", b"#!/bin/sh\necho not a kernel\n")?;
    told(
        tarpit(case)?.module(Guest::new("web").kernel(&file)),
        &["vm web", "the kernel is of no known format", "bzImage"],
    )
}

pub(crate) fn a_module_that_does_not_say_what_it_is_is_told_how(case: &Case) -> Result<()> {
    let file = tests::file(case, "nameless", &[0; 512])?;
    let command_line = "vm=web".to_owned();
    told(
        tarpit(case)?.module(Module { file, command_line }),
        &["boot module 1", "does not say what it is"],
    )
}

pub(crate) fn a_vm_too_small_for_its_kernel_is_told_what_it_needs(case: &Case) -> Result<()> {
    let guest = Guest {
        memory_mib: 16,
        ..Guest::new("web")
    };
    told(
        tarpit(case)?.debian(Series::default(), &guest)?,
        &["vm web", "too little memory, 16M", "(say mem="],
    )
}

pub(crate) fn a_machine_too_small_for_its_vms_says_what_is_free(case: &Case) -> Result<()> {
    let guest = Guest::new("web");
    told(
        tarpit(case)?
            .memory_mib(128)
            .kernel("triple_fault", &guest)?,
        &["vm web", "not enough memory for 256 MiB", "MiB are free"],
    )
}

pub(crate) fn a_truncated_initrd_is_found_before_the_guest_starts(case: &Case) -> Result<()> {
    let whole = initramfs::pack(&case.file_name(), &build::all()?.workload, Shell::None)?;
    let whole = std::fs::read(whole)?;
    let half = whole.get(..whole.len() / 2).context("an empty initrd")?;
    let file = tests::file(case, "half", half)?;
    let guest = Guest::new("web");
    told(
        tarpit(case)?
            .module(guest.kernel(&kernel::fetch(Series::default())?))
            .module(Module::initrd(&file, &guest.name)),
        &["vm web", "the initrd is unusable", "truncated"],
    )
}

/// Boots it, and finds all these words in its last line.
fn told(setup: Setup, words: &[&str]) -> Result<()> {
    let line = setup.boot()?.wait_for_fatal()?;
    for word in words {
        ensure!(line.contains(word), "`{word}` is not in: {line}");
    }
    Ok(())
}
