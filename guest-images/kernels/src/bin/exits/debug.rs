//! Debug exceptions around instructions that exit. SDM vol. 3B, 18.3.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arch::{Dr6Flags, Dr7Flags};
use kernels::interrupts::{DEBUG, Frame, clear_handler, set_handler};
use kernels::{Report, platform};

/// DR6 with no cause.
const NO_CAUSE: u64 = arch::reset::DR6;
/// DR6.BD: an access to a debug register under DR7.GD.
const DEBUG_REGISTER: u64 = Dr6Flags::ACCESS_DETECTED.bits();
/// DR6.BS: a single step.
const SINGLE_STEP: u64 = Dr6Flags::STEP.bits();
/// DR7.GD, and the bit that is always one.
const GENERAL_DETECT: u64 = Dr7Flags::GENERAL_DETECT_ENABLE.bits() | arch::reset::DR7;

/// The number of exceptions that are noted: as many as any test here has, and one for too many.
const ROOM: usize = 8;
static COUNT: AtomicUsize = AtomicUsize::new(0);
static PLACES: [AtomicU64; ROOM] = [const { AtomicU64::new(0) }; ROOM];
static CAUSES: [AtomicU64; ROOM] = [const { AtomicU64::new(0) }; ROOM];

fn note(frame: &mut Frame) {
    let cause: u64;
    // SAFETY: the next exception starts with a clean DR6.
    unsafe {
        asm!("mov {}, dr6", "mov dr6, {}", out(reg) cause, in(reg) NO_CAUSE);
    }
    let index = COUNT.fetch_add(1, Ordering::Relaxed);
    if index < ROOM {
        PLACES[index].store(frame.rip, Ordering::Relaxed);
        CAUSES[index].store(cause, Ordering::Relaxed);
    } else {
        // Whatever happens, it ends.
        frame.rflags &= !(1 << 8);
    }
}

/// Where debug exceptions came, in bytes from `start`, and why.
fn check(report: &mut Report, name: &str, start: u64, expected: &[(u64, u64)]) {
    report.equal(
        format_args!("{name}: how many"),
        COUNT.swap(0, Ordering::Relaxed),
        expected.len(),
    );
    for (index, &(offset, cause)) in expected.iter().enumerate().take(ROOM) {
        let place = PLACES[index].load(Ordering::Relaxed).wrapping_sub(start);
        report.equal(format_args!("{name}: RIP {index}"), place, offset);
        let mut got = CAUSES[index].load(Ordering::Relaxed);
        if cause == DEBUG_REGISTER {
            // Bochs does not forget the single step that MOV SS has suppressed.
            got &= !SINGLE_STEP;
        }
        report.equal(format_args!("{name}: DR6 {index}"), got, NO_CAUSE | cause);
    }
}

/// Runs code with RFLAGS.TF set from behind its first instruction on, which is POPF; tells where the
/// second is. ECX is SS, and RDX zero. The code ends with PUSH of flags without TF, and POPF: two single steps.
macro_rules! step {
    ($($code:literal),*) => {{
        let start: u64;
        // SAFETY: the code changes no memory and no registers but those named.
        unsafe {
            asm!(
                "pushfq",
                "pop r8",
                "mov r9, r8",
                "or r8, 0x100",
                "mov ecx, ss",
                "xor edx, edx",
                "lea {start}, [rip + 2f]",
                "push r8",
                "popfq",
                "2:",
                $($code,)*
                "push r9",
                "popfq",
                start = out(reg) start,
                out("r8") _, out("r9") _, out("rax") _, out("rcx") _, out("rdx") _,
                out("r10") _,
            );
        }
        start
    }};
}

pub(crate) fn test(report: &mut Report) {
    set_handler(DEBUG, note);
    // SAFETY: no breakpoint is set.
    unsafe { asm!("mov dr6, {}", in(reg) NO_CAUSE) };
    let step = SINGLE_STEP;

    let start = step!(
        "xor eax, eax",
        "mov r10, rbx",
        "cpuid",
        "mov rbx, r10",
        "in al, 0x80"
    );
    check(
        report,
        "single steps over CPUID and IN",
        start,
        &[
            (2, step),
            (5, step),
            (7, step),
            (10, step),
            (12, step),
            (14, step),
            (15, step),
        ],
    );
    if platform::is_tcg() {
        report.skip("single steps under STI and MOV SS", "QEMU differs");
    } else {
        let start = step!("cli", "sti", "in al, 0x80", "cli");
        check(
            report,
            "single steps under STI",
            start,
            &[
                (1, step),
                (2, step),
                (4, step),
                (5, step),
                (7, step),
                (8, step),
            ],
        );
        let start = step!("mov eax, ss", "mov ss, eax", ".byte 0xf1", "nop");
        check(
            report,
            "INT1 under MOV SS",
            start,
            &[(2, step), (5, 0), (6, step), (8, step), (9, step)],
        );
        test_string_output(report);
        // SAFETY: MOV DR6 is done again after the exception has cleared GD.
        unsafe { asm!("mov dr7, {}", in(reg) GENERAL_DETECT) };
        let start = step!("mov ss, ecx", "mov dr6, rdx");
        check(
            report,
            "MOV DR under MOV SS and DR7.GD",
            start,
            &[(2, DEBUG_REGISTER), (5, step), (7, step), (8, step)],
        );
    }
    // SAFETY: back to the state after reset.
    unsafe {
        asm!("mov dr7, {}", in(reg) 0x400u64);
        asm!("mov dr6, {}", in(reg) NO_CAUSE);
    }
    clear_handler(DEBUG);
}

/// A repeated string instruction traps after each element. SDM vol. 3B, 18.3.1.4.
fn test_string_output(report: &mut Report) {
    let bytes = [0_u8; 3];
    let start: u64;
    // SAFETY: writes the diagnostic port, and puts RFLAGS back.
    unsafe {
        asm!(
            "pushfq",
            "pop r8",
            "mov r9, r8",
            "or r8, 0x100",
            "lea {start}, [rip + 2f]",
            "push r8",
            "popfq",
            "2:",
            "rep outsb",
            "push r9",
            "popfq",
            start = out(reg) start,
            out("r8") _, out("r9") _,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            in("dx") 0x80_u16,
        );
    }
    let step = SINGLE_STEP;
    check(
        report,
        "single steps in REP OUTSB",
        start,
        &[(0, step), (0, step), (2, step), (4, step), (5, step)],
    );
}
