//! INIT and start-up: what state processors are in afterwards, wherever they start, and that the
//! bootstrap processor's firmware knows a warm reset. SDM vol. 3A, 9.4 and 10.1.
//!
//! Wants a machine of two CPUs.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use arch::apic::{delivery_mode, icr};
use arch::msr::IA32_TSC_ADJUST;
use kernels::lapic::{Lapic, Mode};
use kernels::{Report, exit, interrupts, platform, println, rtc, smp, tsc};
use x86_64::registers::model_specific::Msr;

/// The ticks that the other CPU's TSC is moved by, and stays moved by.
const ADJUSTMENT: u64 = 0x123_4567;
/// The address at which the probe leaves what it found.
const RECORD: u64 = 0x7000;
/// Pages to start from: the first, one in the middle, and the last below the BIOS's data.
const PAGES: [u64; 4] = [0, 0x8000, 0x5_5000, 0x9_e000];
/// The address of the far pointer that a warm reset follows, if the CMOS's shutdown status says so
/// (IBM PC AT).
const WARM_RESET_VECTOR: u64 = 0x467;
const SHUTDOWN_STATUS: u8 = 0x0f;
const JUMP: u8 = 0x0a;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
.pushsection .rodata.probe, "a", @progbits
.code16
.global probe_start, probe_end
probe_start:                            # at any page, with DS and SS as INIT leaves them
    mov [0x7000], edx
    mov [0x7004], eax
    pushfd
    pop dword ptr [0x7008]
    mov eax, cr0
    mov [0x700c], eax
    mov eax, cr2
    mov [0x7010], eax
    mov eax, cr3
    mov [0x7014], eax
    mov eax, cr4
    mov [0x7018], eax
    mov eax, dr0
    mov [0x701c], eax
    mov eax, dr6
    mov [0x7020], eax
    mov eax, dr7
    mov [0x7024], eax
    mov ecx, 0x3b
    rdmsr
    mov [0x7028], eax
    mov ecx, 0xc0000080
    rdmsr
    mov [0x702c], eax
    mov ax, cs
    mov [0x7030], ax
    sidt [0x7034]
    inc dword ptr [0x703c]
1:  cli
    hlt
    jmp 1b
probe_end:
.code64
.popsection
"#
);

/// The state in which the probe found its CPU.
#[repr(C)]
#[derive(Clone, Copy)]
struct Found {
    edx: u32,
    eax: u32,
    eflags: u32,
    cr: [u32; 4],
    dr0: u32,
    dr6: u32,
    dr7: u32,
    tsc_adjust: u32,
    efer: u32,
    cs: u32,
    idt: [u16; 4],
    times: u32,
}

fn record() -> Found {
    // SAFETY: memory that the probe alone writes.
    unsafe { (RECORD as *const Found).read_volatile() }
}

/// What the other CPU does first: fills registers that INIT clears, and moves its TSC.
fn disturb(_: u32) {
    // SAFETY: no breakpoint is enabled, and nobody looks at CR2 or the TSC.
    unsafe {
        asm!("mov dr0, {0}", "mov dr6, {1}", "mov cr2, {0}", in(reg) 0x5678_u64, in(reg) 0xffff_4ff1_u64);
        Msr::new(IA32_TSC_ADJUST).write(ADJUSTMENT);
    }
    DISTURBED.store(1, Ordering::SeqCst);
}

static DISTURBED: AtomicU32 = AtomicU32::new(0);
static REPORT: AtomicPtr<Report> = AtomicPtr::new(ptr::null_mut());

fn install_probe(page: u64) {
    #[cfg(target_os = "none")]
    {
        unsafe extern "C" {
            static probe_start: u8;
            static probe_end: u8;
        }
        let (from, end) = (&raw const probe_start, &raw const probe_end);
        // SAFETY: low memory that nobody else uses; the probe is shorter than what there is up to
        // the BIOS's data.
        unsafe { from.copy_to(page as *mut u8, end as usize - from as usize) };
    }
    #[cfg(not(target_os = "none"))]
    let _ = page;
}

fn run(report: &mut Report) {
    if platform::is_tcg() {
        report.skip("INIT and start-up", "TCG differs in many ways");
        return;
    }
    let lapic = Lapic::enable(Mode::XApic);
    let hertz = tsc::cpuid_hertz().unwrap_or_else(tsc::measured_hertz);
    report.equal(
        "the other CPU is there",
        smp::start_others(lapic, hertz, disturb),
        1,
    );
    tsc::wait_until(hertz / 10, || DISTURBED.load(Ordering::SeqCst) != 0);
    for (time, page) in (1..).zip(PAGES) {
        install_probe(page);
        lapic.send(0, icr::TO_OTHERS | icr::ASSERT | delivery_mode::INIT);
        tsc::wait(hertz / 100);
        for _ in 0..2 {
            // The second finds it running.
            lapic.send(
                0,
                icr::TO_OTHERS | icr::ASSERT | delivery_mode::START_UP | (page >> 12) as u32,
            );
            tsc::wait(hertz / 1000);
        }
        tsc::wait_until(hertz / 10, || record().times >= time);
        check(report, page, time, &record());
    }
    warm_reset(report, lapic);
}

/// SDM vol. 3A, table 10-1.
fn check(report: &mut Report, page: u64, time: u32, found: &Found) {
    let signature = core::arch::x86_64::__cpuid(1).eax;
    let [cr0, cr2, cr3, cr4] = found.cr;
    for (name, got, expected) in [
        ("it has started once", found.times, time),
        ("CS", found.cs, (page >> 4) as u32),
        ("EDX is the signature", found.edx, signature),
        ("EAX", found.eax, 0),
        ("EFLAGS", found.eflags, 2),
        // The cache controls stay as they were.
        ("CR0", cr0 & !0x6000_0000, 0x10),
        ("CR2", cr2, 0),
        ("CR3", cr3, 0),
        ("CR4", cr4, 0),
        ("DR0", found.dr0, 0),
        ("DR6", found.dr6, 0xffff_0ff0),
        ("DR7", found.dr7, 0x400),
        ("IA32_TSC_ADJUST", found.tsc_adjust, ADJUSTMENT as u32),
        ("IA32_EFER", found.efer, 0),
        ("IDTR's limit", found.idt[0].into(), 0xffff),
    ] {
        report.equal(format_args!("start-up at {page:#x}: {name}"), got, expected);
    }
}

/// INIT to the bootstrap processor is a reset, which firmware turns into a jump if it is told so.
fn warm_reset(report: &mut Report, lapic: Lapic) {
    REPORT.store(ptr::from_mut(report), Ordering::SeqCst);
    let page = smp::prepare_start(woken);
    rtc::write(SHUTDOWN_STATUS, JUMP);
    // SAFETY: the BIOS data area.
    unsafe { (WARM_RESET_VECTOR as *mut u32).write_unaligned((page as u32 >> 4) << 16) };
    lapic.send(lapic.id(), icr::ASSERT | delivery_mode::INIT);
    loop {
        core::hint::spin_loop();
    }
}

fn woken(_: u32) {
    interrupts::load();
    // SAFETY: the report is on the stack that this CPU had before, where nothing runs any more.
    let Some(report) = (unsafe { REPORT.load(Ordering::SeqCst).as_mut() }) else {
        println!("woken without a report");
        exit::exit(exit::PANICKED)
    };
    report.equal(
        "a warm reset takes the shutdown status away",
        rtc::read(SHUTDOWN_STATUS),
        0,
    );
    report.finish()
}

kernels::kernel!(run);
