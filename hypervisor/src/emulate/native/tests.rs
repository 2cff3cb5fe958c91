//! What the list lets through, of all opcodes and of any bytes.

use std::collections::HashSet;
use std::vec::Vec;

use arch::RFlags;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, Register, RflagsBits,
};
use proptest::prelude::*;

use super::*;
use crate::emulate::Mode;
use crate::machine::native::saved::{Area, run};

/// Numbers that are no addresses: not canonical.
const NO_ADDRESS: u64 = 0x5a5a_0000_1234_5678;

fn decode(mode: Mode, bytes: &[u8]) -> Instruction {
    let bits = mode.bits();
    Decoder::with_ip(bits, bytes, 0x40_0000, DecoderOptions::NONE).decode()
}

/// Checks what the processor would be given for `bytes`, by what another part of the decoder's library says of
/// it, and returns it.
fn checked(mode: Mode, bytes: &[u8]) -> Option<(iced_x86::Code, Form, Code, usize)> {
    let instruction = decode(mode, bytes);
    let code = Code::new(&instruction, bytes, mode)?;
    let form = Form::of(&instruction).expect("it is on the list");
    let given = decode(Mode::Long, code.as_slice());
    let text = std::format!("{bytes:02x?} -> {:02x?}", code.as_slice());

    assert_eq!(given.code(), instruction.code(), "{text}");
    assert_eq!(given.len(), code.as_slice().len(), "{text}");
    assert!(given.len() <= 15, "{text}");
    assert_eq!(given.flow_control(), FlowControl::Next, "{text}");
    assert!(!given.is_privileged(), "{text}");
    assert!(!given.is_stack_instruction(), "{text}");
    assert!(!given.is_save_restore_instruction(), "{text}");
    assert!(!given.is_string_instruction(), "{text}");
    let status = RflagsBits::OF
        | RflagsBits::SF
        | RflagsBits::ZF
        | RflagsBits::AF
        | RflagsBits::CF
        | RflagsBits::PF;
    let x87 = RflagsBits::C0 | RflagsBits::C1 | RflagsBits::C2 | RflagsBits::C3;
    assert_eq!(given.rflags_modified() & !(status | x87), 0, "{text}");
    let needed = code.as_slice().iter().take_while(|byte| {
        matches!(
            byte,
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65
        )
    });
    let needed: Vec<_> = needed.collect();
    assert!(matches!(needed[..], [] | [0x66 | 0xf2 | 0xf3]), "{text}");

    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&given);
    let [memory] = info.used_memory() else {
        panic!("not one operand: {text}");
    };
    // The factory makes an address of RIP and the displacement.
    assert_eq!(memory.base(), Register::None, "{text}");
    assert_eq!(memory.index(), Register::None, "{text}");
    let address = 0x40_0000 + u64::from(OPERAND_DISTANCE);
    assert_eq!(memory.displacement(), address, "{text}");
    let size = memory.memory_size().size();
    assert!((1..=size_of::<Bytes>()).contains(&size), "{text}");
    let expected = match form.access {
        AccessKind::Write => OpAccess::Write,
        _ => OpAccess::Read,
    };
    assert_eq!(memory.access(), expected, "{text}");
    for used in info.used_registers() {
        let register = used.register();
        let allowed = register.is_vector_register()
            || register.is_mm()
            || register.is_st()
            || register.is_gpr() && register.full_register() != Register::RSP;
        assert!(allowed, "{register:?}: {text}");
    }
    Some((given.code(), form, code, size))
}

/// Runs it with registers that lead nowhere, and checks what has changed.
fn runs(form: Form, code: &Code, size: usize) {
    let mut area = Area([0; 1024]);
    area.0[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    area.0[512] = 7;
    let mut computation = Computation {
        code,
        gprs: [NO_ADDRESS; 16],
        rflags: flags::STATUS,
        x87: (form.registers == RegisterFile::X87).then_some(X87Pointers {
            opcode: code.x87_opcode(),
            instruction: 0x1234,
            operand: 0x5678,
        }),
    };
    // What may be in MXCSR, too.
    let before: Bytes = core::array::from_fn(|index| [0x80, 0x1f, 0, 0][index % 4]);
    let mut operand = before;
    // SAFETY: the area is one of power-up, and CPUs that run tests have AVX.
    let outcome = unsafe { run(&mut computation, &mut operand, &mut area) };
    let bytes = code.as_slice();
    assert_eq!(outcome, Computed::Done, "{bytes:02x?}");
    let changed = match form.access {
        AccessKind::Write => size,
        _ => 0,
    };
    assert_eq!(operand[changed..], before[changed..], "{bytes:02x?}");
    let others = computation.rflags & !(flags::STATUS | RFlags::INTERRUPT_FLAG.bits());
    assert_eq!(others, 2, "{bytes:02x?}");
    assert_eq!(computation.gprs[RSP], NO_ADDRESS);
    // Some processors keep FIP back if there was no exception.
    let fip = u64::from_le_bytes(area.0[8..16].try_into().unwrap());
    assert!(matches!(fip, 0 | 0x1234), "{bytes:02x?}: {fip:#x}");
}

/// Every opcode with every prefix that means something, and with some that mean nothing.
fn every_opcode(mut each: impl FnMut(&[u8])) {
    let prefixes: [&[u8]; 9] = [
        &[],
        &[0x66],
        &[0xf2],
        &[0xf3],
        &[0x66, 0xf2],
        &[0xf3, 0x66],
        &[0xf0],
        &[0x67],
        &[0x64, 0xf2],
    ];
    let escapes: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let mut starts = Vec::new();
    for prefix in prefixes {
        for rex in [&[][..], &[0x48], &[0x4f]] {
            for escape in escapes {
                starts.push([prefix, rex, escape].concat());
            }
        }
    }
    for second in 0..=255 {
        starts.push([0xc5, second].to_vec());
    }
    for map in 1..=3 {
        for extension in [0xe0, 0x00] {
            for third in 0..=255 {
                starts.push([0xc4, extension | map, third].to_vec());
            }
        }
    }
    for start in starts {
        for opcode in 0..=255 {
            // [RAX] with all that the middle of ModRM may be, and a register in its place.
            for modrm in (0..8).map(|reg| reg << 3).chain([0xc1, 0xf9]) {
                let rest = [opcode, modrm, 0x21, 0x10, 0, 0, 0, 0];
                each(&[&start[..], &rest].concat());
            }
        }
    }
}

#[test]
fn of_all_opcodes_those_that_get_through_have_one_operand_and_change_nothing_else() {
    let mut seen = HashSet::new();
    every_opcode(|bytes| {
        if let Some((kind, form, code, size)) = checked(Mode::Long, bytes)
            && seen.insert(kind)
        {
            runs(form, &code, size);
        }
    });
    // To be counted anew when the list changes.
    assert_eq!(seen.len(), 851, "forms of instructions");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn of_any_bytes_those_that_get_through_have_one_operand(
        mode in prop::sample::select(std::vec![Mode::Long, Mode::Protected32, Mode::Real]),
        prefixes in proptest::collection::vec(
            prop::sample::select(std::vec![0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x64, 0x48, 0x4d]),
            0..4,
        ),
        escape in prop::sample::select(std::vec![
            &[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a], &[0xd8], &[0xdb], &[0xdd], &[0xc5], &[0xc4, 0xe1],
            &[0xc4, 0xe2], &[0xc4, 0xe3], &[0xc4], &[0x62], &[0x8f],
        ]),
        rest: [u8; 15],
    ) {
        let bytes = [&prefixes[..], escape, &rest].concat();
        checked(mode, &bytes[..15]);
    }
}
