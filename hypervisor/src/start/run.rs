//! Runs the VMs: from the boot modules to the loop of a physical CPU.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::cpuid::Leaf7Edx;
use arch::msr::{IA32_ARCH_CAPABILITIES, IA32_BIOS_SIGN_ID, IA32_MCU_OPT_CTRL, McuOptCtrl};
use devices::time::Hertz;
use spin::{Mutex, Once};
use vmx::bitmaps::IoBitmaps;
use vmx::capabilities::Capabilities;
use vmx::controls::Secondary;
use vmx::entry::WorldSwitch;
use vmx::page::Page;
use vmx::vmcs::HostState;

use super::{Machine, host_facts};
use crate::cpu_loop::CpuLoop;
use crate::ids::VmId;
use crate::machine::cpu::{PerCpu, gdt, idt};
use crate::machine::fatal::fatal;
use crate::machine::host_timer::HostTimer;
use crate::machine::local_apic::{self, LocalApic};
use crate::machine::smp::threads;
use crate::machine::speculation::Remedies;
use crate::machine::{line_interrupts, machine_check, memory, serial, smp};
use crate::manager::{HostFactory, VmManager};
use crate::msr::HostMsrs;
use crate::operator::{Door, GuestOutput, HostClock, HostSerial, Session, Terminal};
use crate::options::OnEnd;
use crate::scheduler::{Scheduler, Settings};
use crate::speculation::{Defenses, Processor};
use crate::vcpu::HostCpu;
use crate::vm::host::SerialOutput;
use crate::vm_config::{self, BootModule};
use crate::watch::rule::Rule;

/// State shared by all CPUs: what each needs to begin its work.
struct Shared {
    capabilities: &'static Capabilities,
    tsc: Hertz,
    manager: VmManager,
    on_end: OnEnd,
    remedies: Remedies,
    /// Whether the TSC-deadline mode of local APICs can be relied on.
    deadline_works: bool,
}

/// The state shared by all CPUs, set before other CPUs are let go.
static SHARED: Once<Shared> = Once::new();

/// The capabilities of the boot CPU's VMX, for others to be compared with.
static BOOT_CAPABILITIES: Once<Capabilities> = Once::new();

/// The flaws and remedies that the boot CPU reports, for others to be compared with.
static BOOT_PROCESSOR: Once<Processor> = Once::new();

/// Runs what the boot modules describe, until the machine is switched off.
pub(super) fn run(machine: Machine) -> ! {
    // VMs can be started from the modules again at any time.
    let machine: &'static Machine = Box::leak(Box::new(machine));
    let capabilities =
        Capabilities::read().unwrap_or_else(|unsupported| fatal(format_args!("{unsupported}")));
    BOOT_CAPABILITIES.call_once(|| capabilities);
    let capabilities: &'static Capabilities = Box::leak(Box::new(if machine.options.tsc_scaling {
        capabilities
    } else {
        capabilities.without(Secondary::TSC_SCALING)
    }));
    let processor = *BOOT_PROCESSOR.call_once(processor);
    let used = choose_cpus(machine);
    let mcu_opt_ctrl = if processor.has_mcu_opt_ctrl() {
        // SAFETY: it says that it has it.
        McuOptCtrl::from_bits_retain(unsafe { vmx::msr::read(IA32_MCU_OPT_CTRL) })
    } else {
        McuOptCtrl::empty()
    };
    let defenses = Defenses::new(processor, used.one_thread_a_core, mcu_opt_ctrl);
    let remedies = defenses.remedies();
    prepare_cpu(capabilities, remedies);
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
    if machine.options.exit_cost != 0 {
        log::info!(
            "exit-cost: each exit takes {} ticks more, a model for measuring",
            machine.options.exit_cost
        );
    }
    let modules: Vec<BootModule<'static>> = machine
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
    let vm_config::Parsed {
        vms: configs,
        errors,
    } = vm_config::parse(&modules);
    match errors.first() {
        Some(error) if configs.is_empty() => fatal(format_args!("{error}")),
        None if configs.is_empty() => fatal(format_args!(
            "no guest to run: add a boot module with the command line `kernel vm=NAME`"
        )),
        // The others can do without.
        _ => errors.iter().for_each(|error| log::error!("{error}")),
    }
    let tsc = machine.tsc.frequency;
    let clock = HostClock::start(tsc);
    let terminal = Arc::new(Terminal::new(
        Arc::new(HostSerial(&serial::CONSOLE)),
        clock,
        configs.len(),
    ));
    crate::emulate::prepare();
    if let Err(error) = crate::machine::native::prepare() {
        log::warn!("no instructions of x87, MMX, SSE and AVX on guests' devices: {error}");
    }
    // SAFETY: interrupts are off, and the LAPIC is ours.
    let apic = unsafe { LocalApic::enable() };
    smp::init();
    let cpus = start_other_cpus(machine, &used.others);
    let scheduler = Arc::new(Scheduler::new(
        Settings::for_tsc(tsc),
        cpus,
        smp::kick::kick,
    ));
    let host_msrs = host_msrs();
    let deadline_works = host_msrs.deadline_mode_works(crate::cpuid::host(1, 0).eax);
    if !deadline_works {
        log::info!(
            "microcode {:#x} has an erratum: the host does without TSC-deadline mode",
            host_msrs.microcode_revision
        );
    }
    let mut factory = HostFactory {
        capabilities,
        tsc,
        host_msrs,
        io_bitmaps: Box::leak(Box::new(IoBitmaps::ALL_EXIT)),
        virtualize_apic: machine.options.virtual_apic,
        world_switch: WorldSwitch {
            exit_cost: machine.options.exit_cost,
            ..remedies.world_switch()
        },
        executes_in_large_pages: !remedies.no_execution_in_large_pages,
        waker: scheduler.clone(),
        serial_output: guest_outputs(&terminal, configs.len()),
        networks: Mutex::default(),
        prepared: Vec::new(),
    };
    let rules: Vec<(VmId, Rule)> = configs
        .iter()
        .enumerate()
        .flat_map(|(vm, config)| {
            config
                .rules
                .iter()
                .map(move |rule| (VmId(vm), rule.clone()))
        })
        .collect();
    factory.prepare(&configs);
    let manager = VmManager::new(Box::new(factory), scheduler, configs);
    let failed = manager.start_all();
    for (vm, cause) in &failed {
        let name = manager.name(*vm).unwrap_or_default();
        if manager.all_stopped() {
            fatal(format_args!("vm {name}: {cause}"));
        }
        log::error!("vm {name}: {cause}");
    }
    log::info!("{} MiB of RAM left", memory::free_bytes() >> 20);
    serial::set_buffered(true);
    let facts = host_facts::gather(machine, cpus, &defenses);
    let mut session = Session::open(terminal, facts).with_rules(rules);
    if machine.options.detector {
        session = with_door(session);
    }
    let shared = SHARED.call_once(|| Shared {
        capabilities,
        tsc,
        manager,
        on_end: machine.options.on_end,
        remedies,
        deadline_works,
    });
    let cpu = PerCpu::current();
    // SAFETY: this is the boot CPU; NMIs have a handler since `smp::init`, and the I/O APICs are ours.
    let lines_interrupt = unsafe { line_interrupts::begin(&machine.acpi, cpu.apic_id, tsc) };
    if !lines_interrupt {
        log::info!("serial lines do not interrupt here: they are looked at 1000 times a second");
    }
    serve(cpu, shared, apic, Some(session), lines_interrupt)
}

/// Opens the door for detectors, if its line is there.
fn with_door(session: Session) -> Session {
    if !serial::open_detectors() {
        log::warn!("detector=on: COM2 is not there, or is the console's: detectors cannot come in");
        return session;
    }
    log::info!("detectors may come in by COM2");
    session.with_door(Door::open(Arc::new(HostSerial(&serial::DETECTORS))))
}

/// Makes the far ends of guests' serial lines: channels of the terminal.
fn guest_outputs(
    terminal: &Arc<Terminal>,
    guests: usize,
) -> Box<dyn Fn(VmId) -> Box<dyn SerialOutput> + Send + Sync> {
    let terminal = terminal.clone();
    Box::new(move |vm| Box::new(GuestOutput::new(terminal.clone(), vm, guests)))
}

/// The CPUs to use besides the boot CPU.
struct UsedCpus {
    /// Their APIC IDs.
    others: Vec<u32>,
    /// Whether no two of all are threads of one core.
    one_thread_a_core: bool,
}

/// Chooses the CPUs to use, and says in the log which are not, and why.
fn choose_cpus(machine: &Machine) -> UsedCpus {
    let own = PerCpu::current().apic_id;
    let ids = machine.acpi.cpus.iter().map(|cpu| cpu.apic_id);
    let all: Vec<u32> = ids.filter(|&id| id != own).collect();
    let largest = local_apic::choose_mode(all.iter().copied());
    let (others, beyond): (Vec<u32>, Vec<u32>) = all.into_iter().partition(|&id| id <= largest);
    for id in beyond {
        log::warn!(
            "CPU with APIC ID {id} is not used: it takes x2APIC mode, which this machine does not have"
        );
    }
    let alone = threads::one_of_each_core(own, &others, threads::thread_bits(crate::cpuid::host));
    let shares_cores = alone.len() < others.len();
    if !shares_cores || machine.options.smt {
        return UsedCpus {
            others,
            one_thread_a_core: !shares_cores,
        };
    }
    log::info!(
        "{} of {} CPUs are second threads of a core, and are not used, so that VMs share none \
         (`smt=on` uses them)",
        others.len() - alone.len(),
        others.len() + 1
    );
    UsedCpus {
        others: alone,
        one_thread_a_core: true,
    }
}

/// Starts the CPUs with the APIC IDs `others`; they wait for [`SHARED`]. Returns how many CPUs there
/// are, with this one.
fn start_other_cpus(machine: &Machine, others: &[u32]) -> u32 {
    // SAFETY: once, on the boot CPU, with its LAPIC enabled; firmware's memory below 1 MiB
    // that is called available is not used by us.
    let cpus = unsafe {
        smp::start_others(
            others,
            machine.tsc.frequency,
            &machine.boot_info,
            &machine.trampoline,
            check_cpu,
            await_work,
        )
    };
    if !others.is_empty() {
        log::info!("{cpus} of {} CPUs running", others.len() + 1);
    }
    cpus
}

/// Checks that this CPU can run all VCPUs that the boot CPU can: a VMCS made for one CPU is used
/// on all.
fn check_cpu() -> Result<(), &'static str> {
    if BOOT_PROCESSOR.get() != Some(&processor()) {
        return Err("its flaws and remedies, by CPUID, differ from the boot CPU's");
    }
    match Capabilities::read() {
        Ok(own) if BOOT_CAPABILITIES.get() == Some(&own) => Ok(()),
        Ok(_) => Err("its VMX differs from the boot CPU's"),
        Err(_) => Err("its VMX lacks what the boot CPU's has, or firmware has switched it off"),
    }
}

/// Does what an application processor does.
fn await_work(cpu: &'static PerCpu) -> ! {
    let shared = loop {
        if let Some(shared) = SHARED.get() {
            break shared;
        }
        core::hint::spin_loop();
    };
    prepare_cpu(shared.capabilities, shared.remedies);
    // SAFETY: interrupts are off, and the LAPIC is ours.
    let apic = unsafe { LocalApic::enable() };
    serve(cpu, shared, apic, None, false)
}

/// Returns the work of every CPU, which is in VMX operation. The boot CPU has the operator's
/// session, and perhaps `lines_interrupt` it when something comes in.
fn serve(
    cpu: &'static PerCpu,
    shared: &'static Shared,
    apic: LocalApic,
    session: Option<Session>,
    lines_interrupt: bool,
) -> ! {
    let tables = HostCpu {
        index: cpu.index,
        host: HostState {
            cs: gdt::CODE.0,
            data: gdt::DATA.0,
            tr: gdt::TSS.0,
            gs_base: cpu.gs_base(),
            tss_base: cpu.tss_base(),
            gdt_base: cpu.gdt_base(),
            idt_base: idt::base(),
        },
    };
    // SAFETY: interrupts are off, and the LAPIC's timer is ours.
    let timer = unsafe { HostTimer::new(apic, shared.tsc, shared.deadline_works) };
    // SAFETY: the tables are this CPU's, by `PerCpu`; no VCPU is loaded yet.
    // What the remedies ask for, all CPUs have that were not refused.
    unsafe {
        CpuLoop::new(
            tables,
            &shared.manager,
            shared.on_end,
            timer,
            shared.remedies,
            session,
            lines_interrupt,
        )
        .run()
    }
}

/// Returns what this CPU says of its flaws and remedies.
fn processor() -> Processor {
    Processor::new(crate::cpuid::host, arch_capabilities())
}

/// Puts this CPU into VMX operation, with the extended state of guests switched on, and the remedies
/// that stay.
fn prepare_cpu(capabilities: &Capabilities, remedies: Remedies) {
    // SAFETY: this CPU says that it has what is asked for, as the boot CPU does. Its TSS has a stack for
    // machine checks.
    unsafe {
        remedies.prepare_cpu();
        machine_check::enable();
    }
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

/// Returns IA32_ARCH_CAPABILITIES of this CPU; zero if it does not exist.
fn arch_capabilities() -> u64 {
    let has_it = Leaf7Edx::from_bits_retain(crate::cpuid::host(7, 0).edx)
        .contains(Leaf7Edx::ARCH_CAPABILITIES);
    if has_it {
        // SAFETY: CPUID says that it exists.
        unsafe { vmx::msr::read(IA32_ARCH_CAPABILITIES) }
    } else {
        0
    }
}

/// Returns what guests are told of this CPU's MSRs.
fn host_msrs() -> HostMsrs {
    // SAFETY: IA32_BIOS_SIGN_ID exists on every CPU with VMX. CPUID leaf 1 loads the revision after a
    // write of zero (SDM vol. 3A, 10.11.7.1).
    let revision = unsafe {
        vmx::msr::write(IA32_BIOS_SIGN_ID, 0);
        let _ = crate::cpuid::host(1, 0);
        vmx::msr::read(IA32_BIOS_SIGN_ID)
    };
    HostMsrs {
        microcode_revision: (revision >> 32) as u32,
        arch_capabilities: arch_capabilities(),
    }
}

const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
