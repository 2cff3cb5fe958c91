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
use crate::msr::HostMsrs;
use crate::operator;
use crate::scheduler::Scheduler;
use crate::vm::VmId;
use crate::vm::create::Maker;
use crate::vm_config::{self, BootModule};

/// Runs what the boot modules describe, until the machine is switched off.
pub fn run(machine: Machine) -> ! {
    let capabilities: &'static Capabilities = match Capabilities::read() {
        Ok(capabilities) => Box::leak(Box::new(capabilities)),
        Err(unsupported) => fatal(format_args!("{unsupported}")),
    };
    prepare_cpu(capabilities);
    log::info!(
        "VMX: TSC scaling {}, virtual APIC {}, EPT pages up to {}, preemption timer every {} ticks",
        yes_no(capabilities.tsc_scaling()),
        yes_no(capabilities.virtual_apic()),
        if capabilities.translation.pages_1g {
            "1 GiB"
        } else {
            "2 MiB"
        },
        1u64 << capabilities.preemption_timer_shift,
    );
    let cpu = PerCpu::current();
    let host = HostState {
        cs: gdt::CODE.0,
        data: gdt::DATA.0,
        tr: gdt::TSS.0,
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
    let configs = vm_config::parse(&modules).unwrap_or_else(|error| fatal(format_args!("{error}")));
    if configs.is_empty() {
        fatal(format_args!(
            "no guest to run: add a boot module with the command line `kernel vm=NAME`"
        ));
    }
    let tsc = machine.tsc.frequency;
    operator::start_clock(tsc);
    crate::emulate::prepare();
    let mut maker = Maker::new(
        capabilities,
        host,
        tsc,
        host_msrs(),
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
                if let Some(first) = vcpus.first() {
                    operator::add_vm(first.vm());
                }
                scheduler.add(vcpus);
            }
            Err(error) => fatal(format_args!("vm {}: {error}", config.name)),
        }
    }
    log::info!("{} MiB of RAM left", memory::free_bytes() >> 20);
    serial::set_buffered(true);
    operator::open();
    scheduler.run()
}

/// Puts this CPU into VMX operation, with the extended state of guests switched on.
fn prepare_cpu(capabilities: &Capabilities) {
    let has_xsave = raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_xsave());
    if has_xsave {
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
}

/// What guests are told of this CPU's MSRs.
fn host_msrs() -> HostMsrs {
    const BIOS_SIGN_ID: u32 = 0x8b;
    const ARCH_CAPABILITIES: u32 = 0x10a;
    let has_arch_capabilities = crate::cpuid::host(7, 0).edx >> 29 & 1 != 0;
    // SAFETY: IA32_BIOS_SIGN_ID exists on every CPU with VMX, IA32_ARCH_CAPABILITIES where
    // CPUID says so. CPUID leaf 1 loads the revision after a write of zero (SDM vol. 3A,
    // 10.11.7.1).
    unsafe {
        vmx::msr::write(BIOS_SIGN_ID, 0);
        let _ = crate::cpuid::host(1, 0);
        HostMsrs {
            microcode_revision: (vmx::msr::read(BIOS_SIGN_ID) >> 32) as u32,
            arch_capabilities: if has_arch_capabilities {
                vmx::msr::read(ARCH_CAPABILITIES)
            } else {
                0
            },
        }
    }
}

const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
