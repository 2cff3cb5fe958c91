//! What the processes execute, in ring 3, at [`CODE`](crate::layout::CODE): a page that all have. It is executed at another address
//! than the one it is linked for, so it has relative jumps only.

use core::mem::offset_of;

use crate::layout::{self, Data, Shared};

#[allow(missing_docs, reason = "labels of the code below")]
unsafe extern "C" {
    pub(crate) static hops_program: u8;
    pub(crate) static hops_program_computes: u8;
    pub(crate) static hops_program_end: u8;
}

core::arch::global_asm!(
    r#"
.set DATA, {DATA}
.set PROGRAM_STACK_END, {STACK} + 0x1000
.set SHARED, {SHARED}
.set WRONG, {WRONG}
.set HOPS, {HOPS}
.set WAY, {WAY}
.set SEED, {SEED}
.set EXPECTED, {EXPECTED}
.set COUNTER, {COUNTER}
.set GENERATION, {GENERATION}
.set USED, {USED}
.set SCRAMBLED, {SCRAMBLED}
.set TEXT, {TEXT}

.pushsection .text.hops_program, "ax", @progbits
.code32
.global hops_program, hops_program_computes, hops_program_end

# The hopper begins here, anew after each EXEC.
hops_program:
    cmp dword ptr [DATA + USED], 0      # fresh memory?
    jne 2f
    cmp dword ptr [PROGRAM_STACK_END - 4], 0
    je 3f
2:  inc dword ptr [SHARED + WRONG]
3:  mov ecx, {TEXT_LENGTH}
4:  mov al, [DATA + SCRAMBLED - 1 + ecx]
    xor al, {KEY}
    mov [DATA + TEXT - 1 + ecx], al
    dec ecx
    jnz 4b

.Lwork:
    mov ebx, {UNITS_PER_HOP}
5:  call .Lunit
    dec ebx
    jnz 5b
    mov eax, [SHARED + WAY]
    cmp eax, {WAY_FORK}
    je .Lfork
    cmp eax, {WAY_EXEC}
    jne .Lwork

    # a new program, which must see neither of these
    inc dword ptr [SHARED + HOPS]
    inc dword ptr [DATA + USED]
    push eax
    mov eax, {CALL_EXEC}
    int 0x80
    jmp .Lwrong

.Lfork:
    inc dword ptr [SHARED + HOPS]
    mov edx, [DATA + GENERATION]
    inc edx
    mov [DATA + GENERATION], edx
    push edx
    mov eax, {CALL_FORK}
    int 0x80
    test eax, eax
    jz .Lchild
    # Every other parent writes before it ends, so that it has copies, and the child is left alone with
    # what was before.
    test dl, 1
    jz 6f
    mov dword ptr [DATA + GENERATION], 0xbad
    mov dword ptr [esp], 0xbad
6:  mov eax, {CALL_EXIT}
    int 0x80
.Lwrong:
    inc dword ptr [SHARED + WRONG]
    jmp .Lwork

.Lchild:
    pop eax
    cmp eax, edx
    jne .Lwrong
    cmp edx, [DATA + GENERATION]
    jne .Lwrong
    jmp .Lwork

# The others begin here, and stay.
hops_program_computes:
    call .Lunit
    jmp hops_program_computes

# A unit of work. The result of the computation is known.
.Lunit:
    push ebx
    mov eax, [DATA + SEED]
    mov ecx, {STEPS_PER_UNIT}
7:  imul eax, eax, {FACTOR}
    add eax, {TERM}
    dec ecx
    jnz 7b
    cmp eax, [DATA + EXPECTED]
    je 8f
    inc dword ptr [SHARED + WRONG]
8:  mov ebx, [DATA + COUNTER]
    inc dword ptr [ebx]
    pop ebx
    ret
hops_program_end:
.code64
.popsection

"#,
    DATA = const layout::DATA,
    STACK = const layout::STACK,
    SHARED = const layout::SHARED,
    WRONG = const offset_of!(Shared, wrong),
    HOPS = const offset_of!(Shared, hops),
    WAY = const offset_of!(Shared, way),
    SEED = const offset_of!(Data, seed),
    EXPECTED = const offset_of!(Data, expected),
    COUNTER = const offset_of!(Data, counter),
    GENERATION = const offset_of!(Data, generation),
    USED = const offset_of!(Data, used),
    SCRAMBLED = const offset_of!(Data, scrambled),
    TEXT = const offset_of!(Data, text),
    TEXT_LENGTH = const layout::TEXT.len(),
    KEY = const layout::KEY,
    UNITS_PER_HOP = const layout::UNITS_PER_HOP,
    STEPS_PER_UNIT = const layout::STEPS_PER_UNIT,
    FACTOR = const layout::FACTOR,
    TERM = const layout::TERM,
    WAY_FORK = const layout::way::FORK,
    WAY_EXEC = const layout::way::EXEC,
    CALL_FORK = const layout::call::FORK,
    CALL_EXEC = const layout::call::EXEC,
    CALL_EXIT = const layout::call::EXIT,
);
