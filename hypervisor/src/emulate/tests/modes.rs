//! Addressing in 16-bit, 32-bit and 64-bit code.

use arch::ExceptionVector;

use super::machine::{CODE, CODE_RAM, DATA, DEVICE, DEVICE_GPA, Machine, Seen, code};
use crate::emulate::{Completed, Fault, RAX, RCX, RDI, RSP, SegmentRegister};

#[test]
fn real_mode_reads_through_a_segment() {
    let mut machine = Machine::real(code!(".code16", "mov eax, fs:[bx + si + 4]"));
    machine.cpu.gprs[3] = 0xffff_fff0;
    machine.cpu.gprs[6] = 0x20;
    machine.device.set(0x14, 0x1122_3344);
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    assert_eq!(
        machine.cpu.gprs[RAX], 0x1122_3344,
        "BX + SI wraps at 16 bits"
    );
    assert_eq!(machine.cpu.rip, 5);
}

#[test]
fn real_mode_faults_have_no_error_code() {
    let mut machine = Machine::real(code!(".code16", "mov eax, fs:[bx]"));
    machine.cpu.gprs[3] = 0xfffd;
    let fault = Fault {
        vector: ExceptionVector::GeneralProtection,
        error_code: None,
        cr2: None,
    };
    assert_eq!(machine.fault(), fault);
}

#[test]
fn protected_mode_uses_base_and_32_bit_offsets() {
    let code = code!(".code32", "mov dword ptr es:[edi + 4 * ecx], 0x80");
    let mut machine = Machine::protected(code);
    machine.cpu.segments[SegmentRegister::Es as usize].base = DEVICE_GPA - 0x10;
    machine.cpu.gprs[RDI] = 0xffff_ffff_0000_0020;
    machine.cpu.gprs[RCX] = 3;
    machine.emulate().unwrap();
    assert_eq!(machine.device.seen, [Seen::Write(0x1c, 4, 0x80)]);
    assert_eq!(machine.cpu.rip, CODE_RAM + code.len() as u64);
}

#[test]
fn protected_mode_moves_by_absolute_address() {
    let mut machine = Machine::protected(code!(".code32", "mov eax, ds:[0xfed000f0]"));
    machine.device.set(0xf0, 5);
    machine.emulate_violation(0xf0, false).unwrap();
    assert_eq!(machine.cpu.gprs[RAX], 5);
}

#[test]
fn sixteen_bit_addresses_in_32_bit_code() {
    let mut machine = Machine::protected(code!(".code32", "mov eax, fs:[bp + di]"));
    machine.cpu.segments[SegmentRegister::Fs as usize].base = DEVICE_GPA;
    machine.cpu.gprs[5] = 0x10;
    machine.cpu.gprs[RDI] = 0x8;
    machine.device.set(0x18, 9);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RAX], 9);
}

#[test]
fn long_mode_reads_relative_to_the_next_instruction() {
    let mut machine = Machine::long(code!("add dword ptr [rip + 0x10], 1"));
    let page = machine.cpu.rip & !0xfff;
    machine.map(page + 0x1000, 0x9_6000 | 7);
    // The device's second page, right behind the code.
    machine.map(page + 0x1000, (DEVICE_GPA + 0x1000) | 7);
    let code = code!("add dword ptr [rip + 0x10], 1");
    machine.end_page_after(code, code.len() as u64);
    machine.device.set(0x1010, 41);
    machine.emulate().unwrap();
    assert_eq!(machine.device.get(0x1010), 42);
    assert_eq!(machine.cpu.rip, page + 0x1000);
}

#[test]
fn long_mode_adds_the_base_of_fs_and_gs_only() {
    let mut machine = Machine::long(code!("mov gs:[rdi], eax"));
    machine.cpu.segments[SegmentRegister::Gs as usize].base = DEVICE;
    machine.cpu.gprs[RDI] = 0x10;
    machine.emulate().unwrap();
    let mut machine = Machine::long(code!("mov es:[rdi], eax"));
    machine.cpu.segments[SegmentRegister::Es as usize].base = 0x5000;
    machine.cpu.gprs[RDI] = DEVICE;
    machine.emulate().unwrap();
    assert_eq!(machine.device.seen, [Seen::Write(0, 4, 0)]);
}

#[test]
fn code_that_goes_on_on_the_next_page() {
    let code = code!("mov dword ptr [rdi + 0x300], 0x12345678");
    for on_first_page in 1..code.len() as u64 {
        let mut machine = Machine::long(code);
        machine.map(CODE + 0x1000, (CODE_RAM + 0x1000) | 7);
        machine.end_page_after(code, on_first_page);
        machine.cpu.gprs[RDI] = DEVICE;
        machine.emulate_violation(0x300, true).unwrap();
        assert_eq!(machine.device.seen, [Seen::Write(0x300, 4, 0x1234_5678)]);
    }
}

#[test]
fn push_from_and_pop_to_the_device() {
    let mut machine = Machine::long(code!("push qword ptr [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.gprs[RSP] = DATA + 0x100;
    machine.device.set(0, 0x1234_5678_9abc_def0);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RSP], DATA + 0xf8);

    let mut popping = Machine::long(code!("pop qword ptr [rsp + 0x10]"));
    popping.cpu.gprs[RSP] = DEVICE;
    popping.device.set(0, 0x55);
    popping.emulate().unwrap();
    assert_eq!(popping.cpu.gprs[RSP], DEVICE + 8);
    assert_eq!(popping.device.get(0x18), 0x55, "addressed by the new RSP");
}

#[test]
fn calls_and_jumps_through_the_device() {
    let mut machine = Machine::long(code!("call [rdi + 8]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.gprs[RSP] = DATA + 0x100;
    machine.device.set(8, 0xffff_8000_1234_0000);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.rip, 0xffff_8000_1234_0000);
    let pushed = crate::guest_memory::GuestMemory::read_u64(
        &machine.ram,
        vmx::addr::GuestPhysAddr(DATA + 0xf8),
    );
    assert_eq!(pushed, Ok(CODE + 3));

    let mut machine = Machine::long(code!("jmp [rdi + 8]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.device.set(8, 0x0001_0000_0000_0000);
    assert_eq!(machine.fault().vector, ExceptionVector::GeneralProtection);
}

#[test]
fn a_selector_is_stored_as_16_bits() {
    let mut machine = Machine::long(code!("mov [rdi], ss"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.emulate().unwrap();
    assert_eq!(machine.device.seen, [Seen::Write(0, 2, 0x10)]);
}

#[test]
fn a_16_bit_stack_wraps_and_keeps_the_upper_half() {
    let mut machine = Machine::real(code!(".code16", "push word ptr fs:[4]"));
    machine.cpu.segments[SegmentRegister::Ss as usize].base = DATA - 0xfff0;
    machine.cpu.gprs[RSP] = 0x1234_0000;
    machine.device.set(4, 0xbeef);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RSP], 0x1234_fffe);
    let mut pushed = [0; 2];
    crate::guest_memory::GuestMemory::read(
        &machine.ram,
        vmx::addr::GuestPhysAddr(DATA + 0xe),
        &mut pushed,
    )
    .unwrap();
    assert_eq!(u16::from_le_bytes(pushed), 0xbeef);
}
