//! What operations that a hypervisor may have to handle cost, in ticks of the TSC.
//!
//! Each line `bench: NAME=MINIMUM median=MEDIAN` is of one operation, with what the measurement
//! itself costs taken off. `rounds=N` on the command line says how often each is measured;
//! `operator=1` that somebody is there to do what lines ask for that begin so, and to answer with any byte:
//!
//! - `bench: to be suppressed ROOT`: to suppress that address space; not with the word `no-target`, for hypervisors that
//!   suppress nothing.
//! - `bench: to be counted NAME OPERATIONS`: to count the exits from now on, until `bench: counted`.
//!
//! With `echo=1` it is the other end of a network instead, and sends back what it receives, for ever.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod virtio;

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::apic::{DEFAULT_ADDRESS, Register, divide, icr, lvt};
use arch::msr::{IA32_APIC_BASE, IA32_TSC_ADJUST, IA32_TSC_DEADLINE};
use kernels::hpet::{COUNTER, Hpet};
use kernels::interrupts::{self, catch};
use kernels::lapic::{self, Lapic, Mode};
use kernels::pm_timer::PmTimer;
use kernels::{Report, ioapic, memory, multiboot, println, serial, tsc};

/// The most rounds: each has a place in memory.
const MAX_ROUNDS: usize = 1000;
/// Rounds where the command line says nothing.
const ROUNDS: u64 = 100;

const VECTOR: u8 = 0x50;

struct Samples(UnsafeCell<[u64; MAX_ROUNDS]>);

// SAFETY: one CPU, and no interrupt handler uses them.
unsafe impl Sync for Samples {}

static SAMPLES: Samples = Samples(UnsafeCell::new([0; MAX_ROUNDS]));

/// The ticks that measuring nothing takes.
static OVERHEAD: AtomicU64 = AtomicU64::new(0);

/// Returns whether somebody is there to be asked.
fn has_operator() -> bool {
    multiboot::number("operator") == Some(1)
}

/// Returns how often each operation is measured.
fn rounds() -> usize {
    let asked = multiboot::number("rounds").unwrap_or(ROUNDS);
    asked.clamp(1, MAX_ROUNDS as u64) as usize
}

/// The time of `$operation`, once. RDTSC alone brackets it, without a fence: the measuring machines
/// execute one instruction a tick, in order.
macro_rules! ticks {
    ($($operation:tt)*) => {{
        let (start_low, start_high, end_low, end_high): (u32, u32, u32, u32);
        // SAFETY: each operation below says what it touches.
        unsafe {
            asm!("rdtsc", out("eax") start_low, out("edx") start_high, options(nostack));
            $($operation)*;
            asm!("rdtsc", out("eax") end_low, out("edx") end_high, options(nostack));
        }
        let start = u64::from(start_high) << 32 | u64::from(start_low);
        (u64::from(end_high) << 32 | u64::from(end_low)).wrapping_sub(start)
    }};
}

/// Measures `operation` and prints its line.
#[inline(always)]
fn measure(report: &mut Report, name: &str, mut operation: impl FnMut() -> u64) {
    let rounds = rounds();
    // SAFETY: no other reference is alive: `operation` does not measure.
    let samples = unsafe { &mut (&mut *SAMPLES.0.get())[..rounds] };
    // The first time touches what later times find in caches and TLBs.
    let _ = operation();
    for sample in &mut *samples {
        *sample = operation();
    }
    samples.sort_unstable();
    let overhead = OVERHEAD.load(Ordering::Relaxed);
    let minimum = samples[0].saturating_sub(overhead);
    let median = samples[rounds / 2].saturating_sub(overhead);
    println!("bench: {name}={minimum} median={median}");
    report.holds(name, samples[0] > 0);
}

/// The tick count when the last measured interrupt was handled.
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// Handles the interrupt by x2APIC: the end, and nothing else.
#[unsafe(naked)]
extern "C" fn end_by_msr() {
    naked_asm!(
        "push rax", "push rcx", "push rdx",
        "mov ecx, 0x80b", "xor eax, eax", "xor edx, edx", "wrmsr",
        "mov byte ptr [rip + {handled}], 1",
        "pop rdx", "pop rcx", "pop rax",
        "iretq",
        handled = sym HANDLED,
    )
}

/// Handles the interrupt by xAPIC.
#[unsafe(naked)]
extern "C" fn end_by_memory() {
    naked_asm!(
        "push rax",
        "mov eax, {eoi}",
        "mov dword ptr [rax], 0",
        "mov byte ptr [rip + {handled}], 1",
        "pop rax",
        "iretq",
        eoi = const DEFAULT_ADDRESS + 0xb0,
        handled = sym HANDLED,
    )
}

/// Handles the interrupt without ending it, and notes the time.
#[unsafe(naked)]
extern "C" fn note_time() {
    naked_asm!(
        "push rax", "push rdx",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rip + {handled}], rax",
        "pop rdx", "pop rax",
        "iretq",
        handled = sym HANDLED,
    )
}

fn run(report: &mut Report) {
    if multiboot::number("echo") == Some(1) {
        virtio::echo();
    }
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    println!("bench: tsc_hz={hertz}");
    measure(report, "overhead", || ticks!({}));
    // SAFETY: `measure` is not running.
    let least = unsafe { (&*SAMPLES.0.get())[0] };
    OVERHEAD.store(least, Ordering::Relaxed);
    instructions(report);
    devices(report);
    context_switch(report);
    xapic(report, Lapic::enable(Mode::XApic));
    if lapic::has_x2apic() {
        x2apic(report, Lapic::enable(Mode::X2Apic));
    } else {
        report.skip("x2APIC", "the CPU has none");
    }
    virtio::measure_all(report);
    if !has_operator() {
        report.skip("context_switch_beside_target", "no operator=1");
    } else if multiboot::has_word("no-target") {
        report.skip("context_switch_beside_target", "no-target");
    } else {
        context_switch_beside_target(report);
    }
}

fn instructions(report: &mut Report) {
    // SAFETY, here and in the rest: the operations change no memory that the program uses, and the
    // registers that they change are declared.
    measure(report, "cpuid", || {
        ticks!({
            asm!("push rbx", "cpuid", "pop rbx", inout("eax") 0 => _, out("ecx") _, out("edx") _);
        })
    });
    measure(report, "rdtsc", || {
        ticks!({ asm!("rdtsc", out("eax") _, out("edx") _) })
    });
    let vmcall = || {
        ticks!({
            asm!("vmcall", inout("rax") 0xbeef_u64 => _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        })
    };
    if catch(|| {
        let _ = vmcall();
    })
    .is_ok()
    {
        measure(report, "vmcall", vmcall);
    } else {
        // No hypervisor takes it: the price of a fault instead.
        measure(report, "vmcall_fault", || {
            ticks!({
                let _ = catch(|| asm!("vmcall"));
            })
        });
    }
    measure(report, "cr8_read", || {
        ticks!({ asm!("mov {}, cr8", out(reg) _) })
    });
    measure(report, "apic_base_read", || {
        ticks!({
            asm!("rdmsr", in("ecx") IA32_APIC_BASE, out("eax") _, out("edx") _);
        })
    });
    if core::arch::x86_64::__cpuid_count(7, 0).ebx & 1 << 1 == 0 {
        report.skip("tsc_adjust_write", "no IA32_TSC_ADJUST");
    } else {
        measure(report, "tsc_adjust_write", || {
            ticks!({
                asm!("wrmsr", in("ecx") IA32_TSC_ADJUST, in("eax") 0, in("edx") 0);
            })
        });
    }
}

fn devices(report: &mut Report) {
    if let Some(timer) = PmTimer::find() {
        measure(report, "pm_timer_read", || {
            ticks!({
                asm!("in eax, dx", in("dx") timer.port, out("eax") _);
            })
        });
    } else {
        report.skip("pm_timer_read", "no PM timer");
    }
    // Latches channel 0's count, then reads a byte of it twice.
    measure(report, "pit_latch", || {
        ticks!({ asm!("out 0x43, al", in("al") 0_u8) })
    });
    measure(report, "pit_read", || {
        ticks!({ asm!("in al, 0x40", out("al") _) })
    });
    measure(report, "absent_port_read", || {
        ticks!({
            asm!("in al, dx", in("dx") 0x1234_u16, out("al") _);
        })
    });
    measure(report, "ioapic_read", || {
        ticks!({
            asm!("mov eax, [{}]", in(reg) ioapic::WINDOW, out("eax") _);
        })
    });
    if let Some(hpet) = Hpet::find() {
        let counter = hpet.address(COUNTER);
        measure(report, "hpet_read", || {
            ticks!({
                asm!("mov eax, [{}]", in(reg) counter, out("eax") _);
            })
        });
    } else {
        report.skip("hpet_read", "no HPET");
    }
}

fn context_switch(report: &mut Report) {
    measure_switches(report, "context_switch");
}

/// The same while another address space is a target, which never runs: the operator is told its
/// root, and answers with any byte when it is suppressed.
fn context_switch_beside_target(report: &mut Report) {
    println!("bench: to be suppressed {:#x}", memory::new_root());
    while serial::receive().is_none() {
        core::hint::spin_loop();
    }
    measure_switches(report, "context_switch_beside_target");
}

fn measure_switches(report: &mut Report, name: &str) {
    let roots = [memory::root(), memory::new_root()];
    let mut turn = 0;
    measure(report, name, || {
        turn ^= 1;
        let root = roots[turn];
        ticks!({ asm!("mov cr3, {}", in(reg) root) })
    });
    // SAFETY: the address space that the kernel began with.
    unsafe { memory::load_root(roots[0]) };
}

fn handle_with(handler: extern "C" fn()) {
    // SAFETY: the handlers above keep all registers.
    unsafe { interrupts::set_raw_handler(VECTOR, handler as *const () as u64) };
}

fn xapic(report: &mut Report, lapic: Lapic) {
    const ICR: u64 = DEFAULT_ADDRESS + Register::ICR_LOW.offset() as u64;
    const SELF: u32 = icr::TO_SELF | icr::ASSERT | VECTOR as u32;
    handle_with(end_by_memory);
    measure(report, "xapic_self_ipi", || {
        ticks!({
            asm!("mov dword ptr [{}], {:e}", "sti", "nop", "cli", in(reg) ICR, in(reg) SELF);
        })
    });
    measure(report, "xapic_icr_write", || {
        let ticks = ticks!({ asm!("mov dword ptr [{}], {:e}", in(reg) ICR, in(reg) SELF) });
        interrupts::let_in();
        ticks
    });
    handle_with(note_time);
    measure(report, "xapic_eoi", || {
        lapic.send_self(VECTOR);
        interrupts::let_in();
        ticks!({
            asm!("mov dword ptr [{}], 0", in(reg) DEFAULT_ADDRESS + u64::from(Register::EOI.offset()));
        })
    });
    lapic.write(Register::DIVIDE, divide::BY_1);
    timer(report, "xapic_timer", lapic);
    interrupts::restore(VECTOR);
}

fn x2apic(report: &mut Report, lapic: Lapic) {
    const SELF: u32 = icr::TO_SELF | icr::ASSERT | VECTOR as u32;
    handle_with(end_by_msr);
    measure(report, "x2apic_self_ipi", || {
        ticks!({
            asm!("wrmsr", "sti", "nop", "cli", in("ecx") Register::ICR_LOW.msr(), in("eax") SELF, in("edx") 0);
        })
    });
    measure(report, "x2apic_icr_write", || {
        let ticks = ticks!({
            asm!("wrmsr", in("ecx") Register::ICR_LOW.msr(), in("eax") SELF, in("edx") 0)
        });
        interrupts::let_in();
        ticks
    });
    measure(report, "x2apic_self_ipi_register", || {
        ticks!({
            asm!("wrmsr", "sti", "nop", "cli", in("ecx") Register::SELF_IPI.msr(), in("eax") u32::from(VECTOR), in("edx") 0);
        })
    });
    handle_with(note_time);
    measure(report, "x2apic_eoi", || {
        lapic.send_self(VECTOR);
        interrupts::let_in();
        ticks!({ asm!("wrmsr", in("ecx") Register::EOI.msr(), in("eax") 0, in("edx") 0) })
    });
    timer(report, "x2apic_timer", lapic);
    if lapic::has_tsc_deadline() {
        lapic.write(
            Register::LVT_TIMER,
            lvt::TIMER_TSC_DEADLINE | u32::from(VECTOR),
        );
        measure(report, "deadline_arm", || {
            let far = tsc::now() + (1 << 40);
            ticks!({
                asm!("wrmsr", in("ecx") IA32_TSC_DEADLINE, in("eax") far as u32, in("edx") (far >> 32) as u32);
            })
        });
        handle_with(note_time);
        // Armed, expired, delivered to the handler's first instruction: how late it is.
        measure(report, "deadline_arm_and_interrupt", || {
            let start = tsc::now();
            // A deadline that is past already: expires at once.
            // SAFETY: the handler keeps all registers.
            unsafe {
                asm!("wrmsr", "sti", "nop", "cli",
                    in("ecx") IA32_TSC_DEADLINE, in("eax") start as u32, in("edx") (start >> 32) as u32);
            }
            lapic.end();
            HANDLED.load(Ordering::Relaxed).wrapping_sub(start)
        });
        measure(report, "deadline_lateness", || {
            let deadline = tsc::now() + 20_000;
            // SAFETY: as above. HLT waits for the timer.
            unsafe {
                asm!("wrmsr", "sti", "hlt", "cli",
                    in("ecx") IA32_TSC_DEADLINE, in("eax") deadline as u32, in("edx") (deadline >> 32) as u32);
            }
            lapic.end();
            HANDLED.load(Ordering::Relaxed).wrapping_sub(deadline)
        });
        lapic.write(Register::LVT_TIMER, lvt::MASKED);
    } else {
        report.skip("deadline_arm", "no TSC-deadline mode");
    }
    interrupts::restore(VECTOR);
}

/// Arms the one-shot timer with the shortest count and waits for its interrupt: the whole.
fn timer(report: &mut Report, name: &str, lapic: Lapic) {
    handle_with(note_time);
    lapic.write(Register::DIVIDE, divide::BY_1);
    lapic.write(Register::LVT_TIMER, u32::from(VECTOR));
    measure(report, name, || {
        let start = tsc::now();
        lapic.write(Register::INITIAL_COUNT, 1);
        // SAFETY: the handler keeps all registers.
        unsafe { asm!("sti", "hlt", "cli") };
        lapic.end();
        HANDLED.load(Ordering::Relaxed).wrapping_sub(start)
    });
    lapic.write(Register::LVT_TIMER, lvt::MASKED);
}

kernels::kernel!(run);
