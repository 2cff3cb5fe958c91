//! Code that moves through its address space, and takes all that it has along.
//!
//! It has one page, with its text and the text by which the process is found, at the beginning of a top-level
//! slot, and behind it the page of the counters. It needs neither a stack nor any other memory.

use core::arch::{asm, global_asm};

use linux_raw_sys::general::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_EXEC, PROT_READ,
    PROT_WRITE,
};
use syscalls::{Sysno, syscall};

use super::Errno;
use super::memory::PAGE;
use super::top_level::{SHIFT, SLOTS, SlotPage};
use crate::computation::{INCREMENT, MULTIPLIER, closed_form};
use crate::counters::Slot;
use crate::tag;
use crate::work::Work;

/// The end of the memory that Linux gives to processes with four levels of page tables.
const END: usize = (1 << 47) - PAGE;

/// The place of the text by which the process is found, in the page.
const TAG: usize = 2048;

// The registers that it keeps: R12: the address of its page; R13: that of its slot of the counters; R14: the steps of
// a unit; R15: the number of the top-level slot that it is in; RBX: what the computation begins with; RBP: what it must
// come to. (A system call changes RAX, RCX and R11.)
global_asm!(
    ".pushsection .text.workload_mover, \"ax\", @progbits",
    ".balign 16",
    "workload_mover:",
    // Lets go of all memory below its two pages, and of all above.
    "xor edi, edi",
    "mov rsi, r12",
    "mov eax, {munmap}",
    "syscall",
    "test rax, rax",
    "jnz 8f",
    "lea rdi, [r12 + 2 * {page}]",
    "movabs rsi, {end}",
    "sub rsi, rdi",
    "mov eax, {munmap}",
    "syscall",
    "test rax, rax",
    "jnz 8f",
    // Computes.
    "cmp byte ptr [r13 + {asked_to_end}], 0",
    "jne 7f",
    "mov rax, rbx",
    "mov rcx, r14",
    "movabs r8, {multiplier}",
    "movabs r9, {increment}",
    "2:",
    "imul rax, r8",
    "add rax, r9",
    "dec rcx",
    "jnz 2b",
    "cmp rax, rbp",
    "jne 3f",
    "lock inc qword ptr [r13 + {finished}]",
    "jmp 4f",
    "3:",
    "lock inc qword ptr [r13 + {wrong}]",
    // Takes a page in the next slot.
    "4:",
    "inc r15d",
    "cmp r15d, {last}",
    "jbe 5f",
    "mov r15d, {first}",
    "5:",
    "mov rdi, r15",
    "shl rdi, {shift}",
    "mov esi, {page}",
    "mov edx, {protection}",
    "mov r10d, {flags}",
    "mov r8, -1",
    "xor r9d, r9d",
    "mov eax, {mmap}",
    "syscall",
    "cmp rax, rdi",
    "jne 8f",
    // Copies itself there, and moves the counters behind it.
    "mov rsi, r12",
    "mov ecx, {page} / 8",
    "rep movsq",
    "mov r8, rdi",
    "lea rdi, [r12 + {page}]",
    "mov esi, {page}",
    "mov edx, {page}",
    "mov r10d, {move_flags}",
    "mov eax, {mremap}",
    "syscall",
    "cmp rax, r8",
    "jne 8f",
    // Goes there.
    "and r13d, {page} - 1",
    "add r13, r8",
    "lea r12, [r8 - {page}]",
    "jmp r12",
    // Ends: well if no unit was wrong.
    "7:",
    "xor edi, edi",
    "cmp qword ptr [r13 + {wrong}], 0",
    "setne dil",
    "jmp 9f",
    "8:",
    "mov edi, 1",
    "9:",
    "mov eax, {exit_group}",
    "syscall",
    "jmp 9b",
    "workload_mover_end:",
    ".popsection",
    munmap = const Sysno::munmap as i32,
    mmap = const Sysno::mmap as i32,
    mremap = const Sysno::mremap as i32,
    exit_group = const Sysno::exit_group as i32,
    page = const PAGE,
    end = const END,
    asked_to_end = const Slot::ASKED_TO_END,
    finished = const Slot::FINISHED,
    wrong = const Slot::WRONG,
    multiplier = const MULTIPLIER as i64,
    increment = const INCREMENT as i64,
    first = const *SLOTS.start(),
    last = const *SLOTS.end(),
    shift = const SHIFT,
    protection = const PROT_READ | PROT_WRITE | PROT_EXEC,
    flags = const MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
    move_flags = const MREMAP_MAYMOVE | MREMAP_FIXED,
);

unsafe extern "C" {
    /// The first byte of the code.
    #[link_name = "workload_mover"]
    static CODE: u8;
    /// The byte behind it.
    #[link_name = "workload_mover_end"]
    static CODE_END: u8;
}

/// Computes `work`'s units, each in another top-level slot, with nothing left of the process but what moves.
/// Returns only if the first page is not to be had.
pub fn run(work: Work) -> Errno {
    match prepare(&work) {
        Ok(page) => enter(work, page),
        Err(error) => error,
    }
}

/// Makes the two pages in the first slot, and gives the address of the first.
fn prepare(work: &Work) -> Result<usize, Errno> {
    let mut page = SlotPage::map_executable(*SLOTS.start())?;
    let bytes = page.bytes();
    // SAFETY: both are addresses in the section that the assembler has made, the end behind the beginning, and
    // what is between is bytes that nobody writes.
    let code = unsafe {
        let start = &raw const CODE;
        core::slice::from_raw_parts(start, (&raw const CODE_END).offset_from_unsigned(start))
    };
    let (place, text) = bytes.split_at_mut(TAG);
    place
        .get_mut(..code.len())
        .ok_or(Errno::E2BIG)?
        .copy_from_slice(code);
    text[..tag::LENGTH].copy_from_slice(&tag::text(work.index()));
    let start = bytes.as_ptr().expose_provenance();
    let counters = core::ptr::from_ref(work.slot()).addr() & !(PAGE - 1);
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    // SAFETY: an old length of zero makes a second mapping of a shared page, and leaves the old one as it is; the
    // place of the new one, behind a page that is alone in its slot, is nobody's.
    unsafe { syscall!(Sysno::mremap, counters, 0, PAGE, flags, start + PAGE) }?;
    // The page is the code's from now on.
    core::mem::forget(page);
    Ok(start)
}

/// Goes on in the code that [`prepare`] has put at `page`.
fn enter(work: Work, page: usize) -> ! {
    let seed = work.index() as u64;
    let unit = work.unit().max(1);
    let expected = closed_form(seed, unit);
    let slot = page + PAGE + (core::ptr::from_ref(work.slot()).addr() & (PAGE - 1));
    // SAFETY: the process has one thread, which never comes back: it ends in the code, which uses no memory but the
    // two pages at `page` and what it maps instead of them, and so may give away all other, the stack included.
    // It counts in the slot by locked instructions, as `Slot` does. No signal handler needs a stack: there is none
    // in a process that moves.
    unsafe {
        asm!(
            // RBX and RBP are the compiler's, if it comes back.
            "mov rbx, {seed}",
            "mov rbp, {expected}",
            "cld",
            "jmp r12",
            seed = in(reg) seed,
            expected = in(reg) expected,
            in("r12") page,
            in("r13") slot,
            in("r14") unit,
            in("r15") *SLOTS.start(),
            options(noreturn),
        )
    }
}
