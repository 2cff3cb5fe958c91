//! Runs the VMs: from the boot modules to the loop of a physical CPU.

use alloc::boxed::Box;
use alloc::vec::Vec;

use vmx::bitmaps::IoBitmaps;
use vmx::capabilities::Capabilities;
use vmx::page::Page;
use vmx::vmcs::HostState;

use crate::fatal::fatal;
use crate::machine::cpu::{PerCpu, gdt, idt};
use crate::machine::host_timer::HostTimer;
use crate::machine::{Machine, memory, serial};
use crate::scheduler::Scheduler;
use crate::vcpu::live_state::LiveFeatures;
use crate::vm::VmId;
use crate::vm::create::Maker;
use crate::vm_config::{BootModule, VmConfig};

/// Runs what the boot modules describe, until the machine is switched off.
pub fn run(machine: Machine) -> ! {
    let capabilities: &'static Capabilities = match Capabilities::read() {
        Ok(capabilities) => Box::leak(Box::new(capabilities)),
        Err(unsupported) => fatal(format_args!("{unsupported}")),
    };
    let live_features = prepare_cpu(capabilities);
    log::info!(
        "VMX: TSC scaling {}, virtual APIC {}, EPT pages up to {}, preemption timer every {} ticks",
        yes_no(capabilities.tsc_scaling()),
        yes_no(capabilities.virtual_apic()),
        if capabilities.translation.pages_1g { "1 GiB" } else { "2 MiB" },
        1u64 << capabilities.preemption_timer_shift,
    );
    let cpu = PerCpu::current();
    let host = HostState {
        cs: gdt::CODE,
        data: gdt::DATA,
        tr: gdt::TSS,
        gs_base: cpu.gs_base(),
        tss_base: cpu.tss_base(),
        gdt_base: cpu.gdt_base(),
        idt_base: idt::base(),
    };
    let modules: Vec<BootModule<'_>> = machine
        .boot_info
        .modules
        .iter()
        .map(|module| BootModule {
            command_line: &module.command_line,
            // SAFETY: modules were reserved when the allocator was made, are identity-mapped,
            // and nobody writes to them.
            data: unsafe { module.bytes() },
        })
        .collect();
    let configs = VmConfig::from_modules(&modules).unwrap_or_else(|error| fatal(format_args!("{error}")));
    if configs.is_empty() {
        fatal(format_args!(
            "no guest to run: add a boot module with the command line `kernel vm=NAME`"
        ));
    }
    let tsc = machine.tsc.frequency;
    let mut maker = Maker::new(
        capabilities,
        host,
        tsc,
        live_features,
        Box::leak(Box::new(IoBitmaps::ALL_EXIT)),
        machine.options.virtual_apic,
    );
    // SAFETY: interrupts are off, and the LAPIC is ours.
    let timer = unsafe { HostTimer::new(tsc) };
    let mut scheduler = Scheduler::new(timer, tsc, machine.options.on_end);
    for (number, config) in configs.iter().enumerate() {
        match maker.make(VmId(number), config) {
            Ok(vcpus) => {
                log::info!(
                    "vm {}: {} MiB, {} VCPU{}",
                    config.name,
                    config.memory >> 20,
                    vcpus.len(),
                    if vcpus.len() == 1 { "" } else { "s" }
                );
                scheduler.add(vcpus);
            }
            Err(error) => fatal(format_args!("vm {}: {error}", config.name)),
        }
    }
    log::info!("{} MiB of RAM left", memory::free_bytes() >> 20);
    serial::set_buffered(true);
    scheduler.run()
}

/// Puts this CPU into VMX operation, with the extended state of guests switched on.
fn prepare_cpu(capabilities: &Capabilities) -> LiveFeatures {
    let features = crate::cpuid::live_features(&crate::cpuid::host);
    if features.xcr0 != 0 {
        // SAFETY: the CPU has XSAVE; the host uses no extended state.
        unsafe {
            x86_64::registers::control::Cr4::update(|cr4| {
                cr4.insert(x86_64::registers::control::Cr4Flags::OSXSAVE);
            });
        }
    }
    // SAFETY: FXSAVE and SSE exist on every 64-bit CPU; guests decide for themselves by
    // their own CR0 and CR4, and the host needs these to exchange the guests' state.
    unsafe {
        use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
        Cr0::update(|cr0| cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED));
        Cr4::update(|cr4| cr4.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE));
    }
    let region = Box::leak(Box::new(Page::ZERO));
    // SAFETY: ring 0, the capabilities are this CPU's, and all memory is identity-mapped.
    if let Err(error) = unsafe { vmx::operation::enter_vmx_operation(capabilities, region) } {
        fatal(format_args!("{error}"));
    }
    features
}

const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
