//! Operating systems of others as guests.

use anyhow::{Result, ensure};
use tests::{Case, file, tarpit};
use xtask::testbed::kernel;
use xtask::testbed::module::{Guest, Module};

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
