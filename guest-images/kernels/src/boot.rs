//! From the multiboot loader to long mode.
//!
//! The loader leaves the CPU in 32-bit protected mode without paging. The entry maps the first
//! 4 GiB one to one with 2 MiB pages, the last of the four uncached because devices are there, and
//! goes to [`crate::start`]'s caller in 64-bit mode.

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
.set MAGIC, 0x1badb002
.set FLAGS, 0x00010003                  # page-aligned modules, memory map, addresses below
.set PAGE_TABLES, 6                     # PML4, PDPT, four page directories

.pushsection .multiboot, "a", @progbits
.balign 4
multiboot_header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long multiboot_header              # header_addr
    .long image_start                   # load_addr
    .long image_loaded_end              # load_end_addr
    .long image_end                     # bss_end_addr
    .long multiboot_entry               # entry_addr
.popsection

.pushsection .boot, "ax", @progbits
.code32
.global multiboot_entry
multiboot_entry:
    cli
    cld
    mov esp, offset boot_stack_end
    mov [multiboot_magic], eax
    mov [multiboot_information], ebx

    # PML4 -> PDPT -> four directories
    mov eax, offset boot_pml4
    mov dword ptr [eax], offset boot_pml4 + 0x1003
    mov edi, offset boot_pml4 + 0x1000
    mov eax, offset boot_pml4 + 0x2003
    mov ecx, 4
2:  mov [edi], eax
    add eax, 0x1000
    add edi, 8
    dec ecx
    jnz 2b

    # 2048 pages of 2 MiB: present, writable, large; from 3 GiB up also uncached
    mov edi, offset boot_pml4 + 0x2000
    mov eax, 0x83
3:  mov [edi], eax
    add edi, 8
    add eax, 0x200000
    jc 4f
    cmp eax, 0xc0000083
    jne 3b
    mov eax, 0xc000009b
    jmp 3b

4:  mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620                       # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080                 # IA32_EFER
    rdmsr
    or eax, 0x900                       # LME, NXE
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3                 # not CD, NW, EM, TS
    or eax, 0x80010022                  # PG, WP, NE, MP
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    .byte 0xea                          # jmp 0x08:5f, which the assembler does not take
    .long 5f
    .word 0x08

.code64
5:  mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset boot_stack_end
    xor ebp, ebp
    call kernel_main
    ud2

.balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .long boot_gdt
.balign 4
.global multiboot_magic, multiboot_information
multiboot_magic: .long 0
multiboot_information: .long 0
.popsection

.pushsection .bss.boot, "aw", @nobits
.balign 4096
.global boot_pml4
boot_pml4: .skip 4096 * PAGE_TABLES
boot_stack: .skip 65536
.global boot_stack_end
boot_stack_end:
.popsection
"#
);
