//! HLT, the VMX instructions, WBINVD, and single steps over instructions that exit.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::apic::{DEFAULT_ADDRESS, Register, divide};
use arch::{Dr6Flags, RFlags};
use kernels::interrupts::{DEBUG, Fault, catch, clear_handler, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::{Report, mmio, platform, tsc};

const VECTOR: u8 = 0x40;
/// RFLAGS.TF.
const TRAP: u64 = RFlags::TRAP_FLAG.bits();
/// DR6.BS: a single step.
const SINGLE_STEP: u64 = Dr6Flags::STEP.bits();

static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

pub(crate) fn test(report: &mut Report) {
    test_halt(report);
    test_vmx(report);
    // SAFETY: writing back the caches changes no memory that anyone sees.
    let outcome = catch(|| unsafe { asm!("wbinvd") });
    report.same("WBINVD", outcome, Ok(()));
    // SAFETY: PAUSE does nothing.
    report.same("PAUSE", catch(|| unsafe { asm!("pause") }), Ok(()));
    test_single_steps(report);
}

fn test_halt(report: &mut Report) {
    set_handler(VECTOR, |_| {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
        Lapic::enable(Mode::XApic).end();
    });
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(Register::DIVIDE, divide::BY_1);
    lapic.write(Register::LVT_TIMER, u32::from(VECTOR));
    for _ in 0..3 {
        INTERRUPTS.store(0, Ordering::Relaxed);
        let start = tsc::now();
        lapic.write(Register::INITIAL_COUNT, 100_000);
        // SAFETY: the timer's handler keeps all registers.
        unsafe { asm!("sti", "hlt", "cli") };
        report.equal(
            "HLT ends with the timer interrupt",
            INTERRUPTS.load(Ordering::Relaxed),
            1,
        );
        report.equal(
            "the timer has run down",
            lapic.read(Register::CURRENT_COUNT),
            0,
        );
        report.holds("time passed in HLT", tsc::now() - start > 10_000);
    }
    clear_handler(VECTOR);
}

fn test_vmx(report: &mut Report) {
    macro_rules! is_undefined {
        ($name:literal, $instruction:literal) => {{
            let operand = 0_u64;
            // SAFETY: a CPU without VMX has no such instruction.
            let outcome = catch(|| unsafe {
                asm!(concat!($instruction), in("rdi") &raw const operand, in("rax") 0_u64);
            });
            report.same($name, outcome, Err(Fault::INVALID_OPCODE));
        }};
    }
    is_undefined!("VMXON", "vmxon [rdi]");
    is_undefined!("VMXOFF", "vmxoff");
    is_undefined!("VMPTRLD", "vmptrld [rdi]");
    is_undefined!("VMPTRST", "vmptrst [rdi]");
    is_undefined!("VMCLEAR", "vmclear [rdi]");
    is_undefined!("VMREAD", "vmread [rdi], rax");
    is_undefined!("VMWRITE", "vmwrite rax, [rdi]");
    is_undefined!("VMLAUNCH", "vmlaunch");
    is_undefined!("VMRESUME", "vmresume");
    is_undefined!("INVEPT", "invept rax, [rdi]");
    is_undefined!("INVVPID", "invvpid rax, [rdi]");
    is_undefined!("VMFUNC", "vmfunc");
    is_undefined!("GETSEC", "getsec");
    is_undefined!("UD2", "ud2");
}

/// Each instruction under RFLAGS.TF gives one #DB after it, also where the instruction exits.
fn test_single_steps(report: &mut Report) {
    static STEPS: AtomicU32 = AtomicU32::new(0);
    static STATUS: AtomicU32 = AtomicU32::new(0);
    set_handler(DEBUG, |_| {
        let status: u64;
        // SAFETY: reads DR6, then sets it as it is after reset.
        unsafe {
            asm!("mov {}, dr6", out(reg) status);
            asm!("mov dr6, {}", in(reg) 0xffff_0ff0_u64);
        }
        STATUS.fetch_or(status as u32, Ordering::Relaxed);
        STEPS.fetch_add(1, Ordering::Relaxed);
    });
    // The step after POPFQ sets TF is the first instruction that traps, the POPFQ that clears it
    // the last: PUSHFQ, AND and POPFQ trap too.
    macro_rules! steps_over {
        ($name:literal, $instruction:literal) => {{
            STEPS.store(0, Ordering::Relaxed);
            STATUS.store(0, Ordering::Relaxed);
            // SAFETY: the instructions have no effect but on the registers named.
            unsafe {
                asm!(
                    "xchg rbx, {rbx}",
                    "pushfq",
                    "or qword ptr [rsp], {trap}",
                    "popfq",
                    $instruction,
                    "pushfq",
                    "and qword ptr [rsp], ~{trap}",
                    "popfq",
                    "xchg rbx, {rbx}",
                    rbx = inout(reg) 0_u64 => _,
                    trap = const TRAP,
                    inout("rax") 0_u64 => _, inout("rcx") 0x1b_u64 => _, inout("rdx") 0xffff_u64 => _,
                    in("rdi") DEFAULT_ADDRESS + 0x30,
                );
            }
            report.equal(concat!("single steps over ", $name), STEPS.load(Ordering::Relaxed), 4);
            let status = u64::from(STATUS.load(Ordering::Relaxed));
            report.equal(concat!("DR6 after stepping over ", $name), status & 0xe00f, SINGLE_STEP);
        }};
    }
    steps_over!("NOP", "nop");
    steps_over!("CPUID", "cpuid");
    steps_over!("RDMSR", "rdmsr");
    steps_over!("IN", "in al, dx");
    steps_over!("a read of device memory", "mov eax, [rdi]");
    if platform::is_tcg() {
        report.skip(
            "single step over MOV to CR0",
            "TCG ends its block without the trap",
        );
    } else {
        // Two instructions, five traps.
        STEPS.store(0, Ordering::Relaxed);
        let cr0: u64;
        // SAFETY: CR0 keeps its value.
        unsafe {
            asm!("mov {}, cr0", out(reg) cr0);
            asm!(
                "pushfq",
                "or qword ptr [rsp], {trap}",
                "popfq",
                "mov cr0, {cr0}",
                "clts",
                "pushfq",
                "and qword ptr [rsp], ~{trap}",
                "popfq",
                trap = const TRAP,
                cr0 = in(reg) cr0,
            );
        }
        report.equal(
            "single steps over MOV to CR0 and CLTS",
            STEPS.load(Ordering::Relaxed),
            5,
        );
    }
    clear_handler(DEBUG);
    // SAFETY: the LAPIC's version register.
    let version = unsafe { mmio::read32(DEFAULT_ADDRESS + 0x30) };
    report.within(
        "the LAPIC's version",
        u64::from(version & 0xff),
        0x10..=0x15,
    );
}
