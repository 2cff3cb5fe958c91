//! The journey through the modes, in low memory, where real mode can reach it.

/// A 32-bit word in low memory that the journey looks for through paging and segments.
pub(crate) const MAGIC_PLACE: u64 = 0x7ff0;

/// The address at which the code runs.
const CODE: u32 = 0x8000;
/// The address of what code and Rust share: see the constants of the same names below.
const PARAMETERS: u32 = 0x7000;
const TICKS: u32 = PARAMETERS + 0x40;
const RESULTS: u32 = PARAMETERS + 0x80;

/// The findings of the journey, in order.
#[derive(Clone, Copy)]
pub(crate) enum Finding {
    CompatibilityDecrement,
    CompatibilityTick,
    Efer,
    ProtectedDecrement,
    ProtectedTick,
    ProtectedFault,
    ProtectedSoftware,
    PaeMemory,
    PaeTick,
    PaeFault,
    PaeOtherMemory,
    Memory32,
    Tick32,
    Code16,
    Tick16,
    RealStatus,
    RealSegment,
    RealTick,
    RealFault,
    RealSoftware,
    RealCpuid,
    RealFarCall,
    UnrealDevice,
    RealInput,
}

/// The number of findings.
const FINDINGS: usize = Finding::RealInput as usize + 1;

/// The values found.
pub(crate) struct Findings([u32; FINDINGS]);

impl Findings {
    pub(crate) fn get(&self, finding: Finding) -> u32 {
        self.0[finding as usize]
    }
}

/// The tables that the journey needs, by physical address.
pub(crate) struct Stage {
    pub(crate) interrupt_table_32: u64,
    pub(crate) pae_root: u64,
    pub(crate) second_entry: u64,
    pub(crate) root_32: u64,
}

/// The journey's interrupt handlers.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    Tick32,
    InvalidOpcode32,
    Software32,
    Tick16,
    InvalidOpcode16,
    Software16,
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
.set PARAMETERS, 0x7000
.set IDT_32, PARAMETERS
.set IVT, PARAMETERS + 0x08
.set IDT_64, PARAMETERS + 0x10
.set SAVED_RSP, PARAMETERS + 0x20
.set ROOT_64, PARAMETERS + 0x28
.set ROOT_PAE, PARAMETERS + 0x2c
.set ROOT_32, PARAMETERS + 0x30
.set SAVED_CR4, PARAMETERS + 0x34
.set SECOND_ENTRY, PARAMETERS + 0x38
.set TICKS, PARAMETERS + 0x40
.set FAULTS, PARAMETERS + 0x44
.set SOFTWARES, PARAMETERS + 0x48
.set SAVED_ESP, PARAMETERS + 0x4c
.set BUFFER, PARAMETERS + 0x50
.set RESULTS, PARAMETERS + 0x80
.set STACK_16, PARAMETERS - 0x10
.set WINDOW, 0x40000000 + 0x7ff0
.set CODE, 0x8000

.pushsection .rodata.journey, "a", @progbits
.balign 16
.global journey_start, journey_end
.global journey_tick_32, journey_fault_32, journey_software_32
.global journey_tick_16, journey_fault_16, journey_software_16
journey_start:

# ---- 64-bit mode, and down to compatibility mode
.code64
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [SAVED_RSP], rsp
    sidt [IDT_64]
    mov rax, cr4
    mov [SAVED_CR4], eax
    mov rax, cr3
    mov [ROOT_64], eax
    push 0x28
    .byte 0x68                          # PUSH
    .long CODE + (compatibility - journey_start)
    .byte 0x48, 0xcb                    # far return, 64-bit

.code32
compatibility:
    mov eax, 5
    .byte 0x48                          # DEC EAX here, a REX prefix in 64-bit mode
    nop
    mov [RESULTS + 4*0], eax
    call wait_32
    mov [RESULTS + 4*1], eax

# ---- 32-bit protected mode without paging
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~0x100
    wrmsr
    rdmsr
    and eax, 0x500
    mov [RESULTS + 4*2], eax
    lidt [IDT_32]
    mov eax, 5
    .byte 0x48
    nop
    mov [RESULTS + 4*3], eax
    call wait_32
    mov [RESULTS + 4*4], eax
    ud2
    mov eax, [FAULTS]
    mov [RESULTS + 4*5], eax
    int 0x30
    mov eax, [SOFTWARES]
    mov [RESULTS + 4*6], eax

# ---- PAE paging
    mov eax, [ROOT_PAE]
    mov cr3, eax
    call paging_on
    mov eax, [WINDOW]
    mov [RESULTS + 4*7], eax
    call wait_32
    mov [RESULTS + 4*8], eax
    ud2
    mov eax, [FAULTS]
    mov [RESULTS + 4*9], eax
    mov eax, [SECOND_ENTRY]
    mov edx, [ROOT_PAE]
    mov [edx + 8], eax
    mov cr3, edx                        # loads the four pointers again
    mov eax, [WINDOW]
    mov [RESULTS + 4*10], eax
    call paging_off

# ---- 32-bit paging
    mov eax, cr4
    and eax, ~0x20                      # PAE
    or eax, 0x10                        # PSE
    mov cr4, eax
    mov eax, [ROOT_32]
    mov cr3, eax
    call paging_on
    mov eax, [WINDOW]
    mov [RESULTS + 4*11], eax
    call wait_32
    mov [RESULTS + 4*12], eax
    call paging_off

# ---- 16-bit protected mode
    mov [SAVED_ESP], esp
    .byte 0xea
    .long CODE + (protected_16 - journey_start)
    .word 0x30

paging_on:
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    ret

paging_off:
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    ret

# Waits for the PIT's interrupt, 1 ms from now; EAX is how many there were.
wait_32:
    mov ebx, [TICKS]
    mov al, 0x30
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 0x04
    out 0x40, al
2:  sti
    hlt
    cli
    mov eax, [TICKS]
    cmp eax, ebx
    je 2b
    ret

journey_tick_32:
    push eax
    inc dword ptr [TICKS]
    mov al, 0x20
    out 0x20, al
    pop eax
    .byte 0xcf                          # IRETD

journey_fault_32:
    inc dword ptr [FAULTS]
    add dword ptr [esp], 2
    .byte 0xcf

journey_software_32:
    inc dword ptr [SOFTWARES]
    .byte 0xcf

.code16
protected_16:
    mov ax, 0x38
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov esp, STACK_16
    xor eax, eax
    .byte 0xb8, 0x34, 0x12, 0x90, 0x90  # MOV AX here, with 0x1234
    mov [RESULTS + 4*13], eax
    call wait_16
    mov [RESULTS + 4*14], eax

# ---- real mode
    lidt [IVT]
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word CODE + (real - journey_start), 0
real:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, STACK_16
    xor eax, eax
    smsw ax
    and eax, 1
    mov [RESULTS + 4*15], eax
    mov ax, 0x07ff
    mov fs, ax
    mov eax, fs:[0]
    mov [RESULTS + 4*16], eax
    call wait_16
    mov [RESULTS + 4*17], eax
    ud2
    mov eax, [FAULTS]
    mov [RESULTS + 4*18], eax
    int 0x30
    mov eax, [SOFTWARES]
    mov [RESULTS + 4*19], eax
    xor eax, eax
    cpuid
    mov [RESULTS + 4*20], ebx
    # CALL 0x0100:target, which is below CODE's end
    xor eax, eax
    .byte 0x9a
    .word CODE + (far - journey_start) - 0x1000, 0x0100
    mov [RESULTS + 4*21], eax
    # two bytes from COM1's scratch register
    mov dx, 0x3ff
    mov al, 0x5a
    out dx, al
    mov edi, BUFFER
    mov ecx, 2
    mov dword ptr [BUFFER], 0
    rep insb
    mov eax, [BUFFER]
    mov [RESULTS + 4*23], eax
    # a segment with protected mode's limit stays when protected mode is left
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 0x10
    mov gs, bx
    and al, 0xfe
    mov cr0, eax
    mov ebx, 0xfee00030
    mov eax, gs:[ebx]
    mov [RESULTS + 4*22], eax

# ---- and back
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long CODE + (protected_32 - journey_start)
    .word 0x28

far:
    mov ax, 0xca11
    .byte 0xcb                          # far return

wait_16:
    mov ebx, [TICKS]
    mov al, 0x30
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 0x04
    out 0x40, al
3:  sti
    hlt
    cli
    mov eax, [TICKS]
    cmp eax, ebx
    je 3b
    ret

journey_tick_16:
    push ax
    inc dword ptr [TICKS]
    mov al, 0x20
    out 0x20, al
    pop ax
    .byte 0xcf                          # IRET

journey_fault_16:
    inc dword ptr [FAULTS]
    push bp
    mov bp, sp
    add word ptr [bp + 2], 2
    pop bp
    .byte 0xcf

journey_software_16:
    inc dword ptr [SOFTWARES]
    .byte 0xcf

.code32
protected_32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov esp, [SAVED_ESP]
    mov eax, [SAVED_CR4]
    mov cr4, eax
    mov eax, [ROOT_64]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    call paging_on
    .byte 0xea
    .long CODE + (long_again - journey_start)
    .word 0x08

.code64
long_again:
    mov rsp, [SAVED_RSP]
    lidt [IDT_64]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
journey_end:
.popsection
"#
);

#[cfg(target_os = "none")]
mod code {
    unsafe extern "C" {
        pub(super) static journey_start: u8;
        pub(super) static journey_end: u8;
        pub(super) static journey_tick_32: u8;
        pub(super) static journey_fault_32: u8;
        pub(super) static journey_software_32: u8;
        pub(super) static journey_tick_16: u8;
        pub(super) static journey_fault_16: u8;
        pub(super) static journey_software_16: u8;
    }
}

/// Nothing to run on a hosted target.
#[cfg(not(target_os = "none"))]
#[allow(non_upper_case_globals, reason = "the names are the assembly's labels")]
mod code {
    pub(super) static journey_start: u8 = 0;
    pub(super) static journey_end: u8 = 0;
    pub(super) static journey_tick_32: u8 = 0;
    pub(super) static journey_fault_32: u8 = 0;
    pub(super) static journey_software_32: u8 = 0;
    pub(super) static journey_tick_16: u8 = 0;
    pub(super) static journey_fault_16: u8 = 0;
    pub(super) static journey_software_16: u8 = 0;
}

/// The address of `handler` in low memory.
pub(crate) fn handler(handler: Handler) -> u32 {
    let place = match handler {
        Handler::Tick32 => &raw const code::journey_tick_32,
        Handler::InvalidOpcode32 => &raw const code::journey_fault_32,
        Handler::Software32 => &raw const code::journey_software_32,
        Handler::Tick16 => &raw const code::journey_tick_16,
        Handler::InvalidOpcode16 => &raw const code::journey_fault_16,
        Handler::Software16 => &raw const code::journey_software_16,
    };
    CODE + (place as usize - &raw const code::journey_start as usize) as u32
}

fn set(offset: u32, value: u32) {
    // SAFETY: the parameters are in low memory that nothing else uses.
    unsafe { ((PARAMETERS + offset) as usize as *mut u32).write_unaligned(value) }
}

/// Counts a tick, for the handler in 64-bit mode.
pub(crate) fn count_tick() {
    // SAFETY: as above.
    unsafe {
        let ticks = TICKS as usize as *mut u32;
        ticks.write_volatile(ticks.read_volatile() + 1);
    }
}

/// Makes the journey, with interrupts off before and after it.
pub(crate) fn make(stage: &Stage) -> Findings {
    let start = &raw const code::journey_start;
    let length = &raw const code::journey_end as usize - start as usize;
    // SAFETY: low memory that nothing else uses: 4 KiB of parameters, then the code.
    unsafe {
        (PARAMETERS as usize as *mut u8).write_bytes(0, 0x100);
        (CODE as usize as *mut u8).copy_from_nonoverlapping(start, length);
    }
    // The pseudo-descriptors of the 32-bit table and of real mode's.
    let limit = 256 * 8 - 1;
    set(0x00, limit | (stage.interrupt_table_32 as u32) << 16);
    set(0x04, (stage.interrupt_table_32 as u32) >> 16);
    set(0x08, 0x3ff);
    set(0x2c, stage.pae_root as u32);
    set(0x30, stage.root_32 as u32);
    set(0x38, stage.second_entry as u32);
    // SAFETY: the code begins at its first byte, keeps what the ABI has it keep, and comes back in
    // 64-bit mode with the same tables.
    let go = unsafe { core::mem::transmute::<usize, extern "C" fn()>(CODE as usize) };
    go();
    Findings(core::array::from_fn(|index| {
        // SAFETY: the results are in low memory.
        unsafe { (RESULTS as usize as *const u32).add(index).read_volatile() }
    }))
}
