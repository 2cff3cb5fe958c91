//! Instructions of x87, MMX, SSE and AVX: the same on device memory as on the CPU that runs the tests, which
//! executes each both ways.

use std::vec;

use arch::{Cr0Flags, ExceptionVector};
use proptest::prelude::*;

use super::machine::{CODE, DEVICE, DEVICE_GPA, Machine, Seen, code};
use crate::emulate::{
    Completed, EmulationError, Fault, RAX, RCX, RDI, RDX, Reason, SegmentRegister, flags,
};

const OPERAND: usize = 0x100;

/// What the instructions here work on: YMM1 and YMM2, the operand, and registers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct State {
    vectors: [u64; 8],
    memory: [u64; 4],
    rax: u64,
    rcx: u64,
    rdx: u64,
    flags: u64,
}

fn states() -> impl Strategy<Value = State> {
    // Numbers that are ones as floating-point values, too, and exceptions of all kinds.
    let value = || {
        prop_oneof![
            any::<u64>(),
            any::<f64>().prop_map(f64::to_bits),
            any::<[f32; 2]>().prop_map(|[low, high]| {
                u64::from(high.to_bits()) << 32 | u64::from(low.to_bits())
            }),
            prop::sample::select(vec![0, 1, u64::MAX, 1 << 63, 0x7ff0_0000_0000_0000]),
        ]
    };
    (
        prop::array::uniform8(value()),
        prop::array::uniform4(value()),
        any::<[u64; 3]>(),
        any::<u64>(),
    )
        .prop_map(|(vectors, memory, [rax, rcx, rdx], random)| State {
            vectors,
            memory,
            rax,
            rcx,
            rdx,
            flags: random & flags::STATUS,
        })
}

fn emulated(code: &[u8], state: State) -> State {
    let mut machine = Machine::long(code);
    for (index, halves) in state.vectors.chunks(4).enumerate() {
        let value = |low: usize| u128::from(halves[low + 1]) << 64 | u128::from(halves[low]);
        machine.cpu.xmms[1 + index] = value(0);
        machine.cpu.ymm_highs[1 + index] = value(2);
    }
    for (index, value) in state.memory.into_iter().enumerate() {
        machine.device.set(OPERAND + 8 * index, value);
    }
    machine.cpu.gprs[RAX] = state.rax;
    machine.cpu.gprs[RCX] = state.rcx;
    machine.cpu.gprs[RDX] = state.rdx;
    machine.cpu.gprs[RDI] = DEVICE + OPERAND as u64;
    machine.cpu.rflags = 2 | state.flags;
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    assert_eq!(machine.cpu.rip, CODE + code.len() as u64);
    let mut vectors = [0; 8];
    for (index, halves) in vectors.chunks_mut(4).enumerate() {
        let (low, high) = (
            machine.cpu.xmms[1 + index],
            machine.cpu.ymm_highs[1 + index],
        );
        halves.copy_from_slice(&[low, low >> 64, high, high >> 64].map(|value| value as u64));
    }
    State {
        vectors,
        memory: core::array::from_fn(|index| machine.device.get(OPERAND + 8 * index)),
        rax: machine.cpu.gprs[RAX],
        rcx: machine.cpu.gprs[RCX],
        rdx: machine.cpu.gprs[RDX],
        flags: machine.cpu.rflags & flags::STATUS,
    }
}

#[repr(align(64))]
struct Aligned([u64; 4]);

macro_rules! executed {
    ($instruction:literal, $state:expr) => {{
        let State {
            mut vectors,
            memory,
            mut rax,
            mut rcx,
            mut rdx,
            mut flags,
        } = $state;
        let mut memory = Aligned(memory);
        // SAFETY: the instruction changes what RDI points to, and registers that are named or clobbered; this CPU
        // has AVX, and SIMD exceptions are masked.
        unsafe {
            core::arch::asm!(
                "vmovdqu ymm1, [rsi]",
                "vmovdqu ymm2, [rsi + 32]",
                "push {flags}",
                "popfq",
                $instruction,
                "pushfq",
                "pop {flags}",
                "vmovdqu [rsi], ymm1",
                "vmovdqu [rsi + 32], ymm2",
                "vzeroupper",
                flags = inout(reg) flags,
                inout("rax") rax,
                inout("rcx") rcx,
                inout("rdx") rdx,
                in("rdi") &raw mut memory,
                in("rsi") &raw mut vectors,
                out("ymm1") _,
                out("ymm2") _,
            );
        }
        flags &= flags::STATUS;
        State { vectors, memory: memory.0, rax, rcx, rdx, flags }
    }};
}

macro_rules! like_hardware {
    ($($name:ident: [$($instruction:literal),+ $(,)?];)+) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $name(state in states()) {
                    $({
                        let real = executed!($instruction, state);
                        let ours = emulated(code!($instruction), state);
                        prop_assert_eq!(ours, real, "{} on {:x?}", $instruction, state);
                    })+
                }
            )+
        }
    };
}

like_hardware! {
    sse_moves: [
        "movaps xmm1, [rdi]", "movups [rdi], xmm2", "movhps xmm1, [rdi]", "movlps xmm1, [rdi]",
        "movhps [rdi], xmm1", "movlpd [rdi], xmm2", "movddup xmm1, [rdi]", "movshdup xmm1, [rdi]",
        "movntdqa xmm1, [rdi]", "movsd xmm2, [rdi]", "movd xmm2, dword ptr [rdi]",
        "pinsrw xmm1, word ptr [rdi], 3", "pinsrq xmm1, qword ptr [rdi], 1",
        "pextrb [rdi], xmm1, 5", "pextrd dword ptr [rdi], xmm2, 2", "extractps [rdi], xmm1, 1",
        "insertps xmm1, dword ptr [rdi], 0x10",
    ];
    sse_arithmetic: [
        "addps xmm1, [rdi]", "mulss xmm1, [rdi]", "divpd xmm1, [rdi]", "sqrtsd xmm1, [rdi]",
        "minps xmm2, [rdi]", "cmpltps xmm1, [rdi]", "cmpsd xmm1, [rdi], 6", "andnps xmm1, [rdi]",
        "haddpd xmm1, [rdi]", "dpps xmm1, [rdi], 0x71", "roundsd xmm1, [rdi], 2",
        "shufps xmm1, [rdi], 0x1b", "unpcklps xmm1, [rdi]", "ucomisd xmm1, [rdi]",
        "comiss xmm2, [rdi]", "rcpps xmm1, [rdi]",
    ];
    sse_integers: [
        "pxor xmm1, [rdi]", "paddsb xmm1, [rdi]", "pmaddwd xmm1, [rdi]", "pshufd xmm1, [rdi], 0x1b",
        "pshufb xmm1, [rdi]", "psadbw xmm1, [rdi]", "pmulld xmm1, [rdi]", "psllq xmm1, [rdi]",
        "palignr xmm1, [rdi], 5", "pcmpgtq xmm1, [rdi]", "pmovzxbd xmm1, [rdi]", "ptest xmm1, [rdi]",
        "pcmpistri xmm1, [rdi], 0xc",
    ];
    conversions: [
        "cvtdq2ps xmm1, [rdi]", "cvtps2pd xmm1, [rdi]", "cvtsi2sd xmm1, dword ptr [rdi]",
        "cvtsi2ss xmm1, qword ptr [rdi]", "cvttsd2si rax, [rdi]", "cvtss2si ecx, [rdi]",
        "cvtpd2dq xmm2, [rdi]", "vcvtps2pd ymm1, [rdi]",
    ];
    avx: [
        "vaddps ymm1, ymm2, [rdi]", "vpxor ymm1, ymm2, [rdi]", "vmulsd xmm1, xmm2, [rdi]",
        "vbroadcastss ymm1, [rdi]", "vbroadcastf128 ymm1, [rdi]", "vinsertf128 ymm1, ymm2, [rdi], 1",
        "vextractf128 [rdi], ymm1, 1", "vpermd ymm1, ymm2, [rdi]", "vblendvps ymm1, ymm2, [rdi], ymm1",
        "vpshufb ymm1, ymm2, [rdi]", "vptest ymm1, [rdi]", "vmovups ymm2, [rdi]",
        "vpinsrd xmm1, xmm2, dword ptr [rdi], 1", "vcmpps ymm1, ymm2, [rdi], 0x12",
        "vmovhps xmm1, xmm2, [rdi]", "vmovddup ymm1, [rdi]", "vaddss xmm1, xmm2, [rdi + 4]",
    ];
    general_registers: [
        "andn rax, rcx, [rdi]", "bextr eax, [rdi], ecx", "bzhi rax, [rdi], rcx", "pdep rax, rcx, [rdi]",
        "pext eax, ecx, [rdi]", "mulx rax, rcx, [rdi]", "rorx rax, [rdi], 7", "sarx eax, [rdi], ecx",
        "adcx rax, [rdi]", "adox rcx, [rdi]", "crc32 eax, byte ptr [rdi]",
        "crc32 rax, qword ptr [rdi]",
    ];
}

/// Executes all of `code`, and the rest on the device.
fn sequence(code: &'static [u8], device: impl FnOnce(&mut Machine)) -> Machine {
    let mut machine = Machine::long(code);
    machine.cpu.gprs[RDI] = DEVICE;
    device(&mut machine);
    while machine.cpu.rip < CODE + code.len() as u64 {
        assert_eq!(machine.emulate(), Ok(Completed::Retired));
    }
    machine
}

#[test]
fn x87_loads_computes_and_stores_in_every_format() {
    let machine = sequence(
        code!(
            "fld dword ptr [rdi]",
            "fadd qword ptr [rdi + 8]",
            "fisub word ptr [rdi + 16]",
            "fimul dword ptr [rdi + 20]",
            "fst dword ptr [rdi + 0x40]",
            "fst qword ptr [rdi + 0x48]",
            "fist dword ptr [rdi + 0x50]",
            "fisttp word ptr [rdi + 0x58]",
            "fild qword ptr [rdi + 24]",
            "fstp tbyte ptr [rdi + 0x60]",
            "fld tbyte ptr [rdi + 0x60]",
            "fistp qword ptr [rdi + 0x70]",
        ),
        |machine| {
            machine.device.set(0, 1.5_f32.to_bits().into());
            machine.device.set(8, 2.25_f64.to_bits());
            machine.device.set(16, 4 << 32 | 3);
            machine.device.set(24, 7);
        },
    );
    // (1.5 + 2.25 - 3) * 4
    assert_eq!(machine.device.get(0x40) as u32, 3.0_f32.to_bits());
    assert_eq!(machine.device.get(0x48), 3.0_f64.to_bits());
    assert_eq!(machine.device.get(0x50), 3);
    assert_eq!(machine.device.get(0x58), 3);
    assert_eq!(machine.device.get(0x60), 7 << 61);
    assert_eq!(machine.device.get(0x68), 0x4001);
    assert_eq!(machine.device.get(0x70), 7);
}

#[test]
fn x87_control_and_status_words_are_loaded_and_stored() {
    let machine = sequence(
        code!(
            "fnstcw word ptr [rdi]",
            "fldcw word ptr [rdi + 8]",
            "fnstcw word ptr [rdi + 16]",
            "fld dword ptr [rdi + 24]",
            "fnstsw word ptr [rdi + 32]",
        ),
        |machine| machine.device.set(8, 0x27f),
    );
    assert_eq!(machine.device.get(0), 0x37f);
    assert_eq!(machine.device.get(16), 0x27f);
    assert_eq!(machine.device.get(32), 0x3800, "one register is in use");
}

#[test]
fn mmx_moves_and_computes() {
    let machine = sequence(
        code!(
            "movq mm3, [rdi]",
            "paddb mm3, [rdi + 8]",
            "movq [rdi + 16], mm3",
            "movd mm4, dword ptr [rdi]",
            "movd dword ptr [rdi + 24], mm4",
            "movntq [rdi + 32], mm3",
        ),
        |machine| {
            machine.device.set(0, 0x0102_0304_0506_0708);
            machine.device.set(8, 0x1010_1010_1010_10ff);
        },
    );
    assert_eq!(machine.device.get(16), 0x1112_1314_1516_1707);
    assert_eq!(machine.device.get(24), 0x0506_0708);
    assert_eq!(machine.device.get(32), 0x1112_1314_1516_1707);
}

#[test]
fn mxcsr_is_loaded_and_stored_and_has_no_bits_that_it_has_not() {
    let machine = sequence(code!("ldmxcsr [rdi]", "stmxcsr [rdi + 8]"), |machine| {
        machine.device.set(0, 0x5f80)
    });
    assert_eq!(machine.device.get(8), 0x5f80);
    let mut machine = Machine::long(code!("ldmxcsr [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.device.set(0, 0x1_1f80);
    assert_eq!(machine.fault().vector, ExceptionVector::GeneralProtection);
}

#[test]
fn registers_and_addresses_of_all_kinds_come_through() {
    // REX.R and REX.B, an index, an absolute address, and one by RIP.
    let machine = sequence(
        code!(
            "movups xmm9, [r15 + 4 * r14 + 0x40]",
            "addps xmm9, [r15 + 4 * r14 + 0x40]",
            "vaddps ymm12, ymm9, [r15 + r14 + 0x100]",
            "vmovups [r15 + r14 + 0x200], ymm12",
        ),
        |machine| {
            machine.cpu.gprs[15] = DEVICE;
            machine.cpu.gprs[14] = 0x10;
            machine.device.set(0x80, 1.0_f32.to_bits().into());
            machine.device.set(0x110, 0.5_f32.to_bits().into());
        },
    );
    assert_eq!(machine.device.get(0x210) as u32, 2.5_f32.to_bits());
}

#[test]
fn code_of_32_bits_and_of_16_does_the_same() {
    let mut machine = Machine::protected(code!(".code32", "vpaddd xmm1, xmm7, es:[edi + 8]"));
    machine.cpu.cr4 |= 3 << 9 | 1 << 18;
    machine.cpu.gprs[RDI] = DEVICE_GPA;
    machine.cpu.xmms[7] = 5;
    machine.device.set(8, 6);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.xmms[1], 11);

    let mut machine = Machine::real(code!(".code16", "paddd xmm1, fs:[bx + si + 0x20]"));
    machine.cpu.cr4 |= 3 << 9;
    machine.cpu.xmms[1] = 5;
    machine.device.set(0x20, 6);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.xmms[1], 11);
    let mut machine = Machine::real(code!(".code16", "fild word ptr fs:[bp + 0x20]"));
    machine.cpu.segments[SegmentRegister::Ss as usize].base = 0;
    machine.device.set(0x20, 6);
    machine.emulate().unwrap();
    assert_eq!(machine.device.seen, [Seen::Read(0x20, 2)]);
}

#[test]
fn an_operand_of_sse_that_is_not_aligned_faults_and_one_of_avx_does_not() {
    let mut machine = Machine::long(code!("addps xmm1, [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE + 8;
    assert_eq!(machine.fault().vector, ExceptionVector::GeneralProtection);
    assert_eq!(machine.device.seen, []);
    let mut machine = Machine::long(code!("vaddps xmm1, xmm2, [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE + 9;
    machine.emulate().unwrap();
}

#[test]
fn what_the_guest_has_not_enabled_faults() {
    use ExceptionVector::{DeviceNotAvailable, InvalidOpcode};
    let sse = code!("addps xmm1, [rdi]");
    let avx = code!("vaddps xmm1, xmm2, [rdi]");
    let mmx = code!("paddb mm0, [rdi]");
    let x87 = code!("fld dword ptr [rdi]");
    const EM: u64 = Cr0Flags::EMULATE_COPROCESSOR.bits();
    const TS: u64 = Cr0Flags::TASK_SWITCHED.bits();
    for (code, cr0, cr4_clear, xcr0, vector) in [
        (sse, EM, 0, 7, InvalidOpcode),
        (sse, TS, 0, 7, DeviceNotAvailable),
        (sse, 0, 1 << 9, 7, InvalidOpcode),
        (avx, 0, 0, 3, InvalidOpcode),
        (avx, 0, 1 << 18, 7, InvalidOpcode),
        (avx, TS, 0, 7, DeviceNotAvailable),
        (mmx, EM, 0, 7, InvalidOpcode),
        (mmx, TS, 0, 7, DeviceNotAvailable),
        (x87, EM, 0, 7, DeviceNotAvailable),
        (x87, TS, 0, 7, DeviceNotAvailable),
    ] {
        let mut machine = Machine::long(code);
        machine.cpu.gprs[RDI] = DEVICE;
        machine.cpu.cr0 |= cr0;
        machine.cpu.cr4 &= !cr4_clear;
        machine.cpu.xcr0 = xcr0;
        assert_eq!(machine.fault().vector, vector, "{code:02x?}");
        assert_eq!(machine.device.seen, []);
    }
}

#[test]
fn a_simd_exception_that_is_not_masked_leaves_its_flag_and_nothing_else() {
    let mut machine = Machine::long(code!("divps xmm1, [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.xmms[1] = 1.0_f32.to_bits().into();
    // Division by zero is not masked.
    machine.cpu.x87[24..28].copy_from_slice(&0x1d80_u32.to_le_bytes());
    let before = machine.cpu.clone();
    let result = machine.emulate();
    let raised = Fault::without_code(ExceptionVector::SimdFloatingPoint);
    assert_eq!(result, Err(EmulationError::Fault(raised)));
    assert_eq!(machine.cpu.x87[24] & 4, 4);
    assert_eq!(machine.cpu.xmms, before.xmms);
    assert_eq!(machine.cpu.rip, CODE);

    machine.cpu.cr4 &= !(1 << 10);
    let undefined = Fault::without_code(ExceptionVector::InvalidOpcode);
    assert_eq!(machine.emulate(), Err(EmulationError::Fault(undefined)));

    machine.cpu.x87[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.xmms[1] as u32, f32::INFINITY.to_bits());
    assert_eq!(machine.cpu.x87[24] & 4, 4);
}

#[test]
fn a_conversion_to_an_mmx_register_raises_simd_exceptions() {
    let mut machine = Machine::long(code!("cvtps2pi mm1, [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.device.set(0, u64::MAX);
    // Invalid operations are not masked.
    machine.cpu.x87[24..28].copy_from_slice(&0x1f00_u32.to_le_bytes());
    let Err(EmulationError::Fault(fault)) = machine.emulate() else {
        panic!("no fault");
    };
    assert_eq!(fault.vector, ExceptionVector::SimdFloatingPoint);
    let mut crooked = Machine::long(code!("cvtpd2pi mm1, [rdi]"));
    crooked.cpu.gprs[RDI] = DEVICE + 8;
    assert_eq!(crooked.fault().vector, ExceptionVector::GeneralProtection);
}

#[test]
fn an_x87_exception_that_is_not_masked_comes_with_the_next_instruction() {
    let mut machine = sequence(code!("fld qword ptr [rdi]"), |machine| {
        machine.device.set(0, f64::MAX.to_bits());
    });
    let code = code!("fst dword ptr [rdi + 8]", "fld qword ptr [rdi]");
    machine.ram.write_u64(
        super::machine::CODE_RAM,
        u64::from_le_bytes([
            code[0], code[1], code[2], code[3], code[4], 0x90, 0x90, 0x90,
        ]),
    );
    machine.cpu.rip = CODE;
    machine.device.seen.clear();
    // Overflow is not masked.
    machine.cpu.x87[..2].copy_from_slice(&0x377_u16.to_le_bytes());
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    assert_eq!(machine.device.seen, [], "nothing is stored");
    assert_eq!(machine.fault().vector, ExceptionVector::X87FloatingPoint);
    assert_eq!(machine.cpu.rip, CODE + 3);

    // What does not wait for exceptions does its work.
    let code = code!("fnstsw word ptr [rdi + 8]");
    machine.ram.write_u64(
        super::machine::CODE_RAM,
        0x90_9090 << 24 | u64::from(code[2]) << 16 | u64::from(code[1]) << 8 | u64::from(code[0]),
    );
    machine.cpu.rip = CODE;
    machine.device.seen.clear();
    machine.emulate().unwrap();
    let [Seen::Write(8, 2, status)] = machine.device.seen[..] else {
        panic!("{:?}", machine.device.seen);
    };
    assert_eq!(status & 0x88, 0x88, "overflow, and a summary");
}

#[test]
fn what_is_not_on_the_list_is_refused() {
    for code in [
        code!("fxsave [rdi]"),
        code!("xsave [rdi]"),
        code!("fnstenv [rdi]"),
        code!("fldenv [rdi]"),
        code!("maskmovdqu xmm1, xmm2"),
        code!("vmaskmovps [rdi], ymm1, ymm2"),
        code!("vgatherdps ymm1, [rdi + ymm2], ymm3"),
        code!("pdep rsp, rax, [rdi]"),
        code!("cvttsd2si rsp, [rdi]"),
        code!("aesenc xmm1, [rdi]"),
    ] {
        let mut machine = Machine::long(code);
        machine.cpu.gprs[RDI] = DEVICE;
        let Err(EmulationError::Unsupported(error)) = machine.emulate() else {
            panic!("{code:02x?}");
        };
        assert_eq!(error.reason, Reason::NotImplemented);
        assert_eq!(machine.device.seen, []);
    }
}

#[test]
fn no_host_address_is_left_in_the_x87_registers() {
    let machine = sequence(code!("fld dword ptr [rdi]"), |_| ());
    let fip = u64::from_le_bytes(machine.cpu.x87[8..16].try_into().unwrap());
    // Some processors keep it back if there was no exception.
    assert!(fip == 0 || fip == CODE, "{fip:#x}");
}
