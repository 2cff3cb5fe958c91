//! Moves of XMM registers.

use arch::ExceptionVector;

use super::machine::{DEVICE, Machine, Seen, TestCpu, code};
use crate::emulate::cpu::RBX;
use crate::emulate::{Completed, EmulationError, Fault, RAX, RCX, RDI, RDX, flags};

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

/// Another VCPU may have written the instruction since another one exited.
#[test]
fn vector_registers_that_are_not_enabled_are_not_touched() {
    type Disable = fn(&mut TestCpu);
    let sse = code!("movups [rdi], xmm9");
    let avx = code!("vmovups [rdi], ymm9");
    let undefined = ExceptionVector::InvalidOpcode;
    let cases: [(&str, Disable, [Option<ExceptionVector>; 2]); 5] = [
        (
            "OSFXSR",
            |cpu| cpu.cr4 &= !(1 << 9),
            [Some(undefined), None],
        ),
        (
            "OSXSAVE",
            |cpu| cpu.cr4 &= !(1 << 18),
            [None, Some(undefined)],
        ),
        ("AVX in XCR0", |cpu| cpu.xcr0 = 3, [None, Some(undefined)]),
        ("EM", |cpu| cpu.cr0 |= 1 << 2, [Some(undefined), None]),
        (
            "TS",
            |cpu| cpu.cr0 |= 1 << 3,
            [Some(ExceptionVector::DeviceNotAvailable); 2],
        ),
    ];
    for (name, disable, expected) in cases {
        for (code, vector) in [sse, avx].into_iter().zip(expected) {
            let mut machine = machine(code, 0);
            disable(&mut machine.cpu);
            match vector {
                None => assert_eq!(machine.emulate(), Ok(Completed::Retired), "{name}"),
                Some(vector) => {
                    let fault = EmulationError::Fault(Fault::without_code(vector));
                    assert_eq!(machine.emulate(), Err(fault), "{name}");
                    assert!(machine.device.seen.is_empty(), "{name}");
                }
            }
        }
    }
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
        (ExceptionVector::GeneralProtection, Some(0))
    );
    assert_eq!(machine.device.seen, []);
}

#[test]
fn avx_moves_32_bytes_and_clears_what_a_load_does_not_fill() {
    let mut store = machine(code!("vmovdqu [rdi], ymm9"), 8);
    store.cpu.ymm_highs[9] = !VALUE;
    assert_eq!(store.emulate(), Ok(Completed::Retired));
    let words = [VALUE, VALUE >> 64, !VALUE, !VALUE >> 64];
    assert_eq!(
        store.device.seen,
        [0, 1, 2, 3].map(|index| Seen::Write(8 + 8 * index as u64, 8, words[index] as u64))
    );

    let mut load = machine(code!("vmovaps ymm9, [rdi]"), 0x20);
    for index in 0..4 {
        load.device
            .set(0x20 + 8 * index, 0x1111 * (index as u64 + 1));
    }
    assert_eq!(load.emulate(), Ok(Completed::Retired));
    assert_eq!(load.cpu.xmms[9], 0x2222 << 64 | 0x1111);
    assert_eq!(load.cpu.ymm_highs[9], 0x4444 << 64 | 0x3333);

    for (code, kept) in [
        (code!("vmovd xmm9, dword ptr [rdi]"), 0),
        (code!("vmovdqu xmm9, [rdi]"), 0),
        (code!("movdqu xmm9, [rdi]"), !VALUE),
    ] {
        let mut load = machine(code, 0);
        load.cpu.ymm_highs[9] = !VALUE;
        assert_eq!(load.emulate(), Ok(Completed::Retired));
        assert_eq!(load.cpu.ymm_highs[9], kept);
    }
    let mut crooked = machine(code!("vmovdqa ymm9, [rdi]"), 0x10);
    assert_eq!(crooked.fault().vector, ExceptionVector::GeneralProtection);
}

#[test]
fn eight_bytes_are_exchanged_if_they_are_what_was_expected() {
    let exchange = |low| {
        let mut machine = machine(code!("lock cmpxchg8b [rdi]"), 8);
        machine.device.set(8, 2 << 32 | 1);
        machine.cpu.gprs[RAX] = low;
        machine.cpu.gprs[RDX] = 2;
        machine.cpu.gprs[RBX] = 3;
        machine.cpu.gprs[RCX] = 4;
        assert_eq!(machine.emulate(), Ok(Completed::Retired));
        let zero = machine.cpu.rflags & flags::ZF != 0;
        (machine.device.get(8), machine.cpu.gprs[RAX], zero)
    };
    assert_eq!(exchange(1), (4 << 32 | 3, 1, true));
    assert_eq!(exchange(7), (2 << 32 | 1, 1, false));
}

#[test]
fn sixteen_bytes_are_exchanged_if_they_are_what_was_expected() {
    let exchange = |low, high| {
        let mut machine = machine(code!("lock cmpxchg16b [rdi]"), 0x10);
        machine.device.set(0x10, 1);
        machine.device.set(0x18, 2);
        machine.cpu.gprs[RAX] = low;
        machine.cpu.gprs[RDX] = high;
        machine.cpu.gprs[RBX] = 3;
        machine.cpu.gprs[RCX] = 4;
        assert_eq!(machine.emulate(), Ok(Completed::Retired));
        (
            machine.device.get(0x10),
            machine.device.get(0x18),
            machine.cpu.gprs[RAX],
            machine.cpu.gprs[RDX],
            machine.cpu.rflags & flags::ZF != 0,
        )
    };
    assert_eq!(exchange(1, 2), (3, 4, 1, 2, true));
    assert_eq!(exchange(1, 3), (1, 2, 1, 2, false));
    let mut crooked = machine(code!("cmpxchg16b [rdi]"), 8);
    assert_eq!(crooked.fault().vector, ExceptionVector::GeneralProtection);
}
