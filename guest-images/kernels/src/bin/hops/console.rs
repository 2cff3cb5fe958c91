//! The serial line, in 32-bit code. A report is a line
//! `hops: units=N,N,N wrong=N hops=N`: the units of work of each process, the hopper's last; how often memory or registers were not as they
//! should be; and the hops so far. A byte that the operator has typed by then is what it wants (see the top of the kernel).

use core::mem::offset_of;

use crate::layout::{Shared, way};

core::arch::global_asm!(
    r#"
.set COM1, 0x3f8
.set LINE_STATUS, 0x3fd

.macro say text, value                  # a text, and the number at an offset in the shared page
    mov esi, offset \text
    call print
    mov eax, [edi + \value]
    call print_number
.endm

.pushsection .text.hops_console, "ax", @progbits
.code32

# Sends AL.
send:
    push edx
    push eax
    mov dx, LINE_STATUS
2:  in al, dx
    test al, 0x20
    jz 2b
    pop eax
    mov dx, COM1
    out dx, al
    pop edx
    ret

# Prints the text at ESI, which ends with a zero.
print:
    lodsb
    test al, al
    jz 3f
    call send
    jmp print
3:  ret

# Prints EAX in decimal.
print_number:
    xor edx, edx
    mov ecx, 10
    div ecx
    push edx
    test eax, eax
    jz 4f
    call print_number
4:  pop eax
    add al, 0x30
    jmp send

.global hops_report
hops_report:
    mov edi, [hops_shared]
    say text_units, 0
    say text_comma, 4
    say text_comma, 8
    say text_wrong, {WRONG}
    say text_hops, {HOPS}
    mov al, 10
    call send

    # what the operator wants
    mov dx, LINE_STATUS
    in al, dx
    test al, 1
    jz 9f
    mov dx, COM1
    in al, dx
    cmp al, 0x71                        # q
    je hops_leave
    mov ecx, {FORK}
    cmp al, 0x66                        # f
    je 8f
    mov ecx, {EXEC}
    cmp al, 0x65                        # e
    je 8f
    mov ecx, {NONE}
    cmp al, 0x6e                        # n
    jne 9f
8:  mov [edi + {WAY}], ecx
9:  ret

text_units: .asciz "hops: units="
text_comma: .asciz ","
text_wrong: .asciz " wrong="
text_hops: .asciz " hops="
.code64
.popsection
"#,
    WRONG = const offset_of!(Shared, wrong),
    HOPS = const offset_of!(Shared, hops),
    WAY = const offset_of!(Shared, way),
    FORK = const way::FORK,
    EXEC = const way::EXEC,
    NONE = const way::NONE,
);
