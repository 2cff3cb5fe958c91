//! From the boot loader to tarpit's first lines, and what it refuses to run with.

use anyhow::{Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::Setup;
use xtask::testbed::machine::Com1;
use xtask::testbed::module::{Guest, Module};

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

pub(crate) fn a_32_bit_cpu_is_told(case: &Case) -> Result<()> {
    let line = fatal(tarpit(case)?.processor("atom_n270"))?;
    ensure!(line.contains("no 64-bit mode"), "{line}");
    Ok(())
}

/// SYSLINUX's `mboot.c32` has the name of tarpit's file as the first word.
pub(crate) fn a_machine_without_com1_has_its_console_at_com2(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?
        .com1(Com1::Missing)
        .options("/boot/tarpit loglevel=info")
        .kernel("triple_fault", &Guest::new("web"))?
        .boot()?;
    session.wait_for("vm web ended: triple fault")?;
    ensure!(session.command("vms")?.contains("web"));
    Ok(())
}

/// COM1 is there, but ACPI's table says that the machine's console is COM2.
pub(crate) fn the_console_is_where_firmware_has_it(case: &Case) -> Result<()> {
    let table = tests::file(case, "spcr", &spcr())?;
    let mut session = tarpit(case)?
        .com1(Com1::Unheard)
        .file("spcr", table)
        .before_boot("acpi /boot/spcr")
        .kernel("triple_fault", &Guest::new("web"))?
        .boot()?;
    session.wait_for("vm web ended: triple fault")?;
    Ok(())
}

/// ACPI's table of the console: COM2, at 115200 baud. Serial Port Console Redirection Table, revision 2.
fn spcr() -> Vec<u8> {
    const COM2: u64 = 0x2f8;
    let mut body = Vec::new();
    // A 16550; then its address: ports, of 8 bits each, accessed byte by byte.
    body.extend([1, 0, 0, 0, 1, 8, 0, 1]);
    body.extend(COM2.to_le_bytes());
    // An interrupt of the 8259s, IRQ 3; of no I/O APIC.
    body.extend([1, 3, 0, 0, 0, 0]);
    // 115200 baud, no parity, one stop bit, no flow control, a terminal like ANSI's; and no PCI device.
    body.extend([7, 0, 1, 0, 3, 0, 0xff, 0xff, 0xff, 0xff]);
    body.resize(44, 0);
    acpi_table(b"SPCR", 2, &body)
}

/// ACPI tells of a third CPU with an ID that messages of 8 bits do not reach, and which is not there.
pub(crate) fn a_cpu_that_does_not_start_is_named_and_left_out(case: &Case) -> Result<()> {
    let madt = tests::file(case, "madt", &madt())?;
    let mut session = tarpit(case)?
        .cpus(2)
        .file("madt", madt)
        .before_boot("acpi --exclude=APIC /boot/madt")
        .kernel("triple_fault", &Guest::new("web"))?
        .boot()?;
    session.wait_for("CPU with APIC ID 257 is not used: ")?;
    session.wait_for("2 of 3 CPUs running")?;
    session.wait_for("vm web ended: triple fault")?;
    Ok(())
}

/// ACPI's table of two CPUs, one more of APIC ID 257, and Bochs's I/O APIC. ACPI specification 6.5, 5.2.12.
fn madt() -> Vec<u8> {
    let mut table = Vec::new();
    table.extend(0xfee0_0000_u32.to_le_bytes());
    // There are 8259s, too.
    table.extend(1_u32.to_le_bytes());
    for id in [0, 1] {
        table.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    // Local x2APIC: reserved, ID, flags, the processor's number.
    table.extend([9, 16, 0, 0]);
    for field in [257_u32, 1, 2] {
        table.extend(field.to_le_bytes());
    }
    table.extend([1, 12, 2, 0]);
    for field in [0xfec0_0000_u32, 0] {
        table.extend(field.to_le_bytes());
    }
    // The PIT's interrupt is at input 2.
    table.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    acpi_table(b"APIC", 3, &table)
}

/// A table of ACPI's with what is behind its header.
fn acpi_table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    const CHECKSUM: usize = 9;
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.extend(b"TARPITTESTTEST\x01\0\0\0TEST\x01\0\0\0");
    table.extend(body);
    table[CHECKSUM] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// Bochs's processor has no VMX.
pub(crate) fn a_fatal_error_restarts_the_machine_if_it_is_told_to(case: &Case) -> Result<()> {
    let mut session = tarpit(case)?
        .processor("athlon64_clawhammer")
        .options("on-fatal=reboot:1")
        .boot()?;
    for _ in 0..2 {
        session.wait_for("started by GRUB")?;
        let line = session.wait_for_fatal()?;
        ensure!(line.contains("VMX"), "{line}");
    }
    Ok(())
}

fn fatal(setup: Setup) -> Result<String> {
    setup.boot()?.wait_for_fatal()
}
