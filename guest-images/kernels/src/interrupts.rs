//! The IDT, handlers that can be set for each vector, and faults that a test expects.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arch::ExceptionVector;
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use crate::{exit, println, segments};

/// The registers that an interrupt found, which the handler may change.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the registers' names say it")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// A function that handles an interrupt.
pub type Handler = fn(&mut Frame);

/// The number of exceptions, which are the first vectors.
const EXCEPTIONS: u64 = 32;
/// The vector of an NMI.
pub const NMI: u8 = ExceptionVector::NonMaskableInterrupt as u8;
/// The vector of #DB.
pub const DEBUG: u8 = ExceptionVector::Debug as u8;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
.pushsection .text.interrupts, "ax", @progbits
.balign 16
.global interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    # An error code, unless it is an interrupt with an exception's vector: the CPU has aligned RSP to 16
    # bytes, and pushed 5 or 6 words (SDM vol. 3A, 6.14.2).
    test spl, 8
    jz 1f
    .endif
    push 0                              # no error code from the CPU
1:
    push vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

interrupt_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call {dispatch}
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
.popsection
"#,
    dispatch = sym dispatch,
);

#[cfg(target_os = "none")]
fn stubs() -> u64 {
    unsafe extern "C" {
        static interrupt_stubs: [[u8; 16]; 256];
    }
    &raw const interrupt_stubs as u64
}

#[cfg(not(target_os = "none"))]
fn stubs() -> u64 {
    let _: extern "C" fn(&mut Frame) = dispatch;
    unreachable!("the kernels run on bare metal")
}

/// An interrupt gate. SDM vol. 3A, 6.14.1.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    fn new(handler: u64) -> Self {
        let low = (handler & 0xffff)
            | u64::from(segments::KERNEL_CODE) << 16
            | 0x8e00 << 32 // present, DPL 0, interrupt gate
            | (handler >> 16 & 0xffff) << 48;
        Self {
            low,
            high: handler >> 32,
        }
    }
}

#[repr(C, align(16))]
struct Idt(UnsafeCell<[Gate; 256]>);

// SAFETY: one CPU; gates are changed by one volatile write each.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([Gate { low: 0, high: 0 }; 256]));
static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// Fills the IDT in and loads it.
pub(crate) fn init() {
    for vector in 0..=255 {
        restore(vector);
    }
    load();
}

/// Loads IDTR, for code that has changed it.
pub fn load() {
    let pointer = DescriptorTablePointer {
        limit: size_of::<Idt>() as u16 - 1,
        base: VirtAddr::new(IDT.0.get() as u64),
    };
    // SAFETY: the table is static, and its gates lead to handlers that keep all registers.
    unsafe { lidt(&pointer) }
}

fn set_gate(vector: u8, address: u64) {
    let gate = IDT.0.get().cast::<Gate>().wrapping_add(usize::from(vector));
    // SAFETY: the IDT has 256 gates. An interrupt in between would see a half-written gate, so they
    // are off.
    x86_64::instructions::interrupts::without_interrupts(|| unsafe {
        gate.write_volatile(Gate::new(address));
    });
}

/// Has all interrupts come in on the stack that [`segments::set_fault_stack`] has set, whatever RSP is.
pub fn use_fault_stack() {
    /// The number of the stack in the TSS.
    const STACK: u64 = 1;
    for vector in 0..256 {
        let gate = IDT.0.get().cast::<Gate>().wrapping_add(vector);
        // SAFETY: the IDT has 256 gates, and interrupts are off, or find one that is whole.
        unsafe {
            let mut changed = gate.read_volatile();
            changed.low |= STACK << 32;
            gate.write_volatile(changed);
        }
    }
}

/// Makes `handler` the one for `vector`.
pub fn set_handler(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as usize, Ordering::Relaxed);
}

/// Leaves `vector` without a handler.
pub fn clear_handler(vector: u8) {
    HANDLERS[usize::from(vector)].store(0, Ordering::Relaxed);
}

/// Leads `vector` straight to the code at `address`, which ends with IRETQ: for measurements.
///
/// # Safety
/// The code must keep all registers.
pub unsafe fn set_raw_handler(vector: u8, address: u64) {
    set_gate(vector, address);
}

/// Leads `vector` to the handler that [`set_handler`] sets, again.
pub fn restore(vector: u8) {
    set_gate(vector, stubs() + u64::from(vector) * 16);
}

/// An exception that a test caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The exception's vector.
    pub vector: u8,
    /// Its error code, 0 where it has none.
    pub error: u64,
}

impl Fault {
    /// #DB.
    pub const DEBUG: Self = Self::without_code(ExceptionVector::Debug);
    /// #BP.
    pub const BREAKPOINT: Self = Self::without_code(ExceptionVector::Breakpoint);
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::without_code(ExceptionVector::InvalidOpcode);
    /// #NM.
    pub const NO_DEVICE: Self = Self::without_code(ExceptionVector::DeviceNotAvailable);
    /// #GP with error code 0.
    pub const GENERAL_PROTECTION: Self = Self::without_code(ExceptionVector::GeneralProtection);

    /// Returns #PF with error code `error`.
    #[must_use]
    pub const fn page_fault(error: u64) -> Self {
        Self {
            vector: ExceptionVector::Page as u8,
            error,
        }
    }

    const fn without_code(vector: ExceptionVector) -> Self {
        Self {
            vector: vector as u8,
            error: 0,
        }
    }
}

/// The stack pointer in [`guarded_call`], while one is going on.
static RECOVERY: AtomicU64 = AtomicU64::new(0);

struct LastFault(UnsafeCell<Frame>);

// SAFETY: one CPU. Written at a fault, read after it.
unsafe impl Sync for LastFault {}

// SAFETY: zero is a valid value for each of the numbers in it.
static LAST_FAULT: LastFault = LastFault(UnsafeCell::new(unsafe { core::mem::zeroed() }));

/// Returns the registers at the last fault that [`catch`] caught.
#[must_use]
pub fn last_fault() -> Frame {
    // SAFETY: see `LastFault`.
    unsafe { *LAST_FAULT.0.get() }
}

/// Calls `action(data)` and returns 0, or 1 where [`dispatch`] cut it short.
#[unsafe(naked)]
extern "C" fn guarded_call(action: extern "C" fn(*mut u8), data: *mut u8) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov [rip + {recovery}], rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "mov qword ptr [rip + {recovery}], 0",
        "xor eax, eax",
        "jmp 2f",
        ".global guarded_call_cut_short",
        "guarded_call_cut_short:",
        "mov eax, 1",
        "2:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        recovery = sym RECOVERY,
    )
}

unsafe extern "C" {
    fn guarded_call_cut_short();
}

/// Runs `action`, and tells the exception that it caused, if it did. What follows the exception in
/// `action` is not run, and nothing in it is dropped.
///
/// # Errors
/// The fault.
pub fn catch<F: FnMut()>(mut action: F) -> Result<(), Fault> {
    extern "C" fn call<F: FnMut()>(data: *mut u8) {
        // SAFETY: `data` is the closure below, which outlives the call.
        unsafe { (*data.cast::<F>())() }
    }
    if guarded_call(call::<F>, (&raw mut action).cast()) == 0 {
        return Ok(());
    }
    let frame = last_fault();
    Err(Fault {
        vector: frame.vector as u8,
        error: frame.error,
    })
}

/// Handles all interrupts: the code that their entries come to.
extern "C" fn dispatch(frame: &mut Frame) {
    let handler = HANDLERS[frame.vector as usize & 0xff].load(Ordering::Relaxed);
    if handler != 0 {
        // SAFETY: only `set_handler` stores here, and it stores a `Handler`.
        let handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
        return handler(frame);
    }
    let recovery = RECOVERY.swap(0, Ordering::Relaxed);
    if frame.vector < EXCEPTIONS && recovery != 0 {
        // SAFETY: see `LastFault`.
        unsafe { *LAST_FAULT.0.get() = *frame };
        frame.rip = guarded_call_cut_short as *const () as u64;
        frame.rsp = recovery;
        frame.cs = segments::KERNEL_CODE.into();
        frame.ss = segments::KERNEL_DATA.into();
        frame.rflags &= !0x0004_0500; // AC, DF and TF off
        return;
    }
    let cr2 = read_cr2();
    println!("UNEXPECTED interrupt, cr2 {cr2:#x}: {frame:#x?}");
    exit::exit(exit::PANICKED)
}

/// Returns CR2: the address of the last page fault.
#[must_use]
pub fn read_cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Lets interrupts in for an instruction or two: what is pending is delivered.
pub fn let_in() {
    // SAFETY: the handlers keep all registers. STI lets the first NOP run before anything comes in.
    unsafe { asm!("sti", "nop", "nop", "cli") }
}
