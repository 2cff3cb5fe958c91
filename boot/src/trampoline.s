# Where application processors wake up: from real mode to 64-bit Rust.
#
# A start-up IPI starts a CPU in real mode at the beginning of a page below 1 MiB (SDM
# vol. 3A, 9.4.4). The code between ap_trampoline_start and ap_trampoline_end is copied to
# such a page, so it addresses itself relative to the page only. At its beginning, after a
# jump over them, are its data, two of which the copier fills in.

# Offsets in the page.
.set GDT_POINTER, 8
.set ROOT, 16
.set MORE_EFER, 20

.section .rodata.trampoline, "a"
.balign 16
.code16
.global ap_trampoline_start
ap_trampoline_start:
    jmp 1f
.org ap_trampoline_start + GDT_POINTER
    .short BOOT_GDT_LIMIT
    .long boot_gdt
.org ap_trampoline_start + ROOT
.global ap_trampoline_root
ap_trampoline_root:                 # CR3
    .long 0
.org ap_trampoline_start + MORE_EFER
.global ap_trampoline_efer
ap_trampoline_efer:                 # bits of EFER besides LME
    .long 0

1:  cli
    cld
    mov ax, cs
    mov ds, ax
    lgdtd [GDT_POINTER]

    # Straight to long mode: paging and protection may be switched on together (SDM
    # vol. 3A, 10.8.5 asks only that PAE, the tables and LME are there first).
    mov eax, CR4_PAE
    mov cr4, eax
    mov eax, dword ptr [ROOT]
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_LME
    or eax, dword ptr [MORE_EFER]
    wrmsr
    mov eax, CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG
    mov cr0, eax

    # jmp far SELECTOR_CODE:ap_long_mode, with a 32-bit offset.
    .byte 0x66, 0xea
    .long ap_long_mode
    .short SELECTOR_CODE

.global ap_trampoline_end
ap_trampoline_end:

# From here on in the image itself. One CPU starts at a time: ap_stack is its own.
.section .boot.text, "ax"
.code64
ap_long_mode:
    begin_long_mode
    mov rsp, [rip + ap_stack]
    call start_application_processor
    ud2

.section .bss.ap_stack, "aw", @nobits
.balign 8
.global ap_stack
ap_stack:
    .skip 8
