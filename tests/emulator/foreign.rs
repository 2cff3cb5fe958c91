//! Operating systems of others as guests.

use anyhow::{Context, Result, bail, ensure};
use tests::{Case, file, tarpit};
use xtask::testbed::kernel;
use xtask::testbed::module::{Guest, Module};
use xtask::testbed::serial::Session;

/// Xen 4.17 as Debian builds it, from multiboot to the point where it wants its first domain: the
/// memory map, ACPI, MP tables, the IOAPIC's registers one by one, HPET, TSC, x2APIC with directed
/// EOIs, a second processor started, and the reset register in the end.
pub(crate) fn xen_starts_its_processors_and_tests_the_ioapic(case: &Case) -> Result<()> {
    // There is no BIOS to be asked in real mode.
    let words = "no-real-mode com1=115200,8n1 console=com1 loglvl=all apic_verbosity=debug";
    let guest = Guest {
        vcpus: 2,
        memory_mib: 512,
        ..Guest::new("xen").command_line(words)
    };
    // It looks for one before it sets anything up, and into it when all else is set up.
    let no_kernel = file(case, "domain", &[0; 4096])?;
    let mut session = tarpit(case)?
        .module(guest.kernel(&kernel::fetch_xen()?))
        .module(Module::of_guest(&no_kernel.to_string_lossy(), "xen"))
        .boot()?;
    let mut said = String::new();
    for milestone in [
        "Command line: no-real-mode",
        "Using ACPI (MADT) for SMP configuration information",
        "Switched to APIC driver x2apic",
        "Platform timer is 100.000MHz HPET",
        "Suppressing EOI broadcast",
        "number of IO-APIC #",
        "Brought up 2 CPUs",
        "Could not construct domain 0",
        "Resetting with ACPI MEMORY or I/O RESET_REG",
        "vm xen ended: reset",
    ] {
        said += &session.wait_for(milestone)?;
    }
    for complaint in ["timer not connected", "not functional", "unstable", "WARN"] {
        ensure!(!said.contains(complaint), "`{complaint}` in:\n{said}");
    }
    Ok(())
}

/// Memtest86+ as Debian builds it, which has the machine to itself: it draws on the screen of the VGA,
/// starts the second processor in real mode, and writes and reads all of the memory with both.
pub(crate) fn memtest_finds_no_error_with_two_processors(case: &Case) -> Result<()> {
    let guest = Guest {
        vcpus: 2,
        memory_mib: 20,
        ..Guest::new("memtest")
    };
    let mut session = tarpit(case)?
        .cpus(2)
        // It draws each two seconds.
        .ips(tests::IPS / 4)
        .memtest(&guest)?
        .boot()?;
    session.wait_for("Memtest86+ v6")?;
    session.wait_for("[Address test, walking ones, no cache]")?;
    // The fourth, or one behind it: it may draw none of one that is short.
    session.wait_for_match(r"#[3-9] +\[Moving inversions")?;
    let rows = session.query("screen memtest")?;
    for part in ["SMP: 2T (PAR)", "Errors: 0 "] {
        ensure!(
            rows.iter()
                .any(|row| format!("{} ", row["text"].as_str().unwrap_or("")).contains(part)),
            "no `{part}` on the screen: {rows:?}"
        );
    }
    Ok(())
}

/// GNU Mach as Debian builds it, from multiboot to tasks that take turns, and one of them suppressed.
///
/// They make no system calls, for this build ends at the first of a task of 32 bits (by a UD2 that is
/// there for those who would test them), and tasks of 64 it has not.
pub(crate) fn mach_has_two_tasks_take_turns_and_one_is_suppressed(case: &Case) -> Result<()> {
    let mut setup = tarpit(case)?.module(
        Guest::new("mach")
            .command_line("console=com0")
            .kernel(&kernel::fetch_mach()?),
    );
    for name in ["left", "right"] {
        let task = file(case, name, &task_with(&text_of(name)))?;
        // Words of Mach's boot scripts.
        let module = format!("{} {name} $(task-create) $(task-resume)", task.display());
        setup = setup.module(Module::of_guest(&module, "mach"));
    }
    let mut session = setup.boot()?;
    for milestone in [
        "GNU Mach 1.8",
        "2 multiboot modules",
        "task loaded: right",
        "start left",
        "start right",
    ] {
        session.wait_for(milestone)?;
    }
    let left = share_of_left(&mut session)?;
    ensure!(
        (400..=600).contains(&left),
        "one of two equal tasks has {left} thousandths of their time"
    );
    let root = root_of(&mut session, "left")?;
    session.query(&format!("suppress mach {root} 20"))?;
    let left = share_of_left(&mut session)?;
    ensure!(
        left <= 60,
        "a task with a twentieth of a CPU at most has {left} thousandths of their time"
    );
    let right = root_of(&mut session, "right")?;
    ensure!(right != root, "both tasks have the root {root}");
    Ok(())
}

/// The text that a task of this name holds.
fn text_of(name: &str) -> String {
    format!("this task is the {name} one")
}

/// An ELF file of a task for 80386 that computes for ever, and holds a text.
fn task_with(text: &str) -> Vec<u8> {
    const BASE: u32 = 0x1_0000;
    const HEADERS: u32 = 52 + 32;
    /// The loop: `inc eax; jmp` back to it.
    const CODE: [u8; 3] = [0x40, 0xeb, 0xfd];
    let size = HEADERS + CODE.len() as u32 + text.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    // An executable for the 80386, with one program header and no sections.
    elf.extend([2_u16, 3].map(u16::to_le_bytes).concat());
    elf.extend([1, BASE + HEADERS, 52, 0, 0].map(u32::to_le_bytes).concat());
    elf.extend([52_u16, 32, 1, 40, 0, 0].map(u16::to_le_bytes).concat());
    // All of the file, readable, writable and executable.
    let segment = [1, 0, BASE, BASE, size, size, 7, 0x1000];
    elf.extend(segment.map(u32::to_le_bytes).concat());
    elf.extend(CODE);
    elf.extend(text.bytes());
    elf
}

/// The CR3 of the one task of this name.
fn root_of(session: &mut Session, name: &str) -> Result<String> {
    let found = session.query(&format!("find mach '{}'", text_of(name)))?;
    match found.as_slice() {
        [one] => Ok(one["cr3"].as_str().context("no CR3")?.to_owned()),
        _ => bail!("not one task with the text of {name}: {found:?}"),
    }
}

/// Waits until both tasks together have run for two seconds more, and returns how much of that the
/// left one had, in thousandths.
fn share_of_left(session: &mut Session) -> Result<u64> {
    const ENOUGH_MS: u64 = 2000;
    let roots = [root_of(session, "left")?, root_of(session, "right")?];
    let begun = run_times(session, &roots)?;
    loop {
        let now = run_times(session, &roots)?;
        let ran = |task: usize| now[task].saturating_sub(begun[task]);
        let both = ran(0) + ran(1);
        if both >= ENOUGH_MS {
            return Ok(ran(0) * 1000 / both);
        }
    }
}

/// The times that the address spaces with these roots have run, in milliseconds.
fn run_times(session: &mut Session, roots: &[String; 2]) -> Result<[u64; 2]> {
    let seen = session.query("ps mach")?;
    let of = |root: &String| {
        let line = seen.iter().find(|line| line["cr3"] == *root.as_str());
        line.and_then(|line| line["cpu_ms"].as_u64())
            .with_context(|| format!("{root} is not in {seen:?}"))
    };
    Ok([of(&roots[0])?, of(&roots[1])?])
}
