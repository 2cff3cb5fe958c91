//! String instructions, and string I/O.

use arch::ExceptionVector;
use vmx::addr::GuestPhysAddr;

use super::machine::{CODE, DATA, DEVICE, Device, Machine, Seen, code};
use crate::emulate::{
    Completed, Direction, EmulationError, Fault, RAX, RCX, RDI, RSI, SegmentRegister, StringIo,
    Width, emulate_string_io, flags,
};
use crate::guest_memory::GuestMemory;

#[test]
fn memcpy_from_the_device_in_32_bit_steps() {
    let mut machine = Machine::long(code!("rep movsd"));
    machine.cpu.gprs[RSI] = DEVICE + 0x10;
    machine.cpu.gprs[RDI] = DATA + 2;
    machine.cpu.gprs[RCX] = 5;
    for index in 0..5 {
        machine.device.set(0x10 + 4 * index, 0x100 + index as u64);
    }
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    for index in 0..5 {
        let value = machine.ram.read_u32(GuestPhysAddr(DATA + 2 + 4 * index));
        assert_eq!(value, Ok(0x100 + index as u32));
    }
    assert_eq!(machine.cpu.gprs[RCX], 0);
    assert_eq!(machine.cpu.gprs[RSI], DEVICE + 0x24);
    assert_eq!(machine.cpu.gprs[RDI], DATA + 2 + 20);
    assert_eq!(machine.cpu.rip, CODE + 2);
}

#[test]
fn a_long_fill_lets_interrupts_in() {
    let mut machine = Machine::long(code!("rep stosb"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.gprs[RCX] = 150;
    machine.cpu.gprs[RAX] = 0x5a;
    let mut rounds = 0;
    while machine.emulate() == Ok(Completed::Interrupted) {
        rounds += 1;
        assert_eq!(machine.cpu.rip, CODE);
        assert_eq!(machine.cpu.gprs[RCX], 150 - 64 * rounds);
    }
    assert_eq!(rounds, 2);
    assert_eq!(
        machine.device.cells[..151],
        [[0x5a; 150].as_slice(), &[0]].concat()
    );
}

#[test]
fn a_single_step_stops_after_each_element() {
    let mut machine = Machine::long(code!("rep stosb"));
    machine.cpu.rflags |= flags::TF;
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.gprs[RCX] = 2;
    assert_eq!(machine.emulate(), Ok(Completed::Interrupted));
    assert_eq!((machine.cpu.rip, machine.cpu.gprs[RCX]), (CODE, 1));
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    assert_eq!((machine.cpu.rip, machine.cpu.gprs[RCX]), (CODE + 2, 0));
}

#[test]
fn a_count_of_zero_touches_nothing() {
    let mut machine = Machine::long(code!("rep stosd"));
    machine.cpu.gprs[RDI] = 0xdead_0000_0000_0000;
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    assert_eq!(machine.device.seen, []);
}

#[test]
fn a_fault_in_the_middle_keeps_the_progress() {
    let mut machine = Machine::long(code!("rep stosd"));
    machine.cpu.gprs[RDI] = DEVICE + 0x2000 - 12;
    machine.cpu.gprs[RCX] = 10;
    let Err(EmulationError::Fault(fault)) = machine.emulate() else {
        panic!("no fault");
    };
    assert_eq!(fault.vector, ExceptionVector::Page);
    assert_eq!(fault.cr2, Some(DEVICE + 0x2000));
    assert_eq!(machine.cpu.gprs[RCX], 7);
    assert_eq!(machine.cpu.gprs[RDI], DEVICE + 0x2000);
    assert_eq!(machine.cpu.rip, CODE);
}

#[test]
fn down_with_the_direction_flag() {
    let mut machine = Machine::long(code!("rep lodsw"));
    machine.cpu.rflags |= flags::DF;
    machine.cpu.gprs[RSI] = DEVICE + 4;
    machine.cpu.gprs[RCX] = 2;
    machine.cpu.gprs[RAX] = 0xffff_ffff;
    machine.device.set(0, 0x3333_2222_1111);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RAX], 0xffff_2222);
    assert_eq!(machine.cpu.gprs[RSI], DEVICE);
    assert_eq!(machine.device.seen, [Seen::Read(4, 2), Seen::Read(2, 2)]);
}

#[test]
fn searching_stops_where_it_finds() {
    let mut machine = Machine::long(code!("repne scasb"));
    machine.device.cells[3] = b'x';
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.gprs[RCX] = 20;
    machine.cpu.gprs[RAX] = u64::from(b'x');
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RCX], 16);
    assert_ne!(machine.cpu.rflags & flags::ZF, 0);

    let mut machine = Machine::long(code!("repe cmpsb"));
    machine.device.cells[2] = 1;
    machine.cpu.gprs[RSI] = DEVICE;
    machine.cpu.gprs[RDI] = DATA;
    machine.cpu.gprs[RCX] = 20;
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RCX], 17);
    assert_eq!(machine.cpu.rflags & (flags::ZF | flags::CF), 0, "1 > 0");
}

#[test]
fn thirty_two_bit_addresses_in_64_bit_code() {
    let mut machine = Machine::long(code!("rep stosd es:[edi], eax"));
    machine.cpu.gprs[RDI] = 0xffff_ffff_0000_0000 | DATA;
    machine.cpu.gprs[RCX] = 0xffff_ffff_0000_0001;
    machine.cpu.gprs[RAX] = 3;
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RDI], DATA + 4, "zero-extended");
    assert_eq!(machine.cpu.gprs[RCX], 0);
}

const OUTSB: StringIo = StringIo {
    port: 0x3f8,
    width: Width::BYTE,
    direction: Direction::Out,
    repeated: true,
    address_size: Width::QUADWORD,
    segment: SegmentRegister::Ds,
    length: 2,
};

fn string_io(machine: &mut Machine, io: StringIo) -> Result<Completed, EmulationError> {
    emulate_string_io(&mut machine.cpu, &machine.ram, &mut machine.device, io)
}

fn port_accesses(device: &Device) -> usize {
    device
        .seen
        .iter()
        .filter(|seen| matches!(seen, Seen::In(..) | Seen::Out(..)))
        .count()
}

#[test]
fn a_message_goes_to_the_serial_port() {
    let mut machine = Machine::long(&[]);
    machine.ram.write(GuestPhysAddr(DATA), b"hello").unwrap();
    machine.cpu.gprs[RSI] = DATA;
    machine.cpu.gprs[RCX] = 5;
    assert_eq!(string_io(&mut machine, OUTSB), Ok(Completed::Retired));
    let expected: std::vec::Vec<_> = b"hello"
        .iter()
        .map(|byte| Seen::Out(0x3f8, 1, u32::from(*byte)))
        .collect();
    assert_eq!(machine.device.seen, expected);
    assert_eq!(machine.cpu.gprs[RSI], DATA + 5);
    assert_eq!(machine.cpu.rip, CODE + 2);
}

#[test]
fn a_sector_comes_from_a_port_with_interruptions() {
    let mut machine = Machine::long(&[]);
    machine.cpu.gprs[RDI] = DATA + 0xf00;
    machine.cpu.gprs[RCX] = 256;
    let io = StringIo {
        port: 0x1f0,
        width: Width::WORD,
        direction: Direction::In,
        ..OUTSB
    };
    for _ in 0..3 {
        assert_eq!(string_io(&mut machine, io), Ok(Completed::Interrupted));
        assert_eq!(machine.cpu.rip, CODE);
    }
    assert_eq!(string_io(&mut machine, io), Ok(Completed::Retired));
    assert_eq!(port_accesses(&machine.device), 256);
    let mut last = [0; 2];
    machine
        .ram
        .read(GuestPhysAddr(DATA + 0xf00 + 510), &mut last)
        .unwrap();
    assert_eq!(u16::from_le_bytes(last), 256);
}

#[test]
fn the_port_is_not_read_when_memory_faults() {
    let mut machine = Machine::long(&[]);
    machine.cpu.gprs[RDI] = 0x10;
    machine.cpu.gprs[RCX] = 1;
    let io = StringIo {
        direction: Direction::In,
        ..OUTSB
    };
    assert!(matches!(
        string_io(&mut machine, io),
        Err(EmulationError::Fault(Fault {
            vector: ExceptionVector::Page,
            ..
        }))
    ));
    assert_eq!(machine.device.seen, []);
}
