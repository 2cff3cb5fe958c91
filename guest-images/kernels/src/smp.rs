//! Other CPUs: starting them by INIT and start-up IPIs to all. SDM vol. 3A, 9.4.4.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arch::apic::{delivery_mode, icr};

use crate::lapic::Lapic;
use crate::{multiboot, tsc};

/// The most CPUs that are started, this one included.
pub const MAX_CPUS: u32 = 8;
/// The page at which CPUs wake up: below 1 MiB, and used by nobody else.
const PAGE: u64 = 0x8000;

/// The function that the other CPUs run, as an address.
static WORK: AtomicUsize = AtomicUsize::new(0);
/// CPUs that have come up, this one not counted.
static OTHERS: AtomicU32 = AtomicU32::new(0);

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
.pushsection .rodata.ap, "a", @progbits
.balign 16
.code16
.global ap_start
ap_start:                               # at PAGE, of which these are the offsets
    jmp 1f
.org ap_start + 8
    .word 23
    .long ap_gdt
1:  cli
    mov ax, cs
    mov ds, ax
    lgdtd [8]
    mov eax, 0x620                      # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080                 # IA32_EFER: LME, NXE
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010033                 # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    .byte 0x66, 0xea                    # jmp far 0x08:ap_long_mode
    .long ap_long_mode
    .word 0x08
.balign 8
ap_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
.global ap_end
ap_end:
.popsection

.pushsection .boot, "ax", @progbits
.code64
ap_long_mode:
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov eax, 1                          # each CPU takes the next stack
    lock xadd [rip + ap_next], eax
    inc eax
    shl eax, 14
    lea rsp, [rip + ap_stacks]
    add rsp, rax
    xor ebp, ebp
    call {main}
    ud2
.balign 4
ap_next: .long 0
.popsection

.pushsection .bss.ap, "aw", @nobits
.balign 4096
ap_stacks: .skip 16384 * 8
.popsection
"#,
    main = sym main,
);

#[cfg_attr(not(target_os = "none"), allow(dead_code))]
extern "C" fn main() -> ! {
    let number = OTHERS.fetch_add(1, Ordering::SeqCst) + 1;
    let work = WORK.load(Ordering::SeqCst);
    if number < MAX_CPUS && work != 0 {
        // SAFETY: not zero, so it is a function that `start_others` has stored.
        let work: fn(u32) = unsafe { core::mem::transmute(work) };
        work(number);
    }
    loop {
        // SAFETY: stops this CPU, which has nothing to do any more.
        unsafe { core::arch::asm!("cli", "hlt") };
    }
}

/// Starts all other CPUs, has each do `work` with its number (from 1), and returns how many have
/// come up: as many as the command line's `others=` says, or those that do within 100 ms.
pub fn start_others(lapic: Lapic, hertz: u64, work: fn(u32)) -> u32 {
    prepare_start(work);
    lapic.send(0, icr::TO_OTHERS | icr::ASSERT | delivery_mode::INIT);
    tsc::wait(hertz / 100);
    lapic.send(
        0,
        icr::TO_OTHERS | icr::ASSERT | delivery_mode::START_UP | (PAGE >> 12) as u32,
    );
    let wanted = multiboot::number("others").map_or(u32::MAX, |others| others as u32);
    tsc::wait_until(hertz / 10, || OTHERS.load(Ordering::SeqCst) >= wanted);
    OTHERS.load(Ordering::SeqCst)
}

/// Puts code into low memory that a CPU in real mode can start with, to do `work` in long mode, and
/// tells on which page.
pub fn prepare_start(work: fn(u32)) -> u64 {
    WORK.store(work as usize, Ordering::SeqCst);
    #[cfg(target_os = "none")]
    {
        unsafe extern "C" {
            static ap_start: u8;
            static ap_end: u8;
        }
        let (from, end) = (&raw const ap_start, &raw const ap_end);
        // SAFETY: the page is free, and the code is shorter than a page.
        unsafe { from.copy_to(PAGE as *mut u8, end as usize - from as usize) };
    }
    PAGE
}
