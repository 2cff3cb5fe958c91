//! The reference is the CPU that runs the tests: each instruction is executed for real on
//! memory of the test, and emulated on device memory, from the same registers and flags;
//! both must come out the same.

use arch::ExceptionVector;
use proptest::prelude::*;

use super::machine::{CODE, DEVICE, Machine, code};
use crate::emulate::{Completed, RAX, RCX, RDI, RDX, flags};

/// The operands and flags of the instructions here; RDI is the memory operand's address.
#[derive(Clone, Copy, Debug, PartialEq)]
struct State {
    rax: u64,
    rcx: u64,
    rdx: u64,
    memory: u64,
    flags: u64,
}

fn states() -> impl Strategy<Value = State> {
    // Carries and signs happen at the edges.
    let value = || {
        prop_oneof![
            any::<u64>(),
            (any::<u64>(), 0u32..64).prop_map(|(value, shift)| value >> shift),
            (0u64..3, 0u32..64).prop_map(|(value, shift)| (1u64 << shift).wrapping_sub(value)),
        ]
    };
    (value(), value(), value(), value(), any::<u64>()).prop_map(
        |(rax, rcx, rdx, memory, random)| State {
            rax,
            rcx,
            rdx,
            memory,
            flags: random & flags::STATUS,
        },
    )
}

fn emulated(code: &[u8], state: State) -> State {
    let mut machine = Machine::long(code);
    machine.cpu.gprs[RAX] = state.rax;
    machine.cpu.gprs[RCX] = state.rcx;
    machine.cpu.gprs[RDX] = state.rdx;
    machine.cpu.gprs[RDI] = DEVICE + 0x100;
    machine.cpu.rflags = 2 | state.flags;
    machine.device.set(0x100, state.memory);
    let (gprs, length) = (machine.cpu.gprs, code.len() as u64);
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    assert_eq!(machine.cpu.rip, CODE + length);
    assert_eq!(machine.cpu.gprs[3..], gprs[3..], "a bystander changed");
    State {
        rax: machine.cpu.gprs[RAX],
        rcx: machine.cpu.gprs[RCX],
        rdx: machine.cpu.gprs[RDX],
        memory: machine.device.get(0x100),
        flags: machine.cpu.rflags & flags::STATUS,
    }
}

macro_rules! executed {
    ($instruction:literal, $state:expr) => {{
        let State {
            mut rax,
            mut rcx,
            mut rdx,
            memory,
            mut flags,
        } = $state;
        // Bit strings reach before and behind the operand.
        let mut cells = [0u64, memory, 0];
        let pointer = &raw mut cells[1];
        // SAFETY: The instruction changes what RDI points to and the registers and flags
        // named; the flags loaded are status flags only.
        unsafe {
            core::arch::asm!(
                "push {flags}",
                "popfq",
                $instruction,
                "pushfq",
                "pop {flags}",
                flags = inout(reg) flags,
                inout("rax") rax,
                inout("rcx") rcx,
                inout("rdx") rdx,
                in("rdi") pointer,
            );
        }
        flags &= flags::STATUS;
        State { rax, rcx, rdx, memory: cells[1], flags }
    }};
}

/// Each instruction with the flags that the manual leaves undefined for it, which are not
/// compared.
macro_rules! like_hardware {
    ($($name:ident: $undefined:expr, [$($instruction:literal),+ $(,)?];)+) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $name(state in states()) {
                    $({
                        let mut real = executed!($instruction, state);
                        let mut ours = emulated(code!($instruction), state);
                        real.flags &= !$undefined;
                        ours.flags &= !$undefined;
                        prop_assert_eq!(ours, real, "{} on {:x?}", $instruction, state);
                    })+
                }
            )+
        }
    };
}

like_hardware! {
    double_shifts: flags::AF | flags::OF, [
        "shld dword ptr [rdi], edx, cl", "shld qword ptr [rdi], rdx, cl",
        "shrd dword ptr [rdi], edx, cl", "shrd qword ptr [rdi], rdx, cl",
        "shld word ptr [rdi], dx, 7", "shrd word ptr [rdi], dx, 16",
    ];
    double_shifts_by_one: flags::AF, [
        "shld word ptr [rdi], dx, 1", "shld dword ptr [rdi], edx, 1",
        "shrd dword ptr [rdi], edx, 1", "shrd qword ptr [rdi], rdx, 1",
        "shrd qword ptr [rdi], rdx, 0",
    ];
    bit_scans: flags::STATUS & !flags::ZF, [
        "bsf cx, [rdi]", "bsf ecx, dword ptr [rdi]", "bsf rcx, [rdi]",
        "bsr cx, [rdi]", "bsr rcx, [rdi]",
    ];
    bit_counts: 0, ["popcnt cx, [rdi]", "popcnt ecx, dword ptr [rdi]", "popcnt rcx, [rdi]"];
    moves: 0, [
        "mov al, [rdi]", "mov ah, [rdi]", "mov cx, [rdi]", "mov ecx, [rdi]", "mov rcx, [rdi]",
        "mov [rdi], al", "mov [rdi], ch", "mov [rdi], cx", "mov [rdi], ecx", "mov [rdi], rcx",
        "mov byte ptr [rdi], 0x81", "mov word ptr [rdi], 0x8182",
        "mov dword ptr [rdi], 0x81828384", "mov qword ptr [rdi], -2",
        "movnti [rdi], ecx", "movnti [rdi], rcx",
    ];
    extending_moves: 0, [
        "movzx cx, byte ptr [rdi]", "movzx ecx, byte ptr [rdi]", "movzx rcx, byte ptr [rdi]",
        "movzx ecx, word ptr [rdi]", "movzx rcx, word ptr [rdi]",
        "movsx cx, byte ptr [rdi]", "movsx ecx, byte ptr [rdi]", "movsx rcx, byte ptr [rdi]",
        "movsx ecx, word ptr [rdi]", "movsx rcx, word ptr [rdi]",
        "movsxd rcx, dword ptr [rdi]",
    ];
    byte_swapping_moves: 0, [
        "movbe cx, [rdi]", "movbe ecx, [rdi]", "movbe rcx, [rdi]",
        "movbe [rdi], cx", "movbe [rdi], ecx", "movbe [rdi], rcx",
    ];
    additions: 0, [
        "add [rdi], al", "add [rdi], cx", "add [rdi], ecx", "add [rdi], rcx",
        "add al, [rdi]", "add cx, [rdi]", "add ecx, [rdi]", "add rcx, [rdi]",
        "add byte ptr [rdi], 0x7f", "add dword ptr [rdi], -1", "add qword ptr [rdi], 0x12345678",
        "lock add [rdi], ecx",
        "adc [rdi], al", "adc [rdi], cx", "adc [rdi], ecx", "adc [rdi], rcx",
        "adc rcx, [rdi]", "adc dword ptr [rdi], -1", "adc word ptr [rdi], 0x7fff",
    ];
    subtractions: 0, [
        "sub [rdi], al", "sub [rdi], cx", "sub [rdi], ecx", "sub [rdi], rcx",
        "sub ecx, [rdi]", "sub qword ptr [rdi], -128",
        "sbb [rdi], al", "sbb [rdi], cx", "sbb [rdi], ecx", "sbb [rdi], rcx",
        "sbb rcx, [rdi]", "sbb dword ptr [rdi], -1",
    ];
    comparisons: 0, [
        "cmp [rdi], al", "cmp [rdi], cx", "cmp [rdi], ecx", "cmp [rdi], rcx",
        "cmp cl, [rdi]", "cmp rcx, [rdi]", "cmp dword ptr [rdi], 5", "cmp qword ptr [rdi], -5",
    ];
    logic: flags::AF, [
        "and [rdi], al", "and [rdi], ecx", "and rcx, [rdi]", "and dword ptr [rdi], 0x80000001",
        "or [rdi], cx", "or [rdi], rcx", "or ecx, [rdi]", "or byte ptr [rdi], 0x80",
        "lock or dword ptr [rdi], 0x10",
        "xor [rdi], al", "xor [rdi], ecx", "xor rcx, [rdi]", "xor qword ptr [rdi], -1",
        "test [rdi], al", "test [rdi], ecx", "test [rdi], rcx",
        "test byte ptr [rdi], 0x40", "test dword ptr [rdi], 0x80000000",
    ];
    unary_operations: 0, [
        "inc byte ptr [rdi]", "inc word ptr [rdi]", "inc dword ptr [rdi]", "inc qword ptr [rdi]",
        "dec byte ptr [rdi]", "dec word ptr [rdi]", "dec dword ptr [rdi]", "dec qword ptr [rdi]",
        "neg byte ptr [rdi]", "neg word ptr [rdi]", "neg dword ptr [rdi]", "neg qword ptr [rdi]",
        "not byte ptr [rdi]", "not word ptr [rdi]", "not dword ptr [rdi]", "not qword ptr [rdi]",
    ];
    exchanges: 0, [
        "xchg [rdi], al", "xchg [rdi], ch", "xchg [rdi], cx", "xchg [rdi], ecx",
        "xchg [rdi], rcx",
        "xadd [rdi], al", "xadd [rdi], cx", "xadd [rdi], ecx", "lock xadd [rdi], rcx",
        "cmpxchg [rdi], cl", "cmpxchg [rdi], cx", "cmpxchg [rdi], ecx",
        "lock cmpxchg [rdi], rcx",
    ];
    bits_by_constant: (flags::OF | flags::SF | flags::AF | flags::PF), [
        "bt dword ptr [rdi], 31", "bt word ptr [rdi], 15", "bt qword ptr [rdi], 63",
        "bts dword ptr [rdi], 33", "bts qword ptr [rdi], 40", "lock bts dword ptr [rdi], 0",
        "btr word ptr [rdi], 3", "btr dword ptr [rdi], 7", "btr qword ptr [rdi], 32",
        "btc word ptr [rdi], 3", "btc dword ptr [rdi], 7", "btc qword ptr [rdi], 32",
    ];
    rotations_through_carry_by_one: 0, [
        "rcl byte ptr [rdi], 1", "rcl word ptr [rdi], 1", "rcl dword ptr [rdi], 1",
        "rcl qword ptr [rdi], 1", "rcr byte ptr [rdi], 1", "rcr word ptr [rdi], 1",
        "rcr dword ptr [rdi], 1", "rcr qword ptr [rdi], 1",
    ];
    rotations_through_carry: flags::OF, [
        "rcl byte ptr [rdi], cl", "rcl word ptr [rdi], cl", "rcl dword ptr [rdi], cl",
        "rcl qword ptr [rdi], cl", "rcr byte ptr [rdi], cl", "rcr word ptr [rdi], cl",
        "rcr dword ptr [rdi], cl", "rcr qword ptr [rdi], cl", "rcr byte ptr [rdi], 9",
    ];
    shifts_by_one: flags::AF, [
        "shl byte ptr [rdi], 1", "shl dword ptr [rdi], 1", "shl qword ptr [rdi], 1",
        "shr byte ptr [rdi], 1", "shr dword ptr [rdi], 1", "shr qword ptr [rdi], 1",
        "sar byte ptr [rdi], 1", "sar dword ptr [rdi], 1", "sar qword ptr [rdi], 1",
        "rol word ptr [rdi], 1", "rol dword ptr [rdi], 1", "rol qword ptr [rdi], 1",
        "ror word ptr [rdi], 1", "ror dword ptr [rdi], 1", "ror qword ptr [rdi], 1",
    ];
    shifts_by_constant: (flags::AF | flags::OF), [
        "shl byte ptr [rdi], 7", "shl word ptr [rdi], 16", "shl dword ptr [rdi], 31",
        "shl qword ptr [rdi], 63", "shr byte ptr [rdi], 3", "shr word ptr [rdi], 15",
        "shr dword ptr [rdi], 4", "shr qword ptr [rdi], 60", "sar byte ptr [rdi], 7",
        "sar word ptr [rdi], 9", "sar dword ptr [rdi], 30", "sar qword ptr [rdi], 33",
        "rol byte ptr [rdi], 8", "rol dword ptr [rdi], 13", "rol qword ptr [rdi], 50",
        "ror word ptr [rdi], 20", "ror dword ptr [rdi], 13", "ror qword ptr [rdi], 50",
    ];
    rotations_by_cl: (flags::AF | flags::OF), [
        "rol byte ptr [rdi], cl", "rol word ptr [rdi], cl", "rol qword ptr [rdi], cl",
        "ror byte ptr [rdi], cl", "ror dword ptr [rdi], cl", "sar qword ptr [rdi], cl",
        "shl dword ptr [rdi], cl", "shr qword ptr [rdi], cl", "sar byte ptr [rdi], cl",
    ];
    multiplications: (flags::SF | flags::ZF | flags::AF | flags::PF), [
        "mul byte ptr [rdi]", "mul word ptr [rdi]", "mul dword ptr [rdi]", "mul qword ptr [rdi]",
        "imul byte ptr [rdi]", "imul word ptr [rdi]", "imul dword ptr [rdi]",
        "imul qword ptr [rdi]", "imul cx, [rdi]", "imul ecx, [rdi]", "imul rcx, [rdi]",
        "imul ecx, [rdi], 100", "imul rcx, [rdi], -70000",
    ];
    conditions: 0, [
        "seto [rdi]", "setno [rdi]", "setb [rdi]", "setae [rdi]", "sete [rdi]", "setne [rdi]",
        "setbe [rdi]", "seta [rdi]", "sets [rdi]", "setns [rdi]", "setp [rdi]", "setnp [rdi]",
        "setl [rdi]", "setge [rdi]", "setle [rdi]", "setg [rdi]",
        "cmovl rcx, [rdi]", "cmovge ecx, [rdi]", "cmovbe cx, [rdi]",
    ];
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn cmpxchg_that_finds_what_it_expects(mut state in states()) {
        state.rax = state.memory;
        for (real, ours) in [
            (executed!("cmpxchg [rdi], cl", state), emulated(code!("cmpxchg [rdi], cl"), state)),
            (executed!("cmpxchg [rdi], ecx", state), emulated(code!("cmpxchg [rdi], ecx"), state)),
            (executed!("cmpxchg [rdi], rcx", state), emulated(code!("cmpxchg [rdi], rcx"), state)),
        ] {
            prop_assert_eq!(ours, real);
        }
    }

    /// A register's bit index reaches beyond the operand, in both directions.
    #[test]
    fn bits_by_register(mut state in states(), index in -64i64..128) {
        let undefined = flags::OF | flags::SF | flags::AF | flags::PF;
        state.rcx = index as u64;
        let mut machine = Machine::long(code!("btc [rdi], rcx"));
        machine.cpu.gprs[RCX] = state.rcx;
        machine.cpu.gprs[RDI] = DEVICE + 0x100;
        machine.cpu.rflags = 2 | state.flags;
        machine.device.set(0x100, state.memory);
        machine.emulate().unwrap();
        let byte = (0x100 + index.div_euclid(8)) as usize;
        let mask = 1u8 << (index & 7);
        let mut before = Machine::long(&[]);
        before.device.set(0x100, state.memory);
        prop_assert_eq!(machine.device.cells[byte], before.device.cells[byte] ^ mask);
        let carry = machine.cpu.rflags & flags::CF != 0;
        prop_assert_eq!(carry, before.device.cells[byte] & mask != 0);
        prop_assert_eq!((machine.cpu.rflags ^ state.flags) & flags::ZF & !undefined, 0);
    }
}

/// What DIV and IDIV leave of RAX and RDX, if they do not fault.
macro_rules! divided {
    ($instruction:literal, $state:expr) => {{
        let State {
            mut rax,
            mut rdx,
            memory,
            ..
        } = $state;
        // SAFETY: the caller has seen to it that it does not fault.
        unsafe {
            core::arch::asm!(
                $instruction,
                inout("rax") rax,
                inout("rdx") rdx,
                in("rdi") &raw const memory,
            );
        }
        (rax, rdx)
    }};
}

proptest! {
    #[test]
    fn divisions(state in states()) {
        let check = |code: &'static [u8], real: Option<(u64, u64)>| {
            let mut machine = Machine::long(code);
            machine.cpu.gprs[RAX] = state.rax;
            machine.cpu.gprs[RDX] = state.rdx;
            machine.cpu.gprs[RDI] = DEVICE + 0x100;
            machine.device.set(0x100, state.memory);
            match real {
                Some(real) => {
                    machine.emulate().unwrap();
                    assert_eq!((machine.cpu.gprs[RAX], machine.cpu.gprs[RDX]), real);
                }
                None => assert_eq!(machine.fault().vector, ExceptionVector::Division),
            }
        };
        // The dividend is wider than the divisor: an independent test of what fits.
        let divisor = state.memory as u32;
        let dividend = u64::from(state.rdx as u32) << 32 | u64::from(state.rax as u32);
        let fits = dividend
            .checked_div(divisor.into())
            .is_some_and(|quotient| u32::try_from(quotient).is_ok());
        check(
            code!("div dword ptr [rdi]"),
            fits.then(|| divided!("div dword ptr [rdi]", state)),
        );
        let fits = (dividend as i64)
            .checked_div((divisor as i32).into())
            .is_some_and(|quotient| i32::try_from(quotient).is_ok());
        check(
            code!("idiv dword ptr [rdi]"),
            fits.then(|| divided!("idiv dword ptr [rdi]", state)),
        );
        let fits = state.memory as u8 != 0
            && (state.rax as u16) / u16::from(state.memory as u8) <= 0xff;
        check(
            code!("div byte ptr [rdi]"),
            fits.then(|| divided!("div byte ptr [rdi]", state)),
        );
        let fits = state.rdx < state.memory;
        check(
            code!("div qword ptr [rdi]"),
            fits.then(|| divided!("div qword ptr [rdi]", state)),
        );
    }
}
