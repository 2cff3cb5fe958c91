//! The short cut must do just what the full decoder does.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};
use proptest::prelude::*;

use super::machine::{BEFORE_DEVICE, CODE, DATA, DEVICE, Machine, Seen, code};
use crate::emulate::{Completed, RAX, RDI, fast_move};

/// The device accesses of a driver, as compilers write them: offset in the device, whether
/// it is a write, and the code.
#[test]
fn drivers_moves_take_the_short_cut() {
    let moves: [(&[u8], u64, bool); 14] = [
        (code!("mov eax, [rdi]"), 0, false),
        (code!("mov [rdi], eax"), 0, true),
        (code!("mov eax, [rdi + 0xf0]"), 0xf0, false),
        (code!("mov [rdi + 0xb0], r9d"), 0xb0, true),
        (code!("mov dword ptr [rdi + 0x300], 0x4500"), 0x300, true),
        (code!("mov dword ptr [0xffffffffff5fb0b0], 0"), 0xb0, true),
        (code!("mov rax, gs:[rdi + 0x8]"), 0x8, false),
        (code!("mov [rdi + 4 * rcx + 0x20], r15"), 0x20, true),
        (code!("mov byte ptr [rdi + 1], 7"), 1, true),
        (code!("mov word ptr [rdi + 2], 7"), 2, true),
        (code!("movzx eax, byte ptr [rdi + 3]"), 3, false),
        (code!("movsx rax, word ptr [rdi + 2]"), 2, false),
        (code!("movabs eax, [0xffff800000101010]"), 0x10, false),
        (code!("movabs [0xffff800000101010], rax"), 0x10, true),
    ];
    for (code, offset, write) in moves {
        let mut bytes = [0; 16];
        bytes[..code.len()].copy_from_slice(code);
        let decoded = fast_move::decode(&bytes);
        assert_eq!(decoded.map(|it| it.length as usize), Some(code.len()));

        let mut machine = Machine::long(code);
        machine.cpu.gprs[RDI] = DEVICE;
        assert_eq!(
            machine.emulate_violation(offset, write),
            Ok(Completed::Retired)
        );
        assert_eq!(machine.device.seen.len(), 1, "{code:02x?}");
        assert_eq!(machine.cpu.rip, CODE + code.len() as u64);
    }
}

#[test]
fn a_read_costs_few_vmreads() {
    let mut machine = Machine::long(code!("mov eax, [rdi + 0xf0]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.emulate_violation(0xf0, false).unwrap();
    assert!(machine.cpu.vmreads.get() <= 10, "{:?}", machine.cpu.vmreads);
}

/// The violation of an access that crosses into the device is reported at the device's
/// start; taken for an access there, it would read the wrong bytes.
#[test]
fn an_access_that_crosses_into_the_device_is_not_taken_for_one_at_its_start() {
    let mut machine = Machine::long(code!("mov eax, [rdi - 2]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.device.set(0, 0x1234_5678);
    machine.ram.write_u32(DATA + 0x5ffc, 0xaabb_0000);
    machine.emulate_violation(0, false).unwrap();
    assert_eq!(machine.cpu.gprs[RAX], 0x5678_aabb);
    assert_eq!(machine.device.seen, [Seen::Read(0, 2)]);
}

#[test]
fn an_access_that_crosses_out_of_the_device_goes_the_long_way() {
    let mut machine = Machine::long(code!("mov [rdi + 0xffd], eax"));
    machine.cpu.gprs[RDI] = BEFORE_DEVICE + 0x1000;
    machine.cpu.gprs[RAX] = 0x4433_2211;
    machine.emulate_violation(0xffd, true).unwrap();
    assert_eq!(
        machine.device.seen,
        [
            Seen::Write(0xffd, 1, 0x11),
            Seen::Write(0xffe, 2, 0x3322),
            Seen::Write(0x1000, 1, 0x44),
        ]
    );
}

#[test]
fn the_start_of_the_device_is_reached_by_every_addressing_form() {
    let forms: [&[u8]; 8] = [
        code!("mov eax, [rdi]"),
        code!("mov eax, [rdi - 0x1000]"),
        code!("mov eax, [rsi + 2 * rcx]"),
        code!("mov eax, [r13]"),
        code!("mov eax, [r12 + r15]"),
        code!("mov eax, [4 * rbx + 0x10]"),
        code!("mov eax, [rip + 0xffa]"),
        code!("mov eax, [rsp + 8]"),
    ];
    for code in forms {
        let mut machine = Machine::long(code);
        machine.cpu.gprs = [
            0, 0xff0, 0, 0x3fc, 0xff8, 0, 0x20, DEVICE, 0, 0, 0, 0, 0x1800, DEVICE, 0, 0x800,
        ];
        machine.device.set(0, 77);
        machine.emulate_violation(0, false).unwrap();
        // Where the form does reach a page's start, the short cut takes the violation's word
        // for which page it is.
        assert_eq!(machine.cpu.gprs[RAX], 77, "{code:02x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]
    /// Whatever bytes the short cut accepts, the full decoder understands in the same way.
    #[test]
    fn agrees_with_the_decoder(
        mut bytes in any::<[u8; 16]>(),
        // Most random bytes are no moves: help a little.
        prefix in prop::sample::select(std::vec![
            &[][..], &[0x66], &[0x48], &[0x44], &[0x66, 0x41], &[0x65], &[0x65, 0x4d], &[0x40],
        ]),
        opcode in prop::sample::select(std::vec![
            &[][..], &[0x88], &[0x89], &[0x8a], &[0x8b], &[0xc6], &[0xc7], &[0xa0], &[0xa1],
            &[0xa2], &[0xa3], &[0x0f, 0xb6], &[0x0f, 0xb7], &[0x0f, 0xbe], &[0x0f, 0xbf],
        ]),
    ) {
        let at = prefix.len();
        bytes[..at].copy_from_slice(prefix);
        bytes[at..at + opcode.len()].copy_from_slice(opcode);
        let Some(fast) = fast_move::decode(&bytes) else {
            return Ok(());
        };
        let full = Decoder::with_ip(64, &bytes[..15], 0, DecoderOptions::NONE).decode();
        prop_assert_eq!(full.len(), usize::from(fast.length), "{:02x?} {:?}", bytes, full.code());
        prop_assert_eq!(full.memory_size().size(), fast.width.bytes());
        let (memory, other) = match fast.action {
            fast_move::Action::Store { register } => {
                prop_assert_eq!(full.op1_register().full_register().number(), register);
                (0, 1)
            }
            fast_move::Action::StoreConstant { value } => {
                let mask = fast.width.mask();
                prop_assert_eq!(full.immediate(1) & mask, value & mask);
                (0, 1)
            }
            fast_move::Action::Load { register } | fast_move::Action::LoadPart { register } => {
                prop_assert_eq!(full.op0_register().full_register().number(), register);
                prop_assert!(matches!(full.mnemonic(), Mnemonic::Mov | Mnemonic::Movzx));
                (1, 0)
            }
            fast_move::Action::LoadSigned { register, to } => {
                prop_assert_eq!(full.op0_register().full_register().number(), register);
                prop_assert_eq!(full.op0_register().size(), to.bytes());
                prop_assert_eq!(full.mnemonic(), Mnemonic::Movsx);
                (1, 0)
            }
        };
        prop_assert_eq!(full.op_kind(memory), OpKind::Memory);
        prop_assert_ne!(full.op_kind(other), OpKind::Memory);
    }
}
