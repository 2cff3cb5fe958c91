# What the boot CPU and application processors share on their way to 64-bit Rust.

.set CR0_PE, 1 << 0
.set CR0_MP, 1 << 1
.set CR0_ET, 1 << 4
.set CR0_NE, 1 << 5
.set CR0_WP, 1 << 16
.set CR0_PG, 1 << 31
.set CR4_PAE, 1 << 5
.set MSR_EFER, 0xc0000080
.set EFER_LME, 1 << 8

.set SELECTOR_CODE, 8
.set SELECTOR_DATA, 16

.section .rodata.boot, "a"
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 64-bit code
    .quad 0x00cf93000000ffff        # data
.set BOOT_GDT_LIMIT, 3 * 8 - 1

# The first that a CPU does in 64-bit mode: the GDT's data segments, and the end of every chain
# of frame pointers.
.macro begin_long_mode
    mov eax, SELECTOR_DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    xor ebp, ebp
.endm
