//! Brings the machine up, from the boot loader's hand-over to the loops of its CPUs.

mod host_facts;
mod run;
mod takeover;

use vmx::addr::PAGE_SIZE;

use crate::machine::boot_info::{BootInfo, IdentityMapped, Protocol};
use crate::machine::cpu::{PerCpu, idt};
use crate::machine::fatal::{self, fatal};
use crate::machine::image::ImageLayout;
use crate::machine::memory::{self, FrameAllocator, PhysRange};
use crate::machine::{
    acpi::Acpi, image::Trampoline, logger, paging, pic, power, serial, text_screen, tsc,
};
use crate::options::Options;

/// The facts found out about the machine, for [`run::run`] to use.
struct Machine {
    /// The places where the boot loader put things: modules (guest kernels and initrds) above all.
    boot_info: BootInfo,
    /// tarpit's command line, parsed.
    options: Options,
    /// Processors, timers and interrupt controllers.
    acpi: Acpi,
    /// The TSC's frequency and how it was measured.
    tsc: tsc::Calibration,
    /// The code where other CPUs wake up.
    trampoline: Trampoline,
}

/// Takes the machine over: console, boot information, memory, paging, exceptions, ACPI,
/// TSC; then runs what there is to run. Whatever tarpit cannot do without is a fatal error.
///
/// `boot_magic` and `info_address` are what the boot loader left in EAX and EBX.
///
/// # Safety
/// Once, on the boot CPU, in 64-bit mode with the GDT selectors of [`crate::machine::cpu::gdt`],
/// interrupts off, the first 4 GiB identity-mapped and writable, running from the image that
/// `image` describes, and nothing else running on the machine.
pub unsafe fn start(boot_magic: u32, info_address: u32, image: ImageLayout) -> ! {
    // SAFETY: by the caller, nothing else runs, and the boot GDT is in place.
    unsafe {
        idt::init(idt::ExceptionStacks::Absent);
        idt::load();
        pic::silence();
    }
    serial::init();
    logger::init();
    // SAFETY: mapped by the caller, and untouched since the BIOS.
    unsafe { text_screen::init() };

    // SAFETY: mapped by the caller. What is read is copied before anything else is written
    // but the image's own data, which boot loaders keep their structures out of.
    let memory = unsafe { IdentityMapped::new() };
    let boot_info = BootInfo::read(boot_magic, info_address, &memory)
        .unwrap_or_else(|error| fatal(format_args!("{error}")));
    let options = Options::parse(&boot_info.command_line)
        .unwrap_or_else(|error| fatal(format_args!("{error}")));
    log::set_max_level(options.log_level);
    if options.quiet {
        logger::be_quiet();
    }
    if let Some(line) = options.console
        && !serial::use_line(line)
    {
        log::warn!("there is no serial line {line}: the console stays where it is");
    }
    log::info!(
        "version {}, started by {} ({:?})",
        env!("CARGO_PKG_VERSION"),
        if boot_info.loader.is_empty() {
            "an unnamed loader"
        } else {
            &boot_info.loader
        },
        boot_info.protocol
    );

    let reserved = boot_info
        .modules
        .iter()
        .map(|module| module.range)
        .chain([PhysRange::new(image.image.start, image.image.end)]);
    memory::init(FrameAllocator::new(&boot_info.memory_map, reserved));
    // SAFETY: by the caller, once, on the boot CPU.
    let paging = unsafe { paging::init(&boot_info.memory_map, &image) };
    paging.unwrap_or_else(|error| too_little_memory(&error));
    // SAFETY: by the caller, once, on the boot CPU; other CPUs are not started before they
    // have a TSS, too.
    let cpu = unsafe {
        let cpu = PerCpu::init(image.boot_stack_guard, 0)
            .unwrap_or_else(|error| too_little_memory(&error));
        idt::init(idt::ExceptionStacks::InTss);
        cpu
    };

    // SAFETY: all memory below 4 GiB and all RAM is identity-mapped now, and firmware's
    // tables were not available memory.
    let acpi = unsafe { Acpi::discover(&boot_info) }.unwrap_or_else(|error| {
        log::warn!(
            "no usable ACPI tables ({error:?}): no power-off, the boot CPU only, and the PIT \
             to measure the TSC by"
        );
        if boot_info.protocol == Protocol::Multiboot1 {
            log::warn!(
                "under UEFI, start tarpit by GRUB's command multiboot2: by multiboot 1 nothing is told \
                 of where ACPI tables are"
            );
        }
        Acpi::default()
    });
    if options.console.is_none()
        && let Some(line) = acpi.console
        && !serial::use_line(line)
    {
        log::warn!("firmware's console, {line}, is not there: tarpit's stays where it is");
    }
    // SAFETY: only the firmware's data is there, and it has been read: from now on null
    // pointers fault.
    unsafe { paging::protect(PhysRange::new(0, PAGE_SIZE), None) }
        .unwrap_or_else(|error| too_little_memory(&error));
    power::init(acpi.soft_off, acpi.reset);
    // SAFETY: the timers are tarpit's, and their addresses come from ACPI.
    let tsc = unsafe { tsc::calibrate(&acpi) }.unwrap_or_else(|_| {
        fatal(format_args!(
            "neither HPET, nor ACPI PM timer, nor PIT counts; enable one in the firmware's setup"
        ))
    });

    fatal::set_action(options.on_fatal, tsc.frequency);
    report(&boot_info, &acpi, &tsc, cpu);
    // SAFETY: by the caller, once, on the boot CPU. All memory below 4 GiB is identity-mapped.
    unsafe { takeover::silence_devices(&acpi, &options.pci_leave) };
    run::run(Machine {
        boot_info,
        options,
        acpi,
        tsc,
        trampoline: image.trampoline,
    })
}

fn too_little_memory(error: &memory::OutOfMemory) -> ! {
    fatal(format_args!("{error}; give the machine more memory"))
}

/// Logs the facts found.
fn report(boot_info: &BootInfo, acpi: &Acpi, tsc: &tsc::Calibration, cpu: &PerCpu) {
    log::info!(
        "{} CPUs, running on APIC ID {}",
        acpi.cpus.len().max(1),
        cpu.apic_id
    );
    log::info!("{} MiB of RAM free", memory::free_bytes() >> 20);
    log::info!(
        "TSC {}, within {} ppm by the {}",
        tsc.frequency,
        tsc.error_ppm,
        tsc.source
    );
    if !tsc::is_invariant(crate::cpuid::host) {
        log::warn!(
            "the TSC may change its rate with the CPU's: switch power saving off in the firmware's \
             setup, or guests' clocks will be wrong"
        );
    }
    for (index, module) in boot_info.modules.iter().enumerate() {
        log::info!(
            "module {index}: {} KiB at {:#x}: {}",
            module.range.size().div_ceil(1024),
            module.range.start.0,
            module.command_line
        );
    }
    for region in &boot_info.memory_map {
        log::debug!("memory {:?} {:?}", region.range, region.kind);
    }
    log::debug!("{acpi:x?}");
}
