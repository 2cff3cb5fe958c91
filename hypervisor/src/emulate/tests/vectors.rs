//! Moves of XMM registers.

use super::machine::{DEVICE, Machine, Seen, code};
use crate::emulate::{Completed, Fault, RDI};

const VALUE: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;

fn machine(code: &'static [u8], offset: u64) -> Machine {
    let mut machine = Machine::long(code);
    machine.cpu.gprs[RDI] = DEVICE + offset;
    machine.cpu.xmms[9] = VALUE;
    machine
}

#[test]
fn sixteen_bytes_go_as_two_quadwords() {
    let mut store = machine(code!("movups [rdi], xmm9"), 8);
    assert_eq!(store.emulate(), Ok(Completed::Retired));
    assert_eq!(
        store.device.seen,
        [
            Seen::Write(8, 8, VALUE as u64),
            Seen::Write(16, 8, (VALUE >> 64) as u64)
        ]
    );

    let mut load = machine(code!("movdqa xmm9, [rdi]"), 0x20);
    load.device.set(0x20, 0x1111);
    load.device.set(0x28, 0x2222);
    assert_eq!(load.emulate(), Ok(Completed::Retired));
    assert_eq!(load.cpu.xmms[9], 0x2222 << 64 | 0x1111);
}

#[test]
fn narrow_loads_clear_the_rest_and_narrow_stores_take_the_low_part() {
    for (code, value) in [
        (code!("movd xmm9, dword ptr [rdi]"), 0x5566_7788),
        (code!("movss xmm9, [rdi]"), 0x5566_7788),
        (code!("movq xmm9, qword ptr [rdi]"), 0x1122_3344_5566_7788),
        (code!("movsd xmm9, [rdi]"), 0x1122_3344_5566_7788),
    ] {
        let mut machine = machine(code, 0);
        machine.device.set(0, 0x1122_3344_5566_7788);
        assert_eq!(machine.emulate(), Ok(Completed::Retired));
        assert_eq!(machine.cpu.xmms[9], value);
    }
    for (code, seen) in [
        (
            code!("movd dword ptr [rdi], xmm9"),
            Seen::Write(0, 4, 0x0302_0100),
        ),
        (
            code!("movq qword ptr [rdi], xmm9"),
            Seen::Write(0, 8, VALUE as u64),
        ),
    ] {
        let mut machine = machine(code, 0);
        assert_eq!(machine.emulate(), Ok(Completed::Retired));
        assert_eq!(machine.device.seen, [seen]);
    }
}

#[test]
fn aligned_moves_fault_off_their_boundary() {
    let mut machine = machine(code!("movaps [rdi], xmm9"), 8);
    let fault = machine.fault();
    assert_eq!(
        (fault.vector, fault.error_code),
        (Fault::GENERAL_PROTECTION, Some(0))
    );
    assert_eq!(machine.device.seen, []);
}
