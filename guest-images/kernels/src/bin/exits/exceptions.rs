//! Exceptions reach the guest as on a bare CPU: vector, error code, CR2, RIP.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::{PageFaultErrorCode, RFlags};
use kernels::interrupts::{Fault, catch, clear_handler, last_fault, read_cr2, set_handler};
use kernels::memory::{self, NO_EXECUTE, PRESENT, UNMAPPED, USER, WRITABLE};
use kernels::{Report, platform, segments};

/// Page fault on a page that is present.
const PROTECTION: u64 = PageFaultErrorCode::PROTECTION_VIOLATION.bits();
/// Page fault by a write.
const WRITE: u64 = PageFaultErrorCode::CAUSED_BY_WRITE.bits();
/// Page fault by reserved bits.
const RESERVED: u64 = PageFaultErrorCode::MALFORMED_TABLE.bits();
/// Page fault by an instruction fetch.
const FETCH: u64 = PageFaultErrorCode::INSTRUCTION_FETCH.bits();

pub(crate) fn test(report: &mut Report) {
    test_page_faults(report);
    test_others(report);
    test_software_interrupts(report);
    test_resume_flag(report);
}

fn read(address: u64) -> Result<(), Fault> {
    catch(|| {
        // SAFETY: an address that only this module maps.
        let _ = unsafe { (address as *const u8).read_volatile() };
    })
}

fn write(address: u64) -> Result<(), Fault> {
    // SAFETY: as above.
    catch(|| unsafe { (address as *mut u8).write_volatile(1) })
}

fn fetch(address: u64) -> Result<(), Fault> {
    // SAFETY: where the page can be run, it holds a RET.
    catch(|| unsafe { asm!("call {}", in(reg) address) })
}

fn test_page_faults(report: &mut Report) {
    const NOT_MAPPED: u64 = UNMAPPED + 0x7abc;
    const READ_ONLY: u64 = UNMAPPED + 0x1000;
    const RUNNABLE: u64 = UNMAPPED + 0x2000;
    const BAD: u64 = UNMAPPED + 0x3000;

    let root = memory::root();
    let page = memory::allocate();
    // SAFETY: a fresh page, mapped where nothing else is.
    unsafe {
        page.write(0xc3); // RET
        memory::map(root, READ_ONLY, page as u64, PRESENT | USER | NO_EXECUTE);
        memory::map(root, RUNNABLE, page as u64, PRESENT | WRITABLE);
        memory::map(root, BAD, page as u64 | 1 << 51, PRESENT | WRITABLE);
        memory::load_root(root);
    }
    let fault = |error| Err(Fault::page_fault(error));
    report.same("#PF: read, not present", read(NOT_MAPPED), fault(0));
    report.equal("CR2 after it", read_cr2(), NOT_MAPPED);
    report.same(
        "#PF: write, not present",
        write(NOT_MAPPED + 5),
        fault(WRITE),
    );
    report.equal("CR2 after it", read_cr2(), NOT_MAPPED + 5);
    report.same("#PF: fetch, not present", fetch(NOT_MAPPED), fault(FETCH));
    report.equal("CR2 after it", read_cr2(), NOT_MAPPED);
    report.equal("RIP after it", last_fault().rip, NOT_MAPPED);
    report.same("read of a read-only page", read(READ_ONLY), Ok(()));
    report.same(
        "#PF: write, read-only",
        write(READ_ONLY),
        fault(WRITE | PROTECTION),
    );
    report.same(
        "#PF: fetch, no-execute",
        fetch(READ_ONLY),
        fault(FETCH | PROTECTION),
    );
    report.same("fetch of a page that can be run", fetch(RUNNABLE), Ok(()));
    report.same("write of a writable page", write(RUNNABLE + 8), Ok(()));
    let bits = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff;
    if bits <= 51 && !platform::is_tcg() {
        report.same(
            "#PF: reserved bit, read",
            read(BAD),
            fault(RESERVED | PROTECTION),
        );
        report.same(
            "#PF: reserved bit, write",
            write(BAD),
            fault(RESERVED | PROTECTION | WRITE),
        );
    }
}

fn test_others(report: &mut Report) {
    const NON_CANONICAL: u64 = 1 << 63;
    report.same(
        "#GP: non-canonical read",
        read(NON_CANONICAL),
        Err(Fault::GENERAL_PROTECTION),
    );
    // SAFETY: 0x1238 is beyond the GDT's limit.
    let outcome = catch(|| unsafe { asm!("mov ds, {0:x}", in(reg) 0x1238_u64) });
    report.same(
        "#GP: selector beyond the GDT",
        outcome,
        Err(Fault {
            vector: 13,
            error: 0x1238,
        }),
    );
    // SAFETY: a code segment in SS is refused.
    let outcome =
        catch(|| unsafe { asm!("mov ss, {0:x}", in(reg) u64::from(segments::KERNEL_CODE)) });
    report.same(
        "#GP: code segment as stack",
        outcome,
        Err(Fault {
            vector: 13,
            error: u64::from(segments::KERNEL_CODE),
        }),
    );
    if platform::is_tcg() {
        report.skip("#SS: non-canonical address by RBP", "TCG raises #GP");
    } else {
        // SAFETY: RBP is put back by the recovery.
        let outcome = catch(|| unsafe {
            asm!("xchg rbp, {0}", "mov {1}, [rbp + 8]", "xchg rbp, {0}", inout(reg) NON_CANONICAL => _, out(reg) _);
        });
        report.same(
            "#SS: non-canonical address by RBP",
            outcome,
            Err(Fault {
                vector: 12,
                error: 0,
            }),
        );
    }
    // SAFETY: faults.
    let outcome = catch(|| unsafe {
        asm!("div {0}", in(reg) 0_u64, inout("rax") 1_u64 => _, inout("rdx") 0_u64 => _)
    });
    report.same(
        "#DE: division by zero",
        outcome,
        Err(Fault {
            vector: 0,
            error: 0,
        }),
    );
    // SAFETY: TS is set for one FPU instruction, which faults.
    let outcome = catch(|| unsafe {
        asm!("mov {0}, cr0", "or {0}, 8", "mov cr0, {0}", "fninit", out(reg) _);
    });
    report.same("#NM: FPU with CR0.TS", outcome, Err(Fault::NO_DEVICE));
    // SAFETY: TS is clear otherwise.
    unsafe { asm!("clts") };
    // SAFETY: INT3 traps.
    let outcome = catch(|| unsafe { asm!("int3") });
    report.same("#BP: INT3", outcome, Err(Fault::BREAKPOINT));
    // SAFETY: the frame's RIP is in this kernel's code.
    let before = unsafe { ((last_fault().rip - 1) as *const u8).read() };
    report.equal("RIP after INT3 is behind it", before, 0xcc);
    // SAFETY: faults.
    let outcome = catch(|| unsafe { asm!("ud2") });
    report.same("#UD: UD2", outcome, Err(Fault::INVALID_OPCODE));
    // SAFETY: the frame's RIP is in this kernel's code.
    let at = unsafe { (last_fault().rip as *const u16).read_unaligned() };
    report.equal("RIP after #UD is at it", at, 0x0b0f);
}

/// Faults push RFLAGS with RF set, whoever delivers them; traps do not. SDM vol. 3B, 18.3.1.1.
fn test_resume_flag(report: &mut Report) {
    const RF: u64 = RFlags::RESUME_FLAG.bits();
    const NO_MSR: u32 = 0x1234_5678;
    let mut pushed = |name, outcome: Result<(), Fault>, expected| {
        report.holds(format_args!("{name}: an exception"), outcome.is_err());
        report.equal(
            format_args!("{name}: RF in what it pushes"),
            last_fault().rflags & RF,
            expected,
        );
    };
    // SAFETY: faults.
    pushed("#UD of UD2", catch(|| unsafe { asm!("ud2") }), RF);
    // SAFETY: INT3 traps.
    pushed("#BP of INT3", catch(|| unsafe { asm!("int3") }), 0);
    // SAFETY: faults.
    let outcome = catch(|| unsafe {
        asm!("rdmsr", in("ecx") NO_MSR, out("eax") _, out("edx") _);
    });
    pushed("#GP of RDMSR", outcome, RF);
    // SAFETY: a CPU without VMX has no such instruction.
    pushed("#UD of VMXOFF", catch(|| unsafe { asm!("vmxoff") }), RF);
}

fn test_software_interrupts(report: &mut Report) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    set_handler(0x80, |frame| LAST.store(frame.rax, Ordering::Relaxed));
    for value in [0x1234, u64::MAX] {
        // SAFETY: the handler keeps all registers.
        unsafe { asm!("int 0x80", in("rax") value) };
        report.equal(
            "INT n calls its handler",
            LAST.load(Ordering::Relaxed),
            value,
        );
    }
    clear_handler(0x80);
    // SAFETY: the gate's DPL is 0 and so is CPL; without a handler for vector 13, INT 13 is caught.
    let outcome = catch(|| unsafe { asm!("int 4") });
    report.same(
        "INT 4 without INTO",
        outcome,
        Err(Fault {
            vector: 4,
            error: 0,
        }),
    );
}
