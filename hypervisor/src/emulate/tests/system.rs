//! Loads of segment registers and of the system's registers, and far branches, by what device memory says.

use arch::ExceptionVector;
use vmx::addr::GuestPhysAddr;

use super::machine::{CODE, CODE_RAM, DATA, DEVICE, DEVICE_GPA, Machine, Seen, TestSegment, code};
use crate::emulate::{
    Completed, DescriptorTable, Fault, RAX, RDI, RSP, SegmentRegister as Register,
};
use crate::guest_memory::GuestMemory;

/// The GDT, in RAM, with an LDT behind it.
const GDT: u64 = DATA + 0x8000;
const LDT: u64 = DATA + 0x9000;

const CODE_64: u16 = 0x08;
const WRITABLE: u16 = 0x10;
const USER_WRITABLE: u16 = 0x18;
const READ_ONLY: u16 = 0x20;
const ABSENT: u16 = 0x28;
const CODE_32: u16 = 0x30;
const ABSENT_CODE: u16 = 0x38;
/// Of 16 bytes in 64-bit mode.
const TSS: u16 = 0x40;
const LDT_DESCRIPTOR: u16 = 0x50;
const BUSY_TSS: u16 = 0x60;
const CONFORMING: u16 = 0x70;
const LONG_AND_BIG: u16 = 0x78;
const CALL_GATE: u16 = 0x80;
const END: u16 = 0x90;

/// The descriptors, not yet accessed, and with bases where they count.
const DESCRIPTORS: [(u16, u64); 16] = [
    (CODE_64, 0x00af_9a00_0000_ffff),
    (WRITABLE, 0x12cf_9234_5678_ffff),
    (USER_WRITABLE, 0x00cf_f200_0000_ffff),
    (READ_ONLY, 0x00cf_9000_0000_ffff),
    (ABSENT, 0x00cf_1200_0000_ffff),
    (CODE_32, 0x00cf_9a00_0000_ffff),
    (ABSENT_CODE, 0x00af_1a00_0000_ffff),
    (TSS, 0x1200_8934_5678_0067),
    (TSS + 8, 0x0000_0000_ffff_8000),
    (LDT_DESCRIPTOR, 0x1200_8234_5678_000f),
    (LDT_DESCRIPTOR + 8, 0x0000_0000_ffff_8000),
    (BUSY_TSS, 0x1200_8b34_5678_0067),
    (CONFORMING, 0x00af_9e00_0000_ffff),
    (LONG_AND_BIG, 0x00ef_9a00_0000_ffff),
    (CALL_GATE, 0x0000_8c00_0008_0000),
    (CALL_GATE + 8, 0),
];

fn fault(vector: ExceptionVector, code: u16) -> Fault {
    Fault {
        vector,
        error_code: Some(code.into()),
        cr2: None,
    }
}

/// Puts the descriptors into `machine`'s GDT, and RDI on the device.
fn with_descriptors(mut machine: Machine) -> Machine {
    for (selector, descriptor) in DESCRIPTORS {
        machine.ram.write_u64(GDT + u64::from(selector), descriptor);
    }
    machine.cpu.gdtr = DescriptorTable {
        base: GDT,
        limit: u32::from(END) - 1,
    };
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.gprs[RSP] = DATA + 0x100;
    machine
}

/// 64-bit code that finds `value` on the device.
fn long(code: &'static [u8], value: u64) -> Machine {
    let mut machine = with_descriptors(Machine::long(code));
    machine.device.set(0, value);
    machine
}

fn access_byte(machine: &Machine, selector: u16) -> u8 {
    let mut byte = [0];
    let address = GuestPhysAddr(GDT + u64::from(selector) + 5);
    machine.ram.read(address, &mut byte).unwrap();
    byte[0]
}

#[test]
fn a_segment_register_is_loaded_with_its_descriptor_which_is_then_accessed() {
    let mut machine = long(code!("mov fs, [rdi]"), WRITABLE.into());
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    let loaded = machine.cpu.segments[Register::Fs as usize];
    let expected = TestSegment {
        selector: WRITABLE,
        base: 0x1234_5678,
        limit: 0xffff_ffff,
        rights: 0xc093,
    };
    assert_eq!(loaded, expected);
    assert_eq!(access_byte(&machine, WRITABLE), 0x93);
    assert_eq!(machine.device.seen, [Seen::Read(0, 2)]);
    assert!(!machine.cpu.blocked_by_mov_ss);
}

#[test]
fn a_load_of_ss_keeps_events_off_for_an_instruction() {
    let mut machine = long(code!("mov ss, [rdi]"), WRITABLE.into());
    machine.emulate().unwrap();
    assert!(machine.cpu.blocked_by_mov_ss);
    assert_eq!(
        machine.cpu.segments[Register::Ss as usize].selector,
        WRITABLE
    );
}

#[test]
fn null_is_a_segment_for_data_and_for_the_stack_of_a_64_bit_kernel() {
    let mut machine = long(code!("mov ds, [rdi]"), 3);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.segments[Register::Ds as usize].rights, 1 << 16);
    let mut machine = long(code!("mov ss, [rdi]"), 0);
    machine.emulate().unwrap();
    let mut machine = long(code!("mov ss, [rdi]"), 3);
    assert_eq!(
        machine.fault(),
        fault(ExceptionVector::GeneralProtection, 0)
    );
}

#[test]
fn segments_that_do_not_fit_fault_with_their_selector() {
    use ExceptionVector::{GeneralProtection, SegmentNotPresent, Stack};
    let data = code!("mov es, [rdi]");
    let stack = code!("mov ss, [rdi]");
    let global_limit = END;
    for (code, selector, vector) in [
        (data, global_limit, GeneralProtection),
        (data, TSS, GeneralProtection),
        (data, ABSENT, SegmentNotPresent),
        (data, WRITABLE | 3, GeneralProtection),
        (data, WRITABLE | 4, GeneralProtection),
        (stack, READ_ONLY, GeneralProtection),
        (stack, CODE_64, GeneralProtection),
        (stack, USER_WRITABLE, GeneralProtection),
        (stack, WRITABLE | 1, GeneralProtection),
        (stack, ABSENT, Stack),
    ] {
        let mut machine = long(code, selector.into());
        assert_eq!(
            machine.fault(),
            fault(vector, selector & !3),
            "{selector:#x}"
        );
    }
}

#[test]
fn the_local_table_is_used_for_selectors_that_name_it() {
    let mut machine = long(code!("mov gs, [rdi]"), 0xc);
    machine.ram.write_u64(LDT + 8, 0x00cf_9312_3456_ffff);
    machine.cpu.segments[Register::Ldtr as usize] = TestSegment {
        selector: LDT_DESCRIPTOR,
        base: LDT,
        limit: 0xf,
        rights: 0x82,
    };
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.segments[Register::Gs as usize].base, 0x12_3456);
}

#[test]
fn real_mode_has_bases_instead_of_descriptors() {
    let mut machine = Machine::real(code!(".code16", "mov es, fs:[8]"));
    machine.device.set(8, 0xb800);
    machine.emulate().unwrap();
    let es = machine.cpu.segments[Register::Es as usize];
    assert_eq!((es.selector, es.base, es.limit), (0xb800, 0xb_8000, 0xffff));
}

#[test]
fn a_far_pointer_is_loaded_into_both_registers() {
    let mut machine = long(code!("lss eax, [rdi]"), 0x0010_8765_4321);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RAX], 0x8765_4321);
    assert_eq!(
        machine.cpu.segments[Register::Ss as usize].selector,
        WRITABLE
    );
    assert_eq!(machine.device.seen, [Seen::Read(0, 4), Seen::Read(4, 2)]);

    let mut machine = long(code!("lfs rax, [rdi]"), 0x1122_3344_5566_7788);
    machine.device.set(8, ABSENT.into());
    assert_eq!(
        machine.fault(),
        fault(ExceptionVector::SegmentNotPresent, ABSENT)
    );
}

#[test]
fn a_segment_is_popped_from_a_stack_on_the_device() {
    // Assemblers have a prefix here.
    let mut machine = long(&[0x0f, 0xa1], WRITABLE.into());
    machine.cpu.gprs[RSP] = DEVICE;
    machine.emulate().unwrap();
    assert_eq!(
        machine.cpu.segments[Register::Fs as usize].selector,
        WRITABLE
    );
    assert_eq!(machine.cpu.gprs[RSP], DEVICE + 8);
}

#[test]
fn ltr_takes_a_free_tss_of_16_bytes_and_makes_it_busy() {
    let mut machine = long(code!("ltr word ptr [rdi]"), TSS.into());
    assert_eq!(machine.emulate(), Ok(Completed::Retired));
    let expected = TestSegment {
        selector: TSS,
        base: 0xffff_8000_1234_5678,
        limit: 0x67,
        rights: 0x8b,
    };
    assert_eq!(machine.cpu.segments[Register::Tr as usize], expected);
    assert_eq!(access_byte(&machine, TSS), 0x8b);
}

#[test]
fn lldt_takes_an_ldt_or_nothing() {
    let mut machine = long(code!("lldt word ptr [rdi]"), LDT_DESCRIPTOR.into());
    machine.emulate().unwrap();
    let ldtr = machine.cpu.segments[Register::Ldtr as usize];
    assert_eq!(ldtr.base, 0xffff_8000_1234_5678);
    assert_eq!((ldtr.limit, ldtr.rights), (0xf, 0x82));

    let mut machine = long(code!("lldt word ptr [rdi]"), 0);
    machine.emulate().unwrap();
    assert_eq!(
        machine.cpu.segments[Register::Ldtr as usize].rights,
        1 << 16
    );
}

#[test]
fn system_segments_that_do_not_fit_fault() {
    use ExceptionVector::GeneralProtection;
    let task = code!("ltr word ptr [rdi]");
    let local = code!("lldt word ptr [rdi]");
    for (code, selector, error_code) in [
        (task, 0, 0),
        (task, TSS | 4, TSS | 4),
        (task, BUSY_TSS, BUSY_TSS),
        (task, LDT_DESCRIPTOR, LDT_DESCRIPTOR),
        (task, CODE_64, CODE_64),
        (task, END - 8, END - 8),
        (local, TSS, TSS),
        (local, LDT_DESCRIPTOR | 4, LDT_DESCRIPTOR | 4),
    ] {
        let mut machine = long(code, selector.into());
        let expected = fault(GeneralProtection, error_code);
        assert_eq!(machine.fault(), expected, "{selector:#x}");
    }
    // The base of the upper half is not canonical.
    let mut machine = long(task, TSS.into());
    machine.ram.write_u64(GDT + u64::from(TSS) + 8, 0x8000);
    assert_eq!(machine.fault(), fault(GeneralProtection, TSS));
    let mut machine = long(task, TSS.into());
    machine.cpu.cpl = 3;
    assert_eq!(machine.fault(), fault(GeneralProtection, 0));
    let mut machine = Machine::real(code!(".code16", "ltr word ptr fs:[8]"));
    assert_eq!(
        machine.fault(),
        Fault::without_code(ExceptionVector::InvalidOpcode)
    );
}

#[test]
fn protected_mode_has_system_segments_of_8_bytes() {
    let mut machine = with_descriptors(Machine::protected(code!(".code32", "ltr word ptr [edi]")));
    machine.cpu.gprs[RDI] = DEVICE_GPA;
    machine.device.set(0, TSS.into());
    machine.emulate().unwrap();
    assert_eq!(
        machine.cpu.segments[Register::Tr as usize].base,
        0x1234_5678
    );
}

#[test]
fn selectors_and_status_are_stored_as_16_bits() {
    for (code, value) in [
        (code!("sldt word ptr [rdi]"), 0x58),
        (code!("str word ptr [rdi]"), 0x68),
        (code!("smsw word ptr [rdi]"), 0x31),
    ] {
        let mut machine = long(code, 0);
        machine.cpu.cr0 = 0x8001_0031;
        machine.cpu.segments[Register::Ldtr as usize].selector = 0x58;
        machine.cpu.segments[Register::Tr as usize].selector = 0x68;
        machine.emulate().unwrap();
        assert_eq!(machine.device.seen, [Seen::Write(0, 2, value)]);
        // Not in user mode, where CR4.UMIP keeps it from that.
        machine.cpu.rip = CODE;
        machine.cpu.cpl = 3;
        machine.device.seen.clear();
        machine.emulate().unwrap();
        machine.cpu.rip = CODE;
        machine.cpu.cr4 |= 1 << 11;
        machine.device.seen.clear();
        assert_eq!(
            machine.fault(),
            fault(ExceptionVector::GeneralProtection, 0)
        );
    }
}

#[test]
fn lmsw_sets_protected_mode_but_does_not_clear_it() {
    let mut machine = long(code!("lmsw word ptr [rdi]"), 0xfff0 | 0xc);
    machine.cpu.cr0 = 0x8001_0033;
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.cr0, 0x8001_003d);
    machine.cpu.rip = CODE;
    machine.cpu.cpl = 3;
    assert_eq!(
        machine.fault(),
        fault(ExceptionVector::GeneralProtection, 0)
    );
}

#[test]
fn table_registers_are_loaded_and_stored_with_ten_bytes_in_64_bit_mode() {
    let mut machine = long(code!("lgdt [rdi]"), 0x5678_9abc_def0_01ff);
    machine.device.set(8, 0xffff);
    assert_eq!(
        machine.fault(),
        fault(ExceptionVector::GeneralProtection, 0),
        "not canonical"
    );
    machine.device.set(0, 0x0000_1234_5678_01ff);
    machine.device.set(8, 0);
    machine.emulate().unwrap();
    let table = DescriptorTable {
        base: 0x1234_5678,
        limit: 0x1ff,
    };
    assert_eq!(machine.cpu.gdtr, table);

    let mut machine = long(code!("lidt [rdi]"), 0x8000_1234_5678_01ff);
    machine.device.set(8, 0xffff);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.idtr.base, 0xffff_8000_1234_5678);

    let mut machine = long(code!("sidt [rdi]"), 0);
    machine.cpu.idtr = DescriptorTable {
        base: 0xffff_8000_1234_5678,
        limit: 0xfff,
    };
    machine.emulate().unwrap();
    assert_eq!(machine.device.get(0), 0x8000_1234_5678_0fff);
    assert_eq!(machine.device.get(8), 0xffff);
}

#[test]
fn a_table_register_of_16_bit_code_has_a_base_of_24_bits() {
    let mut machine = Machine::real(code!(".code16", "lgdt fs:[0]"));
    machine.device.set(0, 0x8765_4321_00ff);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gdtr.base, 0x65_4321);
    let mut machine = Machine::protected(code!(".code32", "lgdt [edi]"));
    machine.cpu.gprs[RDI] = DEVICE_GPA;
    machine.device.set(0, 0x8765_4321_00ff);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gdtr.base, 0x8765_4321);
}

#[test]
fn far_jumps_go_to_other_code_of_the_same_privilege() {
    let mut machine = long(code!("jmp fword ptr [rdi]"), 0x0030_0012_3456);
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.rip, 0x12_3456);
    let cs = machine.cpu.segments[Register::Cs as usize];
    assert_eq!((cs.selector, cs.rights), (CODE_32, 0xc09b));
    assert_eq!(access_byte(&machine, CODE_32), 0x9b);

    let mut machine = long(code!("rex64 jmp fword ptr [rdi]"), 0xffff_8000_0000_1000);
    machine.device.set(8, CONFORMING.into());
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.rip, 0xffff_8000_0000_1000);
    assert_eq!(
        machine.cpu.segments[Register::Cs as usize].selector,
        CONFORMING
    );
}

#[test]
fn far_calls_leave_the_way_back_on_the_stack() {
    let mut machine = long(code!("call fword ptr [rdi]"), 0x0008_0012_3456);
    machine.cpu.segments[Register::Cs as usize].selector = 0x33;
    let length = code!("call fword ptr [rdi]").len() as u64;
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.gprs[RSP], DATA + 0xf8);
    let pushed = machine.ram.read_u64(GuestPhysAddr(DATA + 0xf8));
    assert_eq!(pushed, Ok(0x33 << 32 | (CODE + length)));
}

#[test]
fn far_branches_that_are_not_allowed_fault_and_push_nothing() {
    use ExceptionVector::{GeneralProtection, SegmentNotPresent};
    let code = code!("call fword ptr [rdi]");
    for (selector, vector, error_code) in [
        (0, GeneralProtection, 0),
        (END, GeneralProtection, END),
        (WRITABLE, GeneralProtection, WRITABLE),
        (CODE_64 | 3, GeneralProtection, CODE_64),
        (LONG_AND_BIG, GeneralProtection, LONG_AND_BIG),
        (ABSENT_CODE, SegmentNotPresent, ABSENT_CODE),
    ] {
        let mut machine = long(code, u64::from(selector) << 32 | 0x1000);
        let expected = fault(vector, error_code);
        assert_eq!(machine.fault(), expected, "{selector:#x}");
    }
    let mut machine = long(code, u64::from(CODE_64) << 32 | 0x1000);
    machine.cpu.gprs[RSP] = 8;
    let fault = machine.fault();
    assert_eq!(
        fault.vector,
        ExceptionVector::Page,
        "no room for the way back"
    );
    assert_eq!(machine.device.seen, []);
    // Through a gate it would be another privilege, or another stack.
    let mut machine = long(code, u64::from(CALL_GATE) << 32);
    let result = machine.emulate();
    assert!(
        matches!(result, Err(crate::emulate::EmulationError::Unsupported(_))),
        "{result:?}"
    );
}

#[test]
fn far_branches_in_real_mode_go_by_paragraphs() {
    let mut machine = Machine::real(code!(".code16", "jmp dword ptr fs:[0]"));
    // `dword` is what assemblers call m16:16 here.
    machine.device.set(0, 0xf000_fff0);
    machine
        .ram
        .write(GuestPhysAddr(CODE_RAM), &[0x64, 0xff, 0x2e, 0, 0])
        .unwrap();
    machine.emulate().unwrap();
    assert_eq!(machine.cpu.rip, 0xfff0);
    let cs = machine.cpu.segments[Register::Cs as usize];
    assert_eq!((cs.selector, cs.base), (0xf000, 0xf_0000));
}

#[test]
fn a_descriptor_table_on_the_device_is_read_there() {
    let mut machine = with_descriptors(Machine::long(code!("mov fs, [rdi]")));
    machine.cpu.gprs[RDI] = DATA;
    machine.ram.write_u64(DATA, WRITABLE.into());
    machine.cpu.gdtr.base = DEVICE;
    machine
        .device
        .set(usize::from(WRITABLE), 0x12cf_9234_5678_ffff);
    machine.emulate().unwrap();
    assert_eq!(
        machine.device.seen,
        [Seen::Read(0x10, 8), Seen::Write(0x15, 1, 0x93)]
    );
}
