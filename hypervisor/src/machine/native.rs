//! Instructions of a guest, run by the processor itself on a copy of their memory operand.
//!
//! Hundreds of instructions read or write memory beside registers of x87, MMX, SSE and AVX. The emulator
//! reads and writes the memory, and the processor does the rest: the instruction is written to a page of
//! ours, with its operand changed to 32 bytes at the beginning of the next page, addressed by RIP, and called.
//!
//! The other way would be to let the guest itself do it, by a second EPT mapping of the device's page and the
//! monitor trap flag. It needs no code of ours to be executable, and would do for all instructions; but
//! an entry for one instruction is an entry like any other, with events, other exits and requests of other
//! CPUs in the middle of an access to a device, and nothing of it could be tested on the host.
//!
//! # Why a guest gains nothing by it
//! What is run here is run in ring 0 of tarpit, and a guest with several VCPUs may change an instruction while
//! another VCPU executes it. So:
//!
//! - *Which instructions.* A positive list, by mnemonic and by the kinds of operands: [`crate::emulate::Code`],
//!   a type that nothing else can make, and whose documentation has the list's rules. They compute: they do not
//!   branch, use the stack, segments, control registers, MSRs or ports, are at no privilege, and leave no flags
//!   but the status flags.
//! - *Which bytes.* The guest's instruction is fetched once, to a buffer of this CPU's stack. What runs is not
//!   these bytes but an encoding made of what they were decoded to: no prefix of the guest's (LOCK, segments,
//!   address size, REP) is in it, but for one of 66, F2 and F3 that the opcode needs, and REX's W and R. It is
//!   decoded again and taken only if that gives the same instruction on the same registers. It has the length
//!   that this decoding says; RET is behind it.
//! - *Which memory.* The one explicit operand, addressed by RIP, always the second page. Nothing with an operand
//!   that a register addresses is on the list: no strings, gathers, masked moves, or images of register files.
//!   The most that an instruction accesses is the 32 bytes of [`Bytes`].
//! - *Which registers.* The general-purpose registers are the guest's, and stored back, but for RSP, which no
//!   instruction of the list names. RFLAGS has nothing but status flags of the guest: TF, IF, DF and AC are
//!   clear. x87, MMX, SSE and AVX registers, MXCSR and XCR0 are the guest's at all times between its entries; the
//!   host uses none (it is built without floating point), so there is nothing of it to leak or break. The address
//!   and opcode that an x87 instruction leaves in FIP, FDP and FOP are put right before the guest sees them.
//! - *What the guest has enabled.* CR0.EM and TS, CR4.OSFXSR and OSXSAVE and XCR0 are the guest's business, which
//!   the emulator has checked: the host's own CR0 and CR4 have all on.
//! - *Exceptions.* The instruction itself may fault: #UD where the processor has not got it, #NM, #GP for
//!   LDMXCSR, #MF for an x87 exception that waits, #XM for one of SIMD. That is no end of tarpit: the handler
//!   finds RIP on the instruction and goes on behind it, with the vector noted, and the guest gets its exception.
//!   All of these are faults, before which nothing has changed but MXCSR's flags, as the guest is to see them. So
//!   even an error in the list or in the decoder is #UD for the guest. Other faults are not forgiven.
//! - *Interrupts.* They are off from the exit to the entry. NMIs and machine checks run on stacks of their own,
//!   touch neither the pages nor vector registers, and come back. The host's DR7 has no breakpoint.
//! - *The page.* There is one pair of pages for all CPUs, behind a lock, as hardly any guest does this. The page
//!   of the code is never writable and executable at the same time on the CPU that has the lock: it is data, is
//!   written, becomes code and is called, each by a change of the page tables and a flush. Another CPU may have
//!   an old translation of it, but uses none before it has the lock and has flushed it.

use alloc::alloc::{Layout, alloc_zeroed};
use core::arch::naked_asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use arch::ExceptionVector;
use spin::Mutex;
use vmx::addr::PAGE_SIZE;

use super::cpu::{fatal_trap, trap};
use super::memory::{OutOfMemory, PhysRange};
use super::paging::{self, Protection};
use crate::emulate::{Bytes, Computation, Computed, OPERAND_DISTANCE};

const _: () = assert!(OPERAND_DISTANCE as u64 == PAGE_SIZE, "the next page");
/// RET, near.
const RET: u8 = 0xc3;
/// The offset in the second page of an area for FXSAVE.
const FXSAVE_OFFSET: usize = 1024;
/// The exceptions of an instruction here that are the guest's to have.
const FORGIVEN: [ExceptionVector; 5] = [
    ExceptionVector::InvalidOpcode,
    ExceptionVector::DeviceNotAvailable,
    ExceptionVector::GeneralProtection,
    ExceptionVector::X87FloatingPoint,
    ExceptionVector::SimdFloatingPoint,
];

/// The pages.
struct Pages(NonNull<u8>);

// SAFETY: the pages are reached through the lock only.
unsafe impl Send for Pages {}

static PAGES: Mutex<Option<Pages>> = Mutex::new(None);

/// The address of the instruction that is being run, and of the RET behind it; 0 while there is none. These and
/// [`RAISED`] are of the CPU that holds the lock.
static RUNNING: AtomicU64 = AtomicU64::new(0);
static BEHIND: AtomicU64 = AtomicU64::new(0);
/// The vector of the exception that it has raised; 0 if none.
static RAISED: AtomicU8 = AtomicU8::new(0);

/// The registers that an instruction works on, and what becomes of them. All others are live.
#[derive(Debug)]
#[repr(C)]
struct Registers {
    /// The general-purpose registers. RSP stays the host's.
    gprs: [u64; 16],
    rflags: u64,
    /// The area to correct FIP, FDP and FOP in, for an x87 instruction that sets them; else 0.
    fxsave_area: u64,
    code: u64,
    fip: u64,
    fdp: u64,
    fop: u16,
    /// FSW after the instruction.
    fsw: u16,
    /// FCW after the instruction.
    fcw: u16,
}

impl Registers {
    const fn new(computation: &Computation<'_>, page: u64) -> Self {
        let (fxsave_area, fip, fdp, fop) = match computation.x87 {
            Some(it) => (
                page + PAGE_SIZE + FXSAVE_OFFSET as u64,
                it.instruction,
                it.operand,
                it.opcode,
            ),
            None => (0, 0, 0, 0),
        };
        Self {
            gprs: computation.gprs,
            // Interrupts are off, and the one bit is always one.
            rflags: computation.rflags | 2,
            fxsave_area,
            code: page,
            fip,
            fdp,
            fop,
            fsw: 0,
            fcw: 0,
        }
    }

    /// Returns whether an x87 instruction has an exception that is not masked with which it stores nothing: all
    /// but that of precision.
    const fn has_stored_nothing(&self) -> bool {
        self.fxsave_area != 0 && self.fsw & !self.fcw & 0x1f != 0
    }
}

/// Makes the pages. To be called once, before guests run.
///
/// # Errors
/// If there is no memory for them: no instruction can be run then.
pub(crate) fn prepare() -> Result<(), OutOfMemory> {
    let mut pages = PAGES.lock();
    if pages.is_none() {
        let size = 2 * PAGE_SIZE as usize;
        let Ok(layout) = Layout::from_size_align(size, PAGE_SIZE as usize) else {
            unreachable!("two pages are a layout")
        };
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(OutOfMemory {
            size: layout.size() as u64,
            alignment: PAGE_SIZE,
        })?;
        let made = Pages(memory);
        // From now on the page has an entry of its own in the tables, and changing it needs no memory.
        made.protect(Protection::Data)?;
        *pages = Some(made);
        for vector in FORGIVEN {
            trap::set_hook(vector as u8, Some(on_exception));
        }
    }
    Ok(())
}

fn on_exception(frame: &mut trap::TrapFrame) {
    match skip(frame.rip, frame.vector as u8) {
        Some(behind) => frame.rip = behind,
        None => fatal_trap(frame),
    }
}

/// Returns where to go on after an exception at `rip`, and notes it, if that is the instruction that is being run.
fn skip(rip: u64, vector: u8) -> Option<u64> {
    if rip == 0 || rip != RUNNING.load(Ordering::Relaxed) {
        return None;
    }
    RAISED.store(vector, Ordering::Relaxed);
    Some(BEHIND.load(Ordering::Relaxed))
}

impl Pages {
    /// Sets what may be done with the page of the code.
    #[cfg(not(test))]
    fn protect(&self, protection: Protection) -> Result<(), OutOfMemory> {
        let start = self.0.as_ptr() as u64;
        let range = PhysRange::new(start, start + PAGE_SIZE);
        // SAFETY: the page is ours alone, and used under the lock by this CPU only, whose translations are
        // flushed; another CPU does the same before it uses the page.
        unsafe { paging::protect(range, Some(protection)) }
    }

    /// Does the same under the operating system that tests run on.
    #[cfg(test)]
    fn protect(&self, protection: Protection) -> Result<(), OutOfMemory> {
        let _ = (paging::protect, PhysRange::new);
        let rights = match protection {
            Protection::Code => libc::PROT_READ | libc::PROT_EXEC,
            _ => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: the page was allocated, is whole, and used under the lock only.
        let result = unsafe { libc::mprotect(self.0.as_ptr().cast(), PAGE_SIZE as usize, rights) };
        assert_eq!(result, 0, "mprotect");
        Ok(())
    }

    /// Runs an instruction by `call`, which is given the registers and the address of the code.
    fn run(
        &self,
        computation: &mut Computation<'_>,
        operand: &mut Bytes,
        call: impl FnOnce(&mut Registers, *const u8),
    ) -> Computed {
        let page = self.0.as_ptr();
        let code = computation.code.as_slice();
        // SAFETY: the second page follows the first; an instruction has at most 15 bytes.
        let (second, behind) = unsafe { (page.add(PAGE_SIZE as usize), page.add(code.len())) };
        if self.protect(Protection::Data).is_err() {
            return Computed::Unavailable;
        }
        // SAFETY: the pages are ours, both can be written now, and what is written fits: an instruction and one
        // byte on the first, 32 on the second. Nobody else has references to them.
        unsafe {
            page.copy_from_nonoverlapping(code.as_ptr(), code.len());
            behind.write(RET);
            second.copy_from_nonoverlapping(operand.as_ptr(), operand.len());
        }
        if self.protect(Protection::Code).is_err() {
            return Computed::Unavailable;
        }
        let mut registers = Registers::new(computation, page as u64);
        RAISED.store(0, Ordering::Relaxed);
        BEHIND.store(behind as u64, Ordering::Relaxed);
        RUNNING.store(page as u64, Ordering::Relaxed);
        call(&mut registers, page);
        RUNNING.store(0, Ordering::Relaxed);
        // SAFETY: as for writing.
        unsafe { second.copy_to_nonoverlapping(operand.as_mut_ptr(), operand.len()) };
        let raised = RAISED.load(Ordering::Relaxed);
        if raised != 0 {
            return ExceptionVector::try_from(raised)
                .map_or(Computed::Unavailable, Computed::Raised);
        }
        computation.gprs = registers.gprs;
        computation.rflags = registers.rflags;
        if registers.has_stored_nothing() {
            Computed::StoredNothing
        } else {
            Computed::Done
        }
    }
}

/// Runs an instruction on `operand`, and on the registers of x87, MMX, SSE and AVX that are live.
///
/// # Safety
/// The registers that are live are the guest's, to which this CPU gives what it has: nothing of the host is in
/// them. Interrupts are off.
pub(crate) unsafe fn run(computation: &mut Computation<'_>, operand: &mut Bytes) -> Computed {
    let pages = PAGES.lock();
    let Some(pages) = pages.as_ref() else {
        return Computed::Unavailable;
    };
    pages.run(computation, operand, |registers, code| {
        // SAFETY: an instruction of the list, and behind it a RET; all that it changes is the guest's.
        unsafe { call(registers, code) }
    })
}

/// Calls `code` with the registers of its argument, and corrects what an x87 instruction leaves of its address.
///
/// # Safety
/// `code` is an instruction as [`crate::emulate::Code`] has them, and a RET.
#[unsafe(naked)]
unsafe extern "sysv64" fn call(registers: *mut Registers, code: *const u8) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rsi",
        "push qword ptr [rdi + {rflags}]",
        "popfq",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "call qword ptr [rsp]",
        "push rdi",
        "mov rdi, [rsp + 16]",
        "mov [rdi], rax",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "pop rax",
        "mov [rdi + 56], rax",
        "pushfq",
        "pop qword ptr [rdi + {rflags}]",
        "cld",
        // None of these waits for exceptions. The processor may keep FIP back if there is none.
        "mov rax, [rdi + {fxsave_area}]",
        "test rax, rax",
        "jz 4f",
        "fnstsw [rdi + {fsw}]",
        "fnstcw [rdi + {fcw}]",
        "mov qword ptr [rax + 8], 0",
        "fxsave64 [rax]",
        "mov rcx, [rdi + {code}]",
        "cmp rcx, [rax + 8]",
        "jne 4f",
        "mov rcx, [rdi + {fip}]",
        "mov [rax + 8], rcx",
        "mov rcx, [rdi + {fdp}]",
        "mov [rax + 16], rcx",
        "movzx ecx, word ptr [rdi + {fop}]",
        "mov [rax + 6], cx",
        "fxrstor64 [rax]",
        "4:",
        "pop rsi",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        rflags = const core::mem::offset_of!(Registers, rflags),
        fsw = const core::mem::offset_of!(Registers, fsw),
        fcw = const core::mem::offset_of!(Registers, fcw),
        fop = const core::mem::offset_of!(Registers, fop),
        fxsave_area = const core::mem::offset_of!(Registers, fxsave_area),
        code = const core::mem::offset_of!(Registers, code),
        fip = const core::mem::offset_of!(Registers, fip),
        fdp = const core::mem::offset_of!(Registers, fdp),
    )
}

/// A guest's registers of x87, SSE and AVX where they are not live: for tests, whose own are.
#[cfg(test)]
pub(crate) mod saved {
    use std::sync::Once;

    use super::*;

    /// An area for XSAVE: the legacy region, the header, and the high halves of YMM registers.
    #[derive(Clone, Debug, PartialEq)]
    #[repr(C, align(64))]
    pub(crate) struct Area(pub(crate) [u8; 1024]);

    /// Does what [`run`](super::run) does with the registers of `area` in place of those that are live.
    ///
    /// # Safety
    /// The CPU has AVX, and `area` is one that XRSTOR takes.
    pub(crate) unsafe fn run(
        computation: &mut Computation<'_>,
        operand: &mut Bytes,
        area: &mut Area,
    ) -> Computed {
        static SIGNALS: Once = Once::new();
        SIGNALS.call_once(catch_signals);
        prepare().expect("memory");
        let mut own = Area([0; 1024]);
        let call = |registers: &mut Registers, code| {
            // SAFETY: by the contract; the test's own registers come back afterwards.
            unsafe { call_with(registers, code, area, &mut own) }
        };
        let pages = PAGES.lock();
        let pages = pages.as_ref().expect("the pages were made");
        pages.run(computation, operand, call)
    }

    /// Has the signals that exceptions are under the operating system of the tests do what the hooks do.
    fn catch_signals() {
        extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
            // SAFETY: the kernel passes the registers, which nobody else has now.
            let registers = unsafe { &mut (*context).uc_mcontext.gregs };
            let rip = &mut registers[libc::REG_RIP as usize];
            match skip(*rip as u64, registers[libc::REG_TRAPNO as usize] as u8) {
                Some(behind) => registers[libc::REG_RIP as usize] = behind as i64,
                // SAFETY: not a thing that a test survives.
                None => unsafe { libc::abort() },
            }
        }
        for signal in [libc::SIGILL, libc::SIGFPE, libc::SIGSEGV] {
            // SAFETY: a structure of integers, whose mask is empty; the handler does nothing that signals
            // must not do.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(libc::sigaction(signal, &action, core::ptr::null_mut()), 0);
            }
        }
    }

    /// Calls `code` as [`call`] does with the registers of `area`, and keeps the caller's in `own`.
    #[unsafe(naked)]
    unsafe extern "sysv64" fn call_with(
        registers: *mut Registers,
        code: *const u8,
        area: *mut Area,
        own: *mut Area,
    ) {
        naked_asm!(
            "push rbx",
            "push r12",
            "push r13",
            "mov r12, rdx",
            "mov rbx, rcx",
            "fxsave64 [rbx]",
            "mov eax, 7",
            "xor edx, edx",
            "xrstor64 [r12]",
            "call {call}",
            "mov eax, 7",
            "xor edx, edx",
            "xsave64 [r12]",
            "vzeroupper",
            "fxrstor64 [rbx]",
            "pop r13",
            "pop r12",
            "pop rbx",
            "ret",
            call = sym call,
        )
    }
}
