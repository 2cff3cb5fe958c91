//! From long mode to 32-bit protected mode with paging, from task to task there, and back.
//!
//! Whoever runs leaves a [`Record`] at each station, so what happened can be read from the list of
//! them.

/// The state that a station saw.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The task register.
    pub(crate) tr: u32,
    pub(crate) eflags: u32,
    /// The back link in the TSS of the called task.
    pub(crate) link: u32,
    pub cr3: u32,
    pub cr0: u32,
    pub(crate) esp: u32,
    /// Access bytes of the descriptors of the main task (low) and the called task.
    pub(crate) types: u32,
    /// EAX: what the station has to say.
    pub(crate) eax: u32,
}

/// The number of records that there is room for.
pub(crate) const RECORDS: usize = 20;

#[allow(missing_docs, reason = "labels of the code below")]
unsafe extern "C" {
    pub(crate) fn tasks_run();
    pub(crate) fn tasks_called();
    pub(crate) fn tasks_called_16();
    pub(crate) fn tasks_debug();
    pub(crate) fn tasks_invalid_tss();
    pub(crate) static mut tasks_gdt: [u64; 16];
    pub(crate) static mut tasks_idt: [u64; 256];
    pub(crate) static mut tasks_main_tss: [u32; 26];
    pub(crate) static mut tasks_called_tss: [u32; 26];
    pub(crate) static mut tasks_wrong_tss: [u32; 26];
    pub(crate) static mut tasks_called_16_tss: [u16; 22];
    pub(crate) static mut tasks_records: [Record; RECORDS];
    pub(crate) static mut tasks_stacks: [u8; 4 * 4096];
    pub(crate) static mut tasks_cr3: u32;
    pub(crate) static mut tasks_count_16: u32;
    pub(crate) static mut tasks_restarts: u32;
    pub(crate) static mut tasks_with_trap: u32;
}

core::arch::global_asm!(
    r#"
.set TASKS_MAIN, 0x20
.set TASKS_CALLED, 0x28
.set TASKS_CALLED_16, 0x30
.set TASKS_GATE, 0x38
.set TASKS_WRONG, 0x48

.macro far_call selector                # an offset that means nothing, full of HLT
    .byte 0x9a
    .long 0xf4f4f4f4
    .word \selector
.endm
.macro far_jump selector
    .byte 0xea
    .long 0xf4f4f4f4
    .word \selector
.endm

.pushsection .text.tasks, "ax", @progbits
.code64
.global tasks_run
tasks_run:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    cli
    mov [rip + tasks_saved_rsp], rsp
    sgdt [rip + tasks_saved_gdt]
    sidt [rip + tasks_saved_idt]
    str word ptr [rip + tasks_saved_tr]
    mov rax, cr3
    mov [rip + tasks_saved_cr3], rax
    mov rax, cr0
    mov [rip + tasks_saved_cr0], rax
    mov rax, cr4
    mov [rip + tasks_saved_cr4], rax
    lgdt [rip + tasks_gdt_pointer]
    push 0x18
    lea rax, [rip + 2f]
    push rax
    retfq

.code32
2:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov esp, offset tasks_stacks + 4096
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov eax, cr4
    and eax, 0xffffffdf                 # not PAE
    or eax, 0x10                        # PSE
    mov cr4, eax
    mov eax, [tasks_cr3]
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    lidt [tasks_idt_pointer]
    mov eax, TASKS_MAIN
    ltr ax
    clts

    # CALL, twice: the second goes on behind the IRET of the first
    mov eax, 0x12345678
    far_call TASKS_CALLED
    call tasks_record
    clts
    far_call TASKS_CALLED
    call tasks_record
    # JMP through a task gate, and JMP back
    mov dword ptr [tasks_mode], 1
    far_jump TASKS_GATE
    call tasks_record
    mov dword ptr [tasks_mode], 0
    # INT through a task gate
    int 0x40
    call tasks_record
    # an exception with an error code through a task gate, which skips the instruction
    mov dword ptr [tasks_mode], 2
    mov eax, 0x1234
    mov es, eax
    call tasks_record
    mov dword ptr [tasks_mode], 0
    # a task with a TSS of 16 bits
    mov eax, 0x9abcdef0
    far_call TASKS_CALLED_16
    call tasks_record
    # a task whose DS is wrong
    far_call TASKS_WRONG
    call tasks_record
    # a task with the T flag
    cmp dword ptr [tasks_with_trap], 0
    je 3f
    mov byte ptr [tasks_called_tss + 0x64], 1
    far_call TASKS_CALLED
    call tasks_record
3:
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, [tasks_saved_cr4]
    mov cr4, eax
    mov eax, [tasks_saved_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, [tasks_saved_cr0]
    mov cr0, eax
    .byte 0xea
    .long 4f
    .word 0x08

.code64
4:  lgdt [rip + tasks_saved_gdt]
    lidt [rip + tasks_saved_idt]
    movzx eax, word ptr [rip + tasks_saved_tr]
    mov rcx, [rip + tasks_saved_gdt + 2]
    and byte ptr [rcx + rax + 5], 0xfd  # not busy
    ltr ax
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, [rip + tasks_saved_rsp]
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

.code32
tasks_record:
    pushfd
    pushad
    mov edi, [tasks_next]
    add dword ptr [tasks_next], 32
    str eax
    mov [edi], eax
    mov eax, [esp + 32]
    mov [edi + 4], eax
    movzx eax, word ptr [tasks_called_tss]
    mov [edi + 8], eax
    mov eax, cr3
    mov [edi + 12], eax
    mov eax, cr0
    mov [edi + 16], eax
    lea eax, [esp + 40]
    mov [edi + 20], eax
    movzx eax, byte ptr [tasks_gdt + TASKS_CALLED + 5]
    shl eax, 8
    mov al, [tasks_gdt + TASKS_MAIN + 5]
    mov [edi + 24], eax
    mov eax, [esp + 28]
    mov [edi + 28], eax
    popad
    popfd
    ret

.global tasks_called
tasks_called:
    cmp dword ptr [tasks_mode], 2
    jne 5f
    pop eax                             # the error code
    add dword ptr [tasks_main_tss + 0x20], 2
5:  call tasks_record
    cmp dword ptr [tasks_mode], 1
    je 6f
    iretd
    inc dword ptr [tasks_restarts]
    jmp tasks_called
6:  far_jump TASKS_MAIN
    inc dword ptr [tasks_restarts]
    jmp tasks_called

# #DB and #TS come by interrupt gates.
.global tasks_debug
tasks_debug:
    mov eax, dr6
    call tasks_record
    iretd

.global tasks_invalid_tss
tasks_invalid_tss:
    pop eax
    mov ecx, 0x10
    mov ds, ecx
    call tasks_record
    and byte ptr [tasks_gdt + TASKS_MAIN + 5], 0xfd
    far_jump TASKS_MAIN

.code16
.balign 16
.global tasks_called_16
tasks_called_16:
    mov ebx, offset tasks_count_16
    inc dword ptr [ebx]
    iret
    jmp tasks_called_16
.code64
.popsection

.pushsection .data.tasks, "aw", @progbits
.balign 8
tasks_gdt_pointer:
    .word 16 * 8 - 1
    .quad tasks_gdt
tasks_idt_pointer:
    .word 256 * 8 - 1
    .quad tasks_idt
.balign 4
tasks_next: .long tasks_records
.popsection

.pushsection .bss.tasks, "aw", @nobits
.balign 16
.global tasks_gdt, tasks_idt, tasks_main_tss, tasks_called_tss, tasks_wrong_tss
.global tasks_called_16_tss, tasks_records, tasks_stacks, tasks_cr3, tasks_count_16
.global tasks_restarts, tasks_with_trap
tasks_gdt: .skip 16 * 8
tasks_idt: .skip 256 * 8
tasks_main_tss: .skip 104
.balign 16
tasks_called_tss: .skip 104
.balign 16
tasks_wrong_tss: .skip 104
.balign 16
tasks_called_16_tss: .skip 44
.balign 16
tasks_records: .skip 20 * 32
tasks_stacks: .skip 4 * 4096
tasks_saved_rsp: .skip 8
tasks_saved_cr0: .skip 8
tasks_saved_cr3: .skip 8
tasks_saved_cr4: .skip 8
tasks_saved_gdt: .skip 16
tasks_saved_idt: .skip 16
tasks_saved_tr: .skip 8
tasks_cr3: .skip 4
tasks_count_16: .skip 4
tasks_restarts: .skip 4
tasks_with_trap: .skip 4
tasks_mode: .skip 4
.popsection
"#
);
