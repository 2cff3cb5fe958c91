//! The ways into the kernel, in 32-bit code, and who runs next.
//!
//! Processes take turns in the order of their records. The timer takes the processor from code in ring 3 only; whoever
//! gets it has a whole slice.

use core::mem::offset_of;

use crate::layout;
use crate::space::Process;

/// The registers of a process that has come into the kernel, at the top of its kernel stack: as PUSHAD, and before it the
/// processor (SDM vol. 3A, 6.12.1), leave them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Registers {
    pub(crate) edi: u32,
    pub(crate) esi: u32,
    pub(crate) ebp: u32,
    pub(crate) unused: u32,
    pub(crate) ebx: u32,
    pub(crate) edx: u32,
    pub(crate) ecx: u32,
    pub(crate) eax: u32,
    pub(crate) eip: u32,
    pub(crate) cs: u32,
    pub(crate) eflags: u32,
    pub(crate) esp: u32,
    pub(crate) ss: u32,
}

#[allow(missing_docs, reason = "labels of the code below")]
unsafe extern "C" {
    pub(crate) fn hops_tick();
    pub(crate) fn hops_call();
    pub(crate) fn hops_broken();
    pub(crate) fn hops_page_fault();
    pub(crate) static mut hops_tss: [u32; 26];
    pub(crate) static mut hops_until_report: u32;
    pub(crate) static hops_fault: u32;
}

core::arch::global_asm!(
    r#"
.macro enter_kernel
    pushad
    mov eax, {KERNEL_DATA}
    mov ds, eax
    mov es, eax
    cld
.endm

.pushsection .text.hops_trap, "ax", @progbits
.code32

.global hops_call
hops_call:
    enter_kernel
    mov eax, [esp + {EAX}]
    cmp eax, {CALL_FORK}
    je hops_fork
    cmp eax, {CALL_EXEC}
    je hops_exec
    cmp eax, {CALL_EXIT}
    je hops_exit
    jmp hops_broken

.global hops_tick
hops_tick:
    enter_kernel
    mov al, 0x20
    out 0x20, al
    test byte ptr [esp + {CS}], 3
    jnz 2f
    popad                               # the kernel goes on
    iretd
2:  dec dword ptr [hops_slice]
    # The first process reports, so that it takes no other's time.
    cmp dword ptr [hops_until_report], 0
    je 3f
    dec dword ptr [hops_until_report]
    jmp 4f
3:  cmp dword ptr [hops_current], offset hops_processes
    jne 4f
    mov dword ptr [hops_until_report], {TICKS_PER_REPORT}
    call hops_report
4:  cmp dword ptr [hops_slice], 0
    jg hops_resume
    mov ebp, [hops_current]
    mov [ebp + {RECORD_ESP}], esp

# Whoever is next goes on. The address space is exchanged on the stack of who is left, before the stack is.
.global hops_next
hops_next:
    mov ebp, [hops_current]
5:  add ebp, {PROCESS}
    cmp ebp, offset hops_processes_end
    jb 6f
    mov ebp, offset hops_processes
6:  mov eax, [ebp + {RECORD_DIRECTORY}]
    test eax, eax
    jz 5b
    mov [hops_current], ebp
    mov cr3, eax
    mov esp, [ebp + {RECORD_ESP}]
    mov eax, [ebp + {RECORD_STACK_END}]
    mov [hops_tss + 4], eax             # ESP0
    mov dword ptr [hops_slice], {TICKS_PER_SLICE}

.global hops_resume
hops_resume:
    mov eax, {USER_DATA}
    mov ds, eax
    mov es, eax
    popad
    iretd

# What the kernel is not made for: it ends.
.global hops_broken
hops_broken:
    mov eax, {KERNEL_DATA}
    mov ds, eax
    inc dword ptr [hops_fault]
    jmp hops_leave
.code64
.popsection

.pushsection .bss.hops_trap, "aw", @nobits
.global hops_current, hops_tss, hops_until_report, hops_fault
.balign 128
hops_tss: .skip 104
hops_current: .skip 4
hops_slice: .skip 4
hops_until_report: .skip 4
hops_fault: .skip 4
.popsection
"#,
    KERNEL_DATA = const layout::selector::KERNEL_DATA,
    USER_DATA = const layout::selector::USER_DATA,
    EAX = const offset_of!(Registers, eax),
    CS = const offset_of!(Registers, cs),
    CALL_FORK = const layout::call::FORK,
    CALL_EXEC = const layout::call::EXEC,
    CALL_EXIT = const layout::call::EXIT,
    TICKS_PER_REPORT = const layout::TICKS_PER_REPORT,
    TICKS_PER_SLICE = const layout::TICKS_PER_SLICE,
    PROCESS = const size_of::<Process>(),
    RECORD_DIRECTORY = const offset_of!(Process, directory),
    RECORD_ESP = const offset_of!(Process, esp),
    RECORD_STACK_END = const offset_of!(Process, stack_end),
);
