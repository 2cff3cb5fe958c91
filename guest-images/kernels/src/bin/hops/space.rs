//! Address spaces, in 32-bit code: frames, fork with copies on write, new programs, and the end.
//!
//! A process is a record of [`Process`]. While one of these routines runs, interrupts are off.

use core::mem::offset_of;

use crate::layout::{self, entry};

/// A process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    /// The physical addresses of its page directory and of its only page table; 0 for no process.
    pub(crate) directory: u32,
    pub(crate) table: u32,
    /// Its stack pointer in the kernel, while it does not run: its registers are there.
    pub(crate) esp: u32,
    /// The end of its kernel stack.
    pub(crate) stack_end: u32,
}

#[allow(missing_docs, reason = "labels of the code below")]
unsafe extern "C" {
    pub(crate) static mut hops_processes: [Process; layout::SLOTS];
    pub(crate) static mut hops_kernel_stacks: [[u8; 4096]; layout::SLOTS];
    pub(crate) static mut hops_frames: [[u8; 4096]; layout::FRAMES];
    /// A stack of the frames that are free.
    pub(crate) static mut hops_free: [u32; layout::FRAMES];
    pub(crate) static mut hops_free_count: u32;
    /// The number of processes that have each frame.
    pub(crate) static mut hops_owners: [u8; layout::FRAMES];
    pub(crate) static mut hops_kernel_directory: u32;
    pub(crate) static mut hops_code: u32;
    pub(crate) static mut hops_shared: u32;
    /// The data with which a program begins.
    pub(crate) static mut hops_data_image: u32;
    pub(crate) static hops_copies: u32;
    pub(crate) static hops_last_owners: u32;
}

core::arch::global_asm!(
    r#"
.set PROCESS_DIRECTORY, {DIRECTORY}
.set PROCESS_TABLE, {TABLE}
.set PROCESS_ESP, {ESP}
.set PROCESS_STACK_END, {STACK_END}
.set USER_ENTRY, ({CODE} >> 22) * 4
.set CODE_ENTRY, 0
.set DATA_ENTRY, 4
.set STACK_ENTRY, 8
.set SHARED_ENTRY, 12

.macro owners_of frame                  # makes the address of a frame the index of its owners
    sub \frame, offset hops_frames
    shr \frame, 12
.endm

.pushsection .text.hops_space, "ax", @progbits
.code32

# Returns a frame in EAX, which the caller fills.
take_frame:
    dec dword ptr [hops_free_count]
    js hops_broken
    mov eax, [hops_free_count]
    mov eax, [hops_free + eax * 4]
    push eax
    owners_of eax
    mov byte ptr [hops_owners + eax], 1
    pop eax
    ret

# One has the frame of entry or address EAX no more. The last frame that is freed is the first to be taken.
give_frame:
    and eax, 0xfffff000
    push edx
    mov edx, eax
    owners_of edx
    dec byte ptr [hops_owners + edx]
    jnz 2f
    mov edx, [hops_free_count]
    mov [hops_free + edx * 4], eax
    inc dword ptr [hops_free_count]
2:  pop edx
    ret

# Copies the page at ESI, or fills one with zeros, to the frame EAX, which is kept.
copy_page:
    push edi
    mov edi, eax
    mov ecx, 1024
    rep movsd
    pop edi
    ret
zero_page:
    push edi
    push eax
    mov edi, eax
    xor eax, eax
    mov ecx, 1024
    rep stosd
    pop eax
    pop edi
    ret

# Makes an address space without private pages for record EDI.
new_space:
    call take_frame
    mov [edi + PROCESS_DIRECTORY], eax
    mov esi, [hops_kernel_directory]
    call copy_page
    mov edx, eax
    call take_frame
    mov [edi + PROCESS_TABLE], eax
    call zero_page
    mov ecx, [hops_code]
    or ecx, {READ_ONLY}
    mov [eax + CODE_ENTRY], ecx
    mov ecx, [hops_shared]
    or ecx, {WRITABLE}
    mov [eax + SHARED_ENTRY], ecx
    or eax, {WRITABLE}
    mov [edx + USER_ENTRY], eax
    ret

# Unmaps all of the address space of page directory EDX and table ESI, and frees what nobody else has, but for
# the page directory.
free_user_half:
    mov dword ptr [edx + USER_ENTRY], 0
    mov eax, [esi + DATA_ENTRY]
    call give_frame
    mov eax, [esi + STACK_ENTRY]
    call give_frame
    mov eax, esi
    jmp give_frame

# FORK: takes the right to write its private pages away from the process, and gives a new one the same pages.
.global hops_fork
hops_fork:
    mov edi, offset hops_processes
2:  cmp dword ptr [edi + PROCESS_DIRECTORY], 0
    je 3f
    add edi, {PROCESS}
    cmp edi, offset hops_processes_end
    jb 2b
    jmp hops_broken
3:  call new_space
    mov ebp, [hops_current]
    mov esi, [ebp + PROCESS_TABLE]
    mov edx, [edi + PROCESS_TABLE]
    mov ecx, DATA_ENTRY
4:  mov eax, [esi + ecx]
    and eax, {NOT_WRITABLE}
    or eax, {COPY_ON_WRITE}
    mov [esi + ecx], eax
    mov [edx + ecx], eax
    owners_of eax
    inc byte ptr [hops_owners + eax]
    add ecx, 4
    cmp ecx, STACK_ENTRY
    jbe 4b
    # the parent's translations
    mov eax, cr3
    mov cr3, eax
    # the registers: the child goes on behind the same INT
    mov dword ptr [esp + {FRAME_EAX}], 1
    mov eax, [edi + PROCESS_STACK_END]
    sub eax, {FRAME}
    mov [edi + PROCESS_ESP], eax
    mov esi, esp
    mov edi, eax
    mov ecx, {FRAME} / 4
    rep movsd
    mov dword ptr [eax + {FRAME_EAX}], 0
    jmp hops_resume

# EXEC: exchanges the address space under the process, on its kernel stack, with interrupts off until the old one
# is gone.
.global hops_exec
hops_exec:
    mov edi, [hops_current]
    push dword ptr [edi + PROCESS_DIRECTORY]
    push dword ptr [edi + PROCESS_TABLE]
    call new_space
    mov edx, [edi + PROCESS_TABLE]
    call take_frame
    mov esi, [hops_data_image]
    call copy_page
    or eax, {WRITABLE}
    mov [edx + DATA_ENTRY], eax
    call take_frame
    call zero_page
    or eax, {WRITABLE}
    mov [edx + STACK_ENTRY], eax
    mov eax, [edi + PROCESS_DIRECTORY]
    mov cr3, eax
    pop esi
    pop edx
    call free_user_half
    mov eax, edx
    call give_frame
    # The rest of a kernel's work for a new program is done with interrupts on.
    sti
    mov ecx, 100
5:  dec ecx
    jnz 5b
    cli
    mov dword ptr [esp + {FRAME_EIP}], {CODE}
    mov dword ptr [esp + {FRAME_ESP}], {STACK} + 0x1000
    jmp hops_resume

# EXIT: the page directory is freed once it is not loaded any more.
.global hops_exit
hops_exit:
    mov ebp, [hops_current]
    mov edx, [ebp + PROCESS_DIRECTORY]
    mov esi, [ebp + PROCESS_TABLE]
    call free_user_half
    mov eax, [hops_kernel_directory]
    mov cr3, eax
    mov eax, edx
    call give_frame
    mov dword ptr [ebp + PROCESS_DIRECTORY], 0
    jmp hops_next

# A page fault. It has to be a write to a page that is to be copied then.
.global hops_page_fault
hops_page_fault:
    pushad
    mov eax, {KERNEL_DATA}
    mov ds, eax
    mov es, eax
    cld
    cmp dword ptr [esp + 32], 7         # user mode wrote to a page that is there
    jne hops_broken
    mov edx, cr2
    shr edx, 12
    sub edx, {CODE} >> 12
    cmp edx, {PAGES}
    jae hops_broken
    mov ebp, [hops_current]
    mov esi, [ebp + PROCESS_TABLE]
    lea ebp, [esi + edx * 4]            # the entry
    mov esi, [ebp]
    test esi, {COPY_ON_WRITE}
    jz hops_broken
    and esi, 0xfffff000
    mov edx, esi
    owners_of edx
    cmp byte ptr [hops_owners + edx], 1
    je 6f
    dec byte ptr [hops_owners + edx]
    call take_frame
    call copy_page
    or eax, {WRITABLE}
    mov [ebp], eax
    inc dword ptr [hops_copies]
    jmp 7f
6:  and dword ptr [ebp], ~{COPY_ON_WRITE}
    or dword ptr [ebp], {WRITABLE}
    inc dword ptr [hops_last_owners]
7:  mov eax, {USER_DATA}
    mov ds, eax
    mov es, eax
    mov eax, cr2
    invlpg [eax]                        # the process's segments begin at 0
    popad
    add esp, 4
    iretd
.code64
.popsection

.pushsection .bss.hops_space, "aw", @nobits
.global hops_processes, hops_processes_end, hops_kernel_stacks, hops_frames, hops_free, hops_free_count
.global hops_owners, hops_kernel_directory, hops_code, hops_shared, hops_data_image
.global hops_copies, hops_last_owners
.balign 4096
hops_frames: .skip {FRAMES} * 4096
hops_kernel_stacks: .skip {SLOTS} * 4096
hops_processes: .skip {SLOTS} * {PROCESS}
hops_processes_end:
hops_free: .skip {FRAMES} * 4
hops_free_count: .skip 4
hops_kernel_directory: .skip 4
hops_code: .skip 4
hops_shared: .skip 4
hops_data_image: .skip 4
hops_copies: .skip 4
hops_last_owners: .skip 4
hops_owners: .skip {FRAMES}
.popsection
"#,
    DIRECTORY = const offset_of!(Process, directory),
    TABLE = const offset_of!(Process, table),
    ESP = const offset_of!(Process, esp),
    STACK_END = const offset_of!(Process, stack_end),
    PROCESS = const size_of::<Process>(),
    SLOTS = const layout::SLOTS,
    FRAMES = const layout::FRAMES,
    CODE = const layout::CODE,
    STACK = const layout::STACK,
    PAGES = const (layout::SHARED - layout::CODE) >> 12,
    READ_ONLY = const entry::PRESENT | entry::USER,
    WRITABLE = const entry::PRESENT | entry::USER | entry::WRITABLE,
    NOT_WRITABLE = const !entry::WRITABLE,
    COPY_ON_WRITE = const entry::COPY_ON_WRITE,
    KERNEL_DATA = const layout::selector::KERNEL_DATA,
    USER_DATA = const layout::selector::USER_DATA,
    FRAME = const size_of::<crate::trap::Registers>(),
    FRAME_EAX = const offset_of!(crate::trap::Registers, eax),
    FRAME_EIP = const offset_of!(crate::trap::Registers, eip),
    FRAME_ESP = const offset_of!(crate::trap::Registers, esp),
);
