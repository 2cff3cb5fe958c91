//! A journey from long mode to real mode and back, with any instruction in each mode, and task switches.
//!
//! A fault ends the stay in a mode: its handler puts the stack back and goes on with the next one.

use kernels::dice::Dice;
use kernels::memory::{self as tables, LARGE, PRESENT, WRITABLE};
use kernels::segments;

use crate::code;
use crate::{Action, RUINOUS};

pub(crate) const ACTIONS: &[Action] = &[(journey, 8)];

/// The address at which the code runs, and that of what it shares with Rust.
const CODE: u64 = 0x8000;
const PARAMETERS: u64 = 0x7000;
/// The room for instructions in each mode, in bytes.
const ROOM: usize = 48;
/// The modes.
const STAGES: usize = 7;
/// Real mode's handlers of all vectors: an address each.
const VECTORS: u64 = 0x6000;
/// The table of 32-bit gates, and the descriptors with two tasks.
const GATES: u64 = 0x5000;
const DESCRIPTORS: u64 = 0x4000;
const TASKS: u64 = 0x4800;
/// CR3 in a task's state.
const ROOT_FIELD: u64 = 0x1c;
/// What faults of a task need to be handled: its stacks, and CR3.
const VITAL_FIELDS: [u64; 5] = [0x04, 0x08, ROOT_FIELD, 0x38, 0x50];

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
.set J_PARAMETERS, 0x7000
.set J_IDT_32, J_PARAMETERS
.set J_IVT, J_PARAMETERS + 0x08
.set J_IDT_64, J_PARAMETERS + 0x10
.set J_RSP, J_PARAMETERS + 0x20
.set J_ROOT_64, J_PARAMETERS + 0x28
.set J_ROOT_PAE, J_PARAMETERS + 0x2c
.set J_ROOT_32, J_PARAMETERS + 0x30
.set J_CR4, J_PARAMETERS + 0x34
.set J_NEXT, J_PARAMETERS + 0x38
.set J_NEXT_16, J_PARAMETERS + 0x3c
.set J_GDT, J_PARAMETERS + 0x40
.set J_VALUES, J_PARAMETERS + 0x60
.set J_STACK, 0x5ff0
.set J_STACK_16, 0x7f00
.set J_CODE, 0x8000

.pushsection .rodata.fuzz_journey, "a", @progbits
.balign 16
.global fuzz_journey, fuzz_journey_end, fuzz_fault_32, fuzz_fault_16
.global fuzz_stage_0, fuzz_stage_1, fuzz_stage_2, fuzz_stage_3, fuzz_stage_4, fuzz_stage_5, fuzz_stage_6
fuzz_journey:
.code64
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [J_RSP], rsp
    sidt [J_IDT_64]
    mov rax, cr4
    mov [J_CR4], eax
    mov rax, cr3
    mov [J_ROOT_64], eax
    lgdt [J_GDT]
    push 0x28
    .byte 0x68
    .long J_CODE + (j_compatibility - fuzz_journey)
    .byte 0x48, 0xcb

.macro load_values
    mov eax, [J_VALUES]
    mov ebx, [J_VALUES + 4]
    mov ecx, [J_VALUES + 8]
    mov edx, [J_VALUES + 12]
    mov esi, [J_VALUES + 16]
    mov edi, [J_VALUES + 20]
.endm

# MOV DWORD PTR [J_NEXT], which the assembler does not take with such an operand
.macro go_on_at place
    .byte 0xc7, 0x05
    .long J_NEXT, J_CODE + (\place - fuzz_journey)
.endm

.code32
j_compatibility:
    mov esp, J_STACK
    load_values
fuzz_stage_0: .skip 48, 0x90
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~0x100
    wrmsr
    lidt [J_IDT_32]
    mov ax, 0x48
    ltr ax
    mov ax, 0x10
    mov ss, ax
    mov ds, ax
    mov es, ax

    go_on_at j_pae
    load_values
fuzz_stage_1: .skip 48, 0x90
j_pae:
    mov eax, [J_ROOT_PAE]
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    go_on_at j_pae_end
    load_values
fuzz_stage_2: .skip 48, 0x90
j_pae_end:
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, cr4
    and eax, ~0x20
    or eax, 0x10
    mov cr4, eax
    mov eax, [J_ROOT_32]
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    go_on_at j_32_end
    load_values
fuzz_stage_3: .skip 48, 0x90
j_32_end:
    # to another task and back, unless its state is broken
    go_on_at j_task_end
    .byte 0x9a
    .long 0
    .word 0x50
    jmp j_task_end
.global fuzz_task
fuzz_task:
    load_values
fuzz_stage_4: .skip 48, 0x90
    .byte 0xcf
j_task_end:
    # virtual-8086 mode; its handler goes on behind it
    go_on_at j_v86_end
    load_values
    push 0
    push 0
    push 0
    push 0
    push 0
    push J_STACK_16
    push 0x23002
    push 0
    .byte 0x68
    .long J_CODE + (fuzz_stage_5 - fuzz_journey)
    .byte 0xcf
fuzz_stage_5: .skip 48, 0x90
    .byte 0xcd, 0x30
j_v86_end:
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    .byte 0xea
    .long J_CODE + (j_16 - fuzz_journey)
    .word 0x30

fuzz_fault_32:
    mov ax, 0x10
    mov ss, ax
    mov ds, ax
    mov es, ax
    mov esp, J_STACK
    pushfd
    and dword ptr [esp], 0xffffbeff
    popfd
    clts
    jmp dword ptr [J_NEXT]

.code16
j_16:
    mov ax, 0x38
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov esp, J_STACK_16
    # one segment keeps a large limit
    mov ax, 0x10
    mov gs, ax
    lidt [J_IVT]
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word J_CODE + (j_real - fuzz_journey), 0
j_real:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, J_STACK_16
    load_values
fuzz_stage_6: .skip 48, 0x90
j_real_end:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov esp, J_STACK_16
    lgdt [J_GDT]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long J_CODE + (j_protected - fuzz_journey)
    .word 0x28

fuzz_fault_16:
    cli
    .byte 0xea
    .word J_CODE + (j_real_end - fuzz_journey), 0

.code32
j_protected:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov eax, [J_CR4]
    mov cr4, eax
    mov eax, [J_ROOT_64]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long J_CODE + (j_long - fuzz_journey)
    .word 0x08

.code64
j_long:
    mov rsp, [J_RSP]
    lidt [J_IDT_64]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
fuzz_journey_end:
.popsection
"#
);

#[cfg(target_os = "none")]
mod labels {
    unsafe extern "C" {
        pub(super) static fuzz_journey: u8;
        pub(super) static fuzz_journey_end: u8;
        pub(super) static fuzz_fault_32: u8;
        pub(super) static fuzz_fault_16: u8;
        pub(super) static fuzz_task: u8;
        pub(super) static fuzz_stage_0: u8;
        pub(super) static fuzz_stage_1: u8;
        pub(super) static fuzz_stage_2: u8;
        pub(super) static fuzz_stage_3: u8;
        pub(super) static fuzz_stage_4: u8;
        pub(super) static fuzz_stage_5: u8;
        pub(super) static fuzz_stage_6: u8;
    }
}

/// Nothing to run on a hosted target.
#[cfg(not(target_os = "none"))]
#[allow(non_upper_case_globals, reason = "the names are the assembly's labels")]
mod labels {
    pub(super) static fuzz_journey: u8 = 0;
    pub(super) static fuzz_journey_end: u8 = 0;
    pub(super) static fuzz_fault_32: u8 = 0;
    pub(super) static fuzz_fault_16: u8 = 0;
    pub(super) static fuzz_task: u8 = 0;
    pub(super) static fuzz_stage_0: u8 = 0;
    pub(super) static fuzz_stage_1: u8 = 0;
    pub(super) static fuzz_stage_2: u8 = 0;
    pub(super) static fuzz_stage_3: u8 = 0;
    pub(super) static fuzz_stage_4: u8 = 0;
    pub(super) static fuzz_stage_5: u8 = 0;
    pub(super) static fuzz_stage_6: u8 = 0;
}

fn stages() -> [*const u8; STAGES] {
    [
        &raw const labels::fuzz_stage_0,
        &raw const labels::fuzz_stage_1,
        &raw const labels::fuzz_stage_2,
        &raw const labels::fuzz_stage_3,
        &raw const labels::fuzz_stage_4,
        &raw const labels::fuzz_stage_5,
        &raw const labels::fuzz_stage_6,
    ]
}

/// The address of a label in low memory.
fn low(label: *const u8) -> u64 {
    CODE + (label as u64 - &raw const labels::fuzz_journey as u64)
}

fn put<T>(address: u64, value: T) {
    // SAFETY: low memory, which nothing else uses: see the constants.
    unsafe { (address as *mut T).write_unaligned(value) }
}

/// Page tables of one to one: the PAE root, and that of 32 bits.
fn roots() -> (u64, u64) {
    use core::sync::atomic::{AtomicU64, Ordering};
    static ROOTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    if ROOTS[0].load(Ordering::Relaxed) == 0 {
        let [pae, root] = [(); 2].map(|()| tables::allocate() as u64);
        for gigabyte in 0..4_u64 {
            let directory = tables::allocate() as u64;
            for entry in 0..512 {
                let address = gigabyte << 30 | entry << 21;
                put(
                    directory + 8 * entry,
                    address | LARGE | WRITABLE | PRESENT | 4,
                );
            }
            put(pae + 8 * gigabyte, directory | PRESENT);
        }
        for entry in 0..1024_u64 {
            let flags = (LARGE | WRITABLE | PRESENT | 4) as u32;
            put(root + 4 * entry, (entry as u32) << 22 | flags);
        }
        ROOTS[0].store(pae, Ordering::Relaxed);
        ROOTS[1].store(root, Ordering::Relaxed);
    }
    let [pae, root] = [&ROOTS[0], &ROOTS[1]].map(|it| it.load(Ordering::Relaxed));
    (pae, root)
}

/// Writes the descriptors and the two tasks: one that the journey is in, and one for the switch.
fn fill_tables(dice: &mut Dice) {
    let (pae, root) = roots();
    let task = |number: u64, kind: u64| 0x67 | (TASKS + number * 0x80) << 16 | kind << 40;
    for (slot, descriptor) in [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x0000_9b00_0000_ffff,
        0x0000_9300_0000_ffff,
        0,
        task(0, 0x89),
        task(1, 0x89),
    ]
    .into_iter()
    .enumerate()
    {
        put(DESCRIPTORS + 8 * slot as u64, descriptor);
    }
    for number in 0..2 {
        let tss = TASKS + number * 0x80;
        for offset in (0..0x80).step_by(8) {
            put(tss + offset, 0_u64);
        }
        put(tss + 0x04, 0x5df0_u32);
        put(tss + 0x08, 0x10_u32);
        put(tss + ROOT_FIELD, root as u32);
        put(tss + 0x20, low(&raw const labels::fuzz_task) as u32);
        put(tss + 0x24, 2_u32);
        put(tss + 0x38, 0x5bf0_u32);
        for (offset, selector) in [(0x48, 0x10), (0x4c, 0x28), (0x50, 0x10), (0x54, 0x10)] {
            put(tss + offset, u32::from(selector as u16));
        }
        put(tss + 0x66, 104_u16);
    }
    // What is wrong with the task or its descriptor now and then: seldom its root, its stacks or its place, as no
    // fault has a handler then.
    if dice.once_in(2) {
        let field = dice.below(0x68) & !3;
        if !VITAL_FIELDS.contains(&field) || dice.once_in(RUINOUS) {
            put(TASKS + 0x80 + field, dice.value() as u32);
        }
    }
    if dice.once_in(6) {
        let byte = dice.below(8);
        if matches!(byte, 0 | 1 | 6) || dice.once_in(RUINOUS) {
            put(DESCRIPTORS + 0x50 + byte, dice.any() as u8);
        } else if byte == 5 {
            // Not a task of 16 bits, whose state has its stacks elsewhere.
            put(DESCRIPTORS + 0x50 + byte, dice.any() as u8 | 8);
        }
    }
    let handler = low(&raw const labels::fuzz_fault_32);
    let gate =
        handler & 0xffff | u64::from(segments::CODE_32) << 16 | 0xee00 << 32 | handler >> 16 << 48;
    let handler_16 = low(&raw const labels::fuzz_fault_16) as u32;
    for vector in 0..256 {
        put(GATES + 8 * vector, gate);
        // Below the parameters: 1 KiB.
        put(VECTORS + 4 * vector, handler_16);
    }
    put(PARAMETERS, 0x7ff_u16);
    put(PARAMETERS + 2, GATES as u32);
    put(PARAMETERS + 0x08, 0x3ff_u16);
    put(PARAMETERS + 0x0a, VECTORS as u32);
    put(PARAMETERS + 0x2c, pae as u32);
    put(PARAMETERS + 0x30, root as u32);
    put(PARAMETERS + 0x40, 0x57_u16);
    put(PARAMETERS + 0x42, DESCRIPTORS);
}

/// Instructions that do nothing bad in any mode, but exit.
const EXITING: [&[u8]; 10] = [
    &[0x0f, 0xa2],       // CPUID
    &[0xe4, 0x71],       // IN AL, 0x71
    &[0xe6, 0x80],       // OUT 0x80, AL
    &[0x0f, 0x08],       // INVD
    &[0x0f, 0x06],       // CLTS
    &[0x0f, 0x01, 0xc1], // VMCALL
    &[0x0f, 0x20, 0xc0], // MOV EAX, CR0
    &[0xf3, 0x6c],       // REP INSB
    &[0x0f, 0x30],       // WRMSR
    &[0xcd, 0x30],       // INT 0x30
];

/// Makes the journey once.
fn journey(dice: &mut Dice) {
    let start = &raw const labels::fuzz_journey;
    let length = &raw const labels::fuzz_journey_end as usize - start as usize;
    // SAFETY: low memory that nothing else uses.
    unsafe { (CODE as *mut u8).copy_from_nonoverlapping(start, length) };
    fill_tables(dice);
    let address = dice.of(&[0xfee0_0030, 0xfec0_0000, 0xfed0_0000, 0xb000_0000, 0x9000]);
    let port = dice.of(&[0x40, 0x71, 0x80, 0x608]);
    let small = dice.below(32);
    for (slot, value) in [address, address, small, port, address, 0x9000 + small]
        .into_iter()
        .enumerate()
    {
        put(PARAMETERS + 0x60 + 4 * slot as u64, value as u32);
    }
    for stage in stages() {
        let place = low(stage);
        let code = if dice.once_in(2) {
            dice.of(&EXITING)
        } else {
            &code::instruction(dice, true)[..]
        };
        let code = &code[..code.len().min(ROOM)];
        for (offset, &byte) in code.iter().enumerate() {
            put(place + offset as u64, byte);
        }
    }
    // SAFETY: the code begins at its first byte, keeps what the ABI has it keep, and comes back in 64-bit mode,
    // unless an instruction has had bad luck.
    let go = unsafe { core::mem::transmute::<usize, extern "C" fn()>(CODE as usize) };
    go();
}
