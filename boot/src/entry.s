# From the boot loader to 64-bit Rust.
#
# Both multiboot protocols start the image in 32-bit protected mode, paging off, interrupts
# off, EAX holding a magic number, EBX the address of the boot information, and nothing
# else to rely on: no stack, no usable GDT.

.set MULTIBOOT1_MAGIC, 0x1badb002
# Bit 0: modules start on page boundaries. Bit 1: memory map wanted. Bit 16: the address
# fields below are valid (the only way to have a 64-bit ELF loaded).
.set MULTIBOOT1_FLAGS, 0x00010003
.set MULTIBOOT2_MAGIC, 0xe85250d6
.set MULTIBOOT2_TAG_MODULE_ALIGNMENT, 6

.set CPUID_LONG_MODE, 1 << 29

.set UART_SETTINGS, 6        # pairs in uart_settings

.set PTE_TABLE, 0x3     # present, writable
.set PTE_LARGE, 0x83    # present, writable, 2 MiB page

.section .boot.headers, "a"
.balign 8
multiboot1_header:
    .long MULTIBOOT1_MAGIC
    .long MULTIBOOT1_FLAGS
    .long -(MULTIBOOT1_MAGIC + MULTIBOOT1_FLAGS)
    .long multiboot1_header         # header_addr
    .long image_start               # load_addr
    .long load_end                  # load_end_addr
    .long bss_end                   # bss_end_addr
    .long multiboot_entry           # entry_addr

.balign 8
multiboot2_header:
    .long MULTIBOOT2_MAGIC
    .long 0                         # architecture: 32-bit protected mode of i386
    .long multiboot2_header_end - multiboot2_header
    .long -(MULTIBOOT2_MAGIC + (multiboot2_header_end - multiboot2_header))
    .short MULTIBOOT2_TAG_MODULE_ALIGNMENT, 0
    .long 8
    .short 0, 0                     # end tag
    .long 8
multiboot2_header_end:

.section .boot.text, "ax"
.code32
.global multiboot_entry
multiboot_entry:
    cli
    cld
    mov ebp, eax                    # the magic
    mov esi, ebx                    # the boot information

    # Loaders promise a cleared BSS; a stale one would be found much too late.
    mov edi, offset bss_start
    mov ecx, offset bss_end
    sub ecx, edi
    shr ecx, 2
    xor eax, eax
    rep stosd

    mov esp, offset boot_stack_top

    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    test edx, CPUID_LONG_MODE
    jz no_long_mode

    # Identity map of the first 4 GiB with 2 MiB pages.
    mov eax, offset boot_pdpt + PTE_TABLE
    mov dword ptr [boot_pml4], eax
    mov eax, offset boot_pds + PTE_TABLE
    mov edi, offset boot_pdpt
    mov ecx, 4
1:  mov dword ptr [edi], eax
    add eax, 4096
    add edi, 8
    loop 1b
    mov eax, PTE_LARGE
    mov edi, offset boot_pds
    mov ecx, 4 * 512
2:  mov dword ptr [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 2b

    mov eax, CR4_PAE
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_LME
    wrmsr
    mov eax, CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG
    mov cr0, eax

    lgdt [boot_gdt_pointer]
    push SELECTOR_CODE
    mov eax, offset long_mode
    push eax
    retf

# No 64-bit mode: say so on COM1, in the form that all fatal errors have; then halt.
no_long_mode:
    # 115200 baud, 8 data bits, no parity, 1 stop bit: pairs of a register and its value.
    mov esi, offset uart_settings
    mov ecx, UART_SETTINGS
3:  movzx edx, byte ptr [esi]
    add edx, 0x3f8
    mov al, byte ptr [esi + 1]
    out dx, al
    add esi, 2
    loop 3b
    mov esi, offset no_long_mode_message
    mov dx, 0x3fd                   # line status register
1:  in al, dx
    test al, 0x20                   # transmitter holding register empty
    jz 1b
    mov al, byte ptr [esi]
    test al, al
    jz 2f
    mov dx, 0x3f8
    out dx, al
    mov dx, 0x3fd
    inc esi
    jmp 1b
2:  hlt
    jmp 2b

.code64
long_mode:
    mov edi, ebp
    begin_long_mode
    call start_in_long_mode
    ud2

.section .rodata.boot, "a"
.balign 8
boot_gdt_pointer:
    .short BOOT_GDT_LIMIT
    .long boot_gdt
uart_settings:
    .byte 3, 0x80                   # line control: the divisor's registers are in front
    .byte 0, 1                      # divisor, low
    .byte 1, 0                      # divisor, high
    .byte 3, 0x03                   # line control: 8 data bits
    .byte 1, 0                      # no interrupts
    .byte 4, 0x03                   # modem control: we are there
no_long_mode_message:
    .asciz "tarpit: fatal: this CPU has no 64-bit mode; use an x86-64 CPU with VMX\r\n"

.section .boot.stack, "aw", @nobits
.balign 4096
.global boot_stack_guard
boot_stack_guard:
    .skip 4096
    .skip 131072
.global boot_stack_top
boot_stack_top:

.section .bss.boot_tables, "aw", @nobits
.balign 4096
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pds:
    .skip 4 * 4096
