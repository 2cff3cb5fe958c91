//! Targets for fuzzing: any bytes as an instruction, with any registers and memory.

use std::vec::Vec;

use super::machine::{CODE_RAM, DATA, DEVICE, DEVICE_GPA, Machine, Seen};
use crate::emulate::{Completed, Direction, SegmentRegister, StringIo, Width, emulate_string_io};

/// A number for a register: anything, or near something.
fn number(kind: u8, value: u64) -> u64 {
    match kind % 8 {
        0 => value,
        1 => value as u32 as u64,
        2 => value & 0xff,
        3 => DEVICE + value % 0x2000,
        4 => DEVICE_GPA + value % 0x2000,
        5 => DATA + value % 0x1_0000,
        6 => u64::MAX - value % 16,
        _ => 1 << (value % 64),
    }
}

/// The registers of a machine.
type Registers = (Vec<(u8, u64)>, u32, [u32; 6], u32, u8);

fn machine(kind: u8, code: &[u8], registers: &Registers) -> Machine {
    let (gprs, rflags, rights, limit, cpl) = registers;
    let code = &code[..code.len().min(15)];
    let mut machine = match kind % 3 {
        0 => Machine::long(code),
        1 => Machine::protected(code),
        _ => Machine::real(code),
    };
    for (register, &(kind, value)) in machine.cpu.gprs.iter_mut().zip(gprs) {
        *register = number(kind, value);
    }
    // Not VM: the modes are the machine's.
    machine.cpu.rflags = u64::from(*rflags) & 0x1d_7fd5 | 2;
    machine.cpu.cpl = if cpl & 1 == 0 { 0 } else { 3 };
    if cpl & 2 != 0 {
        for (segment, rights) in machine.cpu.segments.iter_mut().zip(rights) {
            segment.rights = segment.rights & 0xf09b | rights & 0x1_0f04;
            segment.limit = *limit;
        }
        machine.cpu.segments[SegmentRegister::Cs as usize].limit = 0xffff_ffff;
    }
    if cpl & 4 != 0 {
        // Paging and protection as they are; alignment checks, x87 and SSE as the guest likes.
        machine.cpu.cr0 ^= u64::from(*limit) & 0x4_000e;
        machine.cpu.cr4 ^= u64::from(*limit) >> 8 & 0x4_0600;
        machine.cpu.xcr0 = u64::from(*limit) >> 24 & 6 | 1;
    }
    machine
}

#[test]
fn instructions() {
    fuzzing::check!()
        .with_type::<(u8, [u8; 15], u8, Registers, [u128; 2])>()
        .for_each(|(kind, code, length, registers, vectors)| {
            let mut machine = machine(*kind, &code[..usize::from(length % 16)], registers);
            machine.cpu.xmms[..2].copy_from_slice(vectors);
            machine.device.set(0, vectors[0] as u64);
            let before = machine.cpu.clone();
            let memory = machine.ram.snapshot();
            let outcome = machine.emulate();
            let after = machine.ram.snapshot();
            assert!(
                after[CODE_RAM as usize..][..4096] == memory[CODE_RAM as usize..][..4096]
                    || outcome.is_ok()
            );
            let Err(error) = outcome else {
                return;
            };
            machine.cpu.vmreads.set(before.vmreads.get());
            assert_eq!(machine.cpu.rip, before.rip, "{error:?}");
            // What a repeated string instruction has done before its fault stays done.
            if code.iter().any(|byte| matches!(byte, 0xf2 | 0xf3)) {
                return;
            }
            assert_eq!(machine.cpu, before, "{error:?} changed registers");
            assert!(
                after[DATA as usize..] == memory[DATA as usize..],
                "{error:?} changed memory"
            );
            // A division reads its operand before it finds that it cannot.
            let written = |seen: &Seen| !matches!(seen, Seen::Read(..));
            assert!(
                !machine.device.seen.iter().any(written),
                "{error:?} wrote to the device"
            );
        });
}

#[test]
fn instructions_that_violated_ept() {
    fuzzing::check!()
        .with_type::<(u8, [u8; 15], Registers, u16, bool)>()
        .for_each(|(kind, code, registers, offset, write)| {
            let mut machine = machine(*kind, code, registers);
            let before = machine.cpu.clone();
            let outcome = machine.emulate_violation(u64::from(offset % 0x1000), *write);
            if let Err(error) = outcome {
                machine.cpu.vmreads.set(before.vmreads.get());
                assert_eq!(machine.cpu.rip, before.rip, "{error:?}");
                if !code.iter().any(|byte| matches!(byte, 0xf2 | 0xf3)) {
                    assert_eq!(machine.cpu, before, "{error:?} changed registers");
                }
            }
        });
}

#[test]
fn string_input_and_output() {
    fuzzing::check!()
        .with_type::<(u8, Registers, u8, u16)>()
        .for_each(|(kind, registers, form, port)| {
            let mut machine = machine(*kind, &[0x90], registers);
            let widths = [Width::BYTE, Width::WORD, Width::DOUBLEWORD];
            let sizes = [Width::WORD, Width::DOUBLEWORD, Width::QUADWORD];
            let io = StringIo {
                port: *port,
                width: widths[usize::from(form % 3)],
                direction: if form & 0x10 == 0 {
                    Direction::In
                } else {
                    Direction::Out
                },
                repeated: form & 0x20 == 0,
                address_size: sizes[usize::from(form >> 6) % 3],
                segment: if form & 8 == 0 {
                    SegmentRegister::Ds
                } else {
                    SegmentRegister::Fs
                },
                length: 2,
            };
            let count = machine.cpu.gprs[1];
            let outcome =
                emulate_string_io(&mut machine.cpu, &machine.ram, &mut machine.device, io);
            if outcome == Ok(Completed::Interrupted) {
                assert!(machine.cpu.gprs[1] != count, "there is progress");
            }
            let is_port = |seen: &&Seen| matches!(seen, Seen::In(..) | Seen::Out(..));
            let accesses = machine.device.seen.iter().filter(is_port).count();
            assert!(accesses <= if io.repeated { 64 } else { 1 });
        });
}
