//! From long mode to the processes under 32-bit paging, and back when the operator has had enough.

use core::ptr::addr_of;

use crate::layout::{self, FRAMES, FRAMES_OF_A_PROCESS, PROCESSES, selector};
use crate::space;
use crate::trap;

#[allow(missing_docs, reason = "labels of the code below")]
unsafe extern "C" {
    fn hops_run();
    pub(crate) static mut hops_gdt: [u64; GDT_ENTRIES];
    pub(crate) static mut hops_idt: [u64; IDT_ENTRIES];
    /// The kernel's page directory, with all memory at its physical address as well.
    pub(crate) static mut hops_passage: u32;
}

pub(crate) const GDT_ENTRIES: usize = 9;
pub(crate) const IDT_ENTRIES: usize = 129;

core::arch::global_asm!(
    r#"
.pushsection .text.hops_journey, "ax", @progbits
.code64
.global hops_run
hops_run:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    cli
    mov [rip + saved_rsp], rsp
    sgdt [rip + saved_gdt]
    sidt [rip + saved_idt]
    str word ptr [rip + saved_tr]
    mov rax, cr3
    mov [rip + saved_cr3], rax
    mov rax, cr0
    mov [rip + saved_cr0], rax
    mov rax, cr4
    mov [rip + saved_cr4], rax
    lgdt [rip + first_gdt_pointer]
    push {FLAT_CODE}
    lea rax, [rip + 2f]
    push rax
    retfq

.code32
2:  mov eax, {FLAT_DATA}
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov eax, cr0
    and eax, 0x7fffffff                 # no paging
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff                 # not LME
    wrmsr
    mov eax, cr4
    and eax, 0xffffffdf                 # not PAE
    or eax, 0x10                        # PSE
    mov cr4, eax
    mov eax, [hops_passage]
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax

    # to the kernel's segments, which begin where it has its memory
    .byte 0xea
    .long 3f
    .word {KERNEL_CODE}
3:  mov eax, {KERNEL_DATA}
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset hops_kernel_stacks + 4096
    lgdt [gdt_pointer]
    lidt [idt_pointer]
    mov eax, {TSS}
    ltr ax
    # The first process is behind the last.
    mov dword ptr [hops_current], offset hops_processes_end - {PROCESS}
    jmp hops_next

# Everything is over.
.global hops_leave
hops_leave:
    mov eax, [hops_passage]
    mov cr3, eax
    .byte 0xea
    .long 4f
    .word {FLAT_CODE}
4:  mov eax, {FLAT_DATA}
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, [saved_cr4]
    mov cr4, eax
    mov eax, [saved_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    lgdt [first_gdt_pointer]
    mov eax, [saved_cr0]
    mov cr0, eax
    .byte 0xea
    .long 5f
    .word {LONG_CODE}

.code64
5:  lgdt [rip + saved_gdt]
    lidt [rip + saved_idt]
    movzx eax, word ptr [rip + saved_tr]
    mov rcx, [rip + saved_gdt + 2]
    and byte ptr [rcx + rax + 5], 0xfd  # not busy
    ltr ax
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [rip + saved_rsp]
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
.popsection

.pushsection .data.hops_journey, "aw", @progbits
.balign 8
first_gdt_pointer:                      # at its physical address
    .word {GDT_ENTRIES} * 8 - 1
    .quad hops_gdt
gdt_pointer:
    .word {GDT_ENTRIES} * 8 - 1
    .long hops_gdt + {KERNEL}
idt_pointer:
    .word {IDT_ENTRIES} * 8 - 1
    .long hops_idt + {KERNEL}
.popsection

.pushsection .bss.hops_journey, "aw", @nobits
.global hops_gdt, hops_idt, hops_passage
.balign 16
hops_gdt: .skip {GDT_ENTRIES} * 8
.balign 16
hops_idt: .skip {IDT_ENTRIES} * 8
saved_rsp: .skip 8
saved_cr0: .skip 8
saved_cr3: .skip 8
saved_cr4: .skip 8
saved_gdt: .skip 16
saved_idt: .skip 16
saved_tr: .skip 8
hops_passage: .skip 4
.popsection
"#,
    GDT_ENTRIES = const GDT_ENTRIES,
    IDT_ENTRIES = const IDT_ENTRIES,
    KERNEL = const layout::KERNEL,
    LONG_CODE = const selector::LONG_CODE,
    FLAT_CODE = const selector::FLAT_CODE,
    FLAT_DATA = const selector::FLAT_DATA,
    KERNEL_CODE = const selector::KERNEL_CODE,
    KERNEL_DATA = const selector::KERNEL_DATA,
    TSS = const selector::TSS,
    PROCESS = const size_of::<space::Process>(),
);

/// What the kernel tells at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Whether it has met something that it is not made for.
    pub(crate) fault: u32,
    /// Pages that were copied when they were written.
    pub(crate) copies: u32,
    /// Pages that were just made writable, as nobody else had them any more.
    pub(crate) last_owners: u32,
    free_frames: u32,
}

impl End {
    /// Returns how many frames nobody has, though they are not free. The hopper must not be in the middle of a hop.
    pub(crate) const fn lost_frames(&self) -> i64 {
        (FRAMES - PROCESSES * FRAMES_OF_A_PROCESS) as i64 - self.free_frames as i64
    }
}

/// Has the processes run until the operator wants the end. All is prepared.
pub(crate) fn make() -> End {
    // SAFETY: the code comes back with everything as it was.
    unsafe {
        hops_run();
        End {
            fault: addr_of!(trap::hops_fault).read(),
            copies: addr_of!(space::hops_copies).read(),
            last_owners: addr_of!(space::hops_last_owners).read(),
            free_frames: addr_of!(space::hops_free_count).read(),
        }
    }
}
