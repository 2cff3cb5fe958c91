//! Any bytes as an instruction, with any registers: whatever a guest can bring about, the emulator
//! answers.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::machine::{DATA, DEVICE, DEVICE_GPA, Machine, Seen};
use crate::emulate::{Completed, Direction, SegmentRegister, StringIo, Width, emulate_string_io};

/// Opcodes and prefixes that lead far into the decoder are as likely as anything else.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefixes = proptest::collection::vec(
        prop::sample::select(vec![
            0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x64, 0x48, 0x4d,
        ]),
        0..4,
    );
    let escape = prop::sample::select(vec![
        vec![],
        vec![0x0f],
        vec![0x0f, 0x38],
        vec![0x0f, 0x3a],
        vec![0xc5, 0xf8],
        vec![0xc5, 0xfe],
        vec![0xc4, 0xe2, 0xf8],
    ]);
    (prefixes, escape, any::<[u8; 12]>()).prop_map(|(prefixes, escape, rest)| {
        let mut code = [prefixes, escape, rest.to_vec()].concat();
        code.truncate(15);
        code
    })
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        (0..0x2000_u64).prop_map(|offset| DEVICE + offset),
        (0..0x2000_u64).prop_map(|offset| DEVICE_GPA + offset),
        (0..0x1_0000_u64).prop_map(|offset| DATA + offset),
        prop::sample::select(vec![
            0,
            1,
            u64::MAX,
            1 << 63,
            0xffff,
            0x1_0000,
            u64::MAX >> 16
        ]),
    ]
}

fn machine(kind: u8, code: &[u8]) -> Machine {
    match kind {
        0 => Machine::long(code),
        1 => Machine::protected(code),
        _ => Machine::real(code),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_instruction_makes_the_emulator_panic_or_change_a_guest_that_it_gives_up(
        kind in 0..3_u8,
        code in code(),
        gprs in proptest::collection::vec(number(), 16),
        rflags: u32,
        limit: u32,
        cpl in prop::sample::select(vec![0, 3]),
        rights in any::<[u32; 6]>(),
    ) {
        let mut machine = machine(kind, &code);
        machine.cpu.gprs.copy_from_slice(&gprs);
        // Not VM: the modes are the machine's.
        machine.cpu.rflags = u64::from(rflags) & 0x1d_7fd5 | 2;
        machine.cpu.cpl = cpl;
        for (segment, rights) in machine.cpu.segments.iter_mut().zip(rights) {
            segment.rights = segment.rights & 0xf09b | rights & 0x1_0f04;
            segment.limit = limit;
        }
        machine.cpu.segments[SegmentRegister::Cs as usize].limit = 0xffff_ffff;
        let before = machine.cpu.clone();
        match machine.emulate() {
            Ok(_) => {}
            Err(_) => {
                // What a repeated string instruction has done before its fault stays done.
                prop_assert_eq!(machine.cpu.rip, before.rip);
                if !code.iter().any(|byte| matches!(byte, 0xf2 | 0xf3)) {
                    prop_assert_eq!(machine.cpu.gprs, before.gprs);
                    prop_assert_eq!(machine.cpu.xmms, before.xmms);
                    prop_assert_eq!(machine.cpu.segments, before.segments);
                    prop_assert_eq!(machine.cpu.cr0, before.cr0);
                    // A division reads its operand before it finds that it cannot.
                    let written = |seen: &Seen| !matches!(seen, Seen::Read(..));
                    prop_assert!(!machine.device.seen.iter().any(written));
                }
            }
        }
    }

    #[test]
    fn string_input_and_output_come_to_an_end(
        kind in 0..3_u8,
        gprs in proptest::collection::vec(number(), 16),
        width in prop::sample::select(vec![Width::BYTE, Width::WORD, Width::DOUBLEWORD]),
        address_size in prop::sample::select(vec![Width::WORD, Width::DOUBLEWORD, Width::QUADWORD]),
        input: bool,
        repeated: bool,
        port: u16,
    ) {
        let mut machine = machine(kind, &[0x90]);
        machine.cpu.gprs.copy_from_slice(&gprs);
        let io = StringIo {
            port,
            width,
            direction: if input { Direction::In } else { Direction::Out },
            repeated,
            address_size,
            segment: SegmentRegister::Ds,
            length: 2,
        };
        let count = gprs[1];
        let outcome = emulate_string_io(&mut machine.cpu, &machine.ram, &mut machine.device, io);
        if outcome == Ok(Completed::Interrupted) {
            prop_assert!(machine.cpu.gprs[1] != count, "there is progress");
        }
        let port = |seen: &&Seen| matches!(seen, Seen::In(..) | Seen::Out(..));
        prop_assert!(machine.device.seen.iter().filter(port).count() <= 64);
    }
}
