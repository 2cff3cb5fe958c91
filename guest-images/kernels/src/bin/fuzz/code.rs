//! Instructions that are put together by chance, and executed where a fault ends them.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::gpr::RSP;
use kernels::dice::Dice;

/// The longest instruction, in bytes.
pub(crate) const LONGEST: usize = 15;

/// An instruction, with what follows it.
pub(crate) type Instruction = [u8; LONGEST];

/// Opcodes of one byte that take a ModRM byte, and go nowhere.
const WITH_OPERAND: [u8; 40] = [
    0x00, 0x01, 0x02, 0x03, 0x08, 0x0b, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x21, 0x23, 0x29, 0x2b, 0x30,
    0x31, 0x33, 0x38, 0x39, 0x3b, 0x63, 0x69, 0x6b, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88,
    0x89, 0x8a, 0x8b, 0x8e, 0xc0, 0xc6, 0xc7, 0xd3,
];
/// Opcodes of one byte with a ModRM byte that are rarer, or that push, divide, or are of the x87.
const RARE: [u8; 16] = [
    0x8c, 0xd0, 0xd1, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xf6, 0xf7, 0xfe, 0xc1, 0x8d,
];
/// String instructions, and MOV with an address of its own.
const WITHOUT: [u8; 14] = [
    0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0xa0, 0xa1, 0xa2, 0xa3,
];
/// Second opcode bytes that are not tried: jumps, what returns from or enters system calls, and writes of
/// control registers and MSRs, which have actions of their own.
const NOT_SECOND: [u8; 9] = [0x05, 0x07, 0x22, 0x30, 0x34, 0x35, 0x37, 0xaa, 0x01];

/// The second opcode byte of BSWAP RSP.
const SWAP_BYTES_OF_RSP: u8 = 0xc8 + RSP as u8;

/// Second opcode bytes without a ModRM byte.
fn is_alone(second: u8) -> bool {
    matches!(second, 0x06 | 0x08..=0x0b | 0x0e | 0x30..=0x37 | 0x77 | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf)
}

/// What may follow an instruction as its displacement or an operand: were it shorter than was thought, this is
/// executed, and goes nowhere and does not halt.
const HARMLESS: [u8; 16] = [
    0x90, 0xcc, 0x26, 0x3e, 0x64, 0x48, 0x66, 0x98, 0x99, 0xf5, 0xf8, 0xf9, 0x9b, 0x04, 0x2c, 0x27,
];

/// Makes an instruction whose memory operand is at one of the registers but RSP and RBP. With `keeps_stack` it
/// does not change RSP by a ModRM byte: where faults have no stack of their own.
pub(crate) fn instruction(dice: &mut Dice, keeps_stack: bool) -> Instruction {
    let mut bytes = [0xcc; LONGEST];
    let mut length = 0;
    let mut put = |byte: u8| {
        bytes[length] = byte;
        length += 1;
    };
    for (prefixes, often) in [
        (&[0xf0, 0xf2, 0xf3][..], 4),
        (&[0x66, 0x67], 5),
        (&[0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65], 8),
    ] {
        if dice.once_in(often) {
            put(dice.of(prefixes));
        }
    }
    if dice.once_in(3) {
        put(0x48 | dice.below(8) as u8 & 5);
    }
    match dice.below(16) {
        0..7 => put(dice.of(&WITH_OPERAND)),
        7..9 => put(dice.of(&RARE)),
        9..11 => {
            put(dice.of(&WITHOUT));
            return bytes;
        }
        11 => {
            // VEX with two bytes; LDS outside 64-bit mode, unless the next begins with two ones.
            put(0xc5);
            put(dice.any() as u8 | if keeps_stack { 0xc0 } else { 0 });
            let opcode = dice.any() as u8;
            put(opcode);
            if opcode == 0x77 {
                return bytes;
            }
        }
        12 => {
            put(0x0f);
            put(dice.of(&[0x38, 0x3a]));
            put(dice.any() as u8);
        }
        _ => {
            put(0x0f);
            let second = dice.any() as u8;
            let is_jump = second & 0xf0 == 0x80;
            let second = if is_jump || NOT_SECOND.contains(&second) {
                0x1f
            } else {
                second
            };
            let swaps_stack = keeps_stack && second == SWAP_BYTES_OF_RSP;
            put(if swaps_stack { 0x0b } else { second });
            if is_alone(second) {
                return bytes;
            }
        }
    }
    // Memory at RAX, RCX, RDX, RBX, RSI or RDI, now and then with a displacement, or a register.
    let base = dice.of(&[0, 1, 2, 3, 6, 7]);
    let mode = dice.of(&[0, 0, 0, 0x40, 0x40, 0xc0]);
    let mut register = dice.any() as u8 & 0x38;
    if keeps_stack && register == (RSP as u8) << 3 {
        register = 0;
    }
    put(mode | register | base);
    for _ in 0..5 {
        put(dice.of(&HARMLESS));
    }
    bytes
}

/// The page that instructions are executed in.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 8192]>);

// SAFETY: one CPU, which writes to it between executions.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0xcc; 8192]));

/// Returns where the `offset` of the pages for code is.
pub(crate) fn place(offset: usize) -> *mut u8 {
    PAGE.0.get().cast::<u8>().wrapping_add(offset % 8000)
}

/// The place to execute, which no register holds while it is: an operand could be there.
static ENTRY: AtomicUsize = AtomicUsize::new(0);

/// Executes the instructions with these values in RAX, RCX, RDX, RBX, RSI and RDI, and again in R8 to R15; a
/// breakpoint ends it. To be called where a fault is caught, since one always comes.
pub(crate) fn execute(offset: usize, code: &[u8], registers: &[u64; 6]) {
    let place = place(offset);
    ENTRY.store(place as usize, Ordering::Relaxed);
    // SAFETY: within the pages, which hold breakpoints, and end with some. The instructions were chosen such
    // that they go nowhere, and what they do to memory by bad luck is what this kernel is for.
    unsafe {
        place.copy_from_nonoverlapping(code.as_ptr(), code.len());
        place.add(code.len()).write_bytes(0xcc, 16);
        core::arch::asm!(
            "push rbx",
            "mov rbx, {values}",
            "mov rax, [rbx]",
            "mov rcx, [rbx + 8]",
            "mov rdx, [rbx + 16]",
            "mov rsi, [rbx + 32]",
            "mov rdi, [rbx + 40]",
            "mov r11, [rbx + 24]",
            "mov rbx, r11",
            "mov r8, rax",
            "mov r9, rcx",
            "mov r10, rdx",
            "mov r12, rsi",
            "mov r13, rdi",
            "mov r14, rdi",
            "mov r15, rsi",
            "call [rip + {entry}]",
            "pop rbx",
            values = in(reg) registers.as_ptr(),
            entry = sym ENTRY,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("C"),
        );
    }
}
