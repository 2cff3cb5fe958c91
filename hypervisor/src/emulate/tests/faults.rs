//! What faults, faults as on hardware, and leaves no trace.

use arch::ExceptionVector;

use super::machine::{
    BEFORE_DEVICE, CODE, CODE_RAM, DATA, DEVICE, KERNEL_PAGE, Machine, READ_ONLY_PAGE, code,
};
use crate::emulate::{EmulationError, Fault, RAX, RDI, RSI, RSP, Reason, SegmentRegister};

const fn page_fault(error_code: u32, address: u64) -> Fault {
    Fault {
        vector: ExceptionVector::Page,
        error_code: Some(error_code),
        cr2: Some(address),
    }
}

const fn fault(vector: ExceptionVector) -> Fault {
    Fault {
        vector,
        error_code: Some(0),
        cr2: None,
    }
}

#[test]
fn a_write_that_crosses_into_an_unmapped_page_writes_nothing() {
    let mut machine = Machine::long(code!("mov [rdi], rax"));
    machine.cpu.gprs[RDI] = DEVICE + 0x2000 - 4;
    assert_eq!(machine.fault(), page_fault(2, DEVICE + 0x2000));
}

#[test]
fn a_read_modify_write_needs_the_right_to_write_before_it_reads() {
    let mut machine = Machine::long(code!("add [rdi], eax"));
    machine.cpu.gprs[RDI] = READ_ONLY_PAGE;
    assert_eq!(machine.fault(), page_fault(3, READ_ONLY_PAGE));
    assert_eq!(machine.device.seen, []);
}

#[test]
fn the_device_is_not_read_when_the_destination_faults() {
    let mut machine = Machine::long(code!("movsq"));
    machine.cpu.gprs[RSI] = DEVICE;
    machine.cpu.gprs[RDI] = READ_ONLY_PAGE + 8;
    assert_eq!(machine.fault(), page_fault(3, READ_ONLY_PAGE + 8));
    let mut machine = Machine::long(code!("push qword ptr [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.gprs[RSP] = 8;
    assert_eq!(machine.fault(), page_fault(2, 0));
    assert_eq!(machine.device.seen, []);
}

#[test]
fn user_mode_does_not_reach_kernel_pages() {
    let mut machine = Machine::long(code!("mov eax, [rdi]"));
    machine.cpu.cpl = 3;
    machine.cpu.gprs[RDI] = KERNEL_PAGE + 8;
    assert_eq!(machine.fault(), page_fault(5, KERNEL_PAGE + 8));
}

#[test]
fn smap_keeps_the_kernel_from_user_pages_unless_ac_is_set() {
    let mut machine = Machine::long(code!("mov eax, [rdi]"));
    machine.cpu.cr4 |= 1 << 21;
    machine.cpu.gprs[RDI] = DEVICE;
    assert_eq!(machine.fault(), page_fault(1, DEVICE));
    machine.cpu.rflags |= 1 << 18;
    machine.emulate().unwrap();
}

#[test]
fn non_canonical_addresses() {
    let mut machine = Machine::long(code!("mov eax, [rdi]"));
    machine.cpu.gprs[RDI] = 0x8000_0000_0000;
    assert_eq!(machine.fault(), fault(ExceptionVector::GeneralProtection));
    machine.cpu.gprs[RDI] = 0x7fff_ffff_fffe;
    assert_eq!(machine.fault(), fault(ExceptionVector::GeneralProtection));
    let mut machine = Machine::long(code!("mov eax, [rsp]"));
    machine.cpu.gprs[RSP] = 0x8000_0000_0000;
    assert_eq!(machine.fault(), fault(ExceptionVector::Stack));
}

#[test]
fn segment_limits_and_types() {
    let code = code!(".code32", "mov es:[edi], eax");
    let es = SegmentRegister::Es as usize;
    let mut machine = Machine::protected(code);
    machine.cpu.gprs[RDI] = DATA;

    machine.cpu.segments[es].limit = (DATA + 2) as u32;
    assert_eq!(machine.fault(), fault(ExceptionVector::GeneralProtection));
    machine.cpu.segments[es].limit = (DATA + 3) as u32;
    machine.emulate().unwrap();

    machine.cpu.rip = CODE_RAM;
    machine.cpu.segments[es].rights = 0xc091; // read-only
    assert_eq!(machine.fault(), fault(ExceptionVector::GeneralProtection));
    machine.cpu.segments[es].rights = 0xc09b; // code
    assert_eq!(machine.fault(), fault(ExceptionVector::GeneralProtection));
    machine.cpu.segments[es].rights = 0x1_0000; // null
    assert_eq!(machine.fault(), fault(ExceptionVector::GeneralProtection));

    machine.cpu.segments[es].rights = 0xc097; // expand-down: above the limit
    machine.cpu.segments[es].limit = DATA as u32;
    assert_eq!(machine.fault(), fault(ExceptionVector::GeneralProtection));
    machine.cpu.segments[es].limit = (DATA - 1) as u32;
    machine.emulate().unwrap();
}

#[test]
fn alignment_is_checked_for_user_mode_that_asks_for_it() {
    let mut machine = Machine::long(code!("mov eax, [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE + 2;
    machine.cpu.cr0 |= 1 << 18;
    machine.cpu.rflags |= 1 << 18;
    machine.cpu.cpl = 3;
    assert_eq!(machine.fault(), fault(ExceptionVector::AlignmentCheck));
    machine.cpu.cpl = 0;
    machine.emulate().unwrap();
}

#[test]
fn code_whose_second_page_is_gone() {
    let code = code!("mov dword ptr [rdi + 0x300], 0x12345678");
    let mut machine = Machine::long(code);
    machine.cpu.gprs[RDI] = DEVICE;
    machine.cpu.efer |= 1 << 11;
    machine.end_page_after(code, 3);
    assert_eq!(machine.fault(), page_fault(0x10, CODE + 0x1000));
}

#[test]
fn what_has_no_implementation_is_named_and_changes_nothing() {
    let mut machine = Machine::long(code!("fnsave [rdi]"));
    machine.cpu.gprs[RDI] = DEVICE;
    let before = machine.cpu.clone();
    let Err(EmulationError::Unsupported(error)) = machine.emulate() else {
        panic!("supported");
    };
    assert_eq!(error.reason, Reason::NotImplemented);
    assert_eq!(
        std::format!("{error}"),
        "cannot emulate Fnsave_m108byte (bytes dd 37): \
         no implementation for device memory"
    );
    machine.cpu.vmreads.set(before.vmreads.get());
    assert_eq!(machine.cpu, before);
    assert_eq!(machine.device.seen, []);
}

#[test]
fn what_is_not_a_plain_operand_in_memory_does_not_slip_through() {
    let codes: [&[u8]; 8] = [
        code!("fnstenv [rdi]"),
        code!("fxrstor [rdi]"),
        code!("xsave [rdi]"),
        code!("vmaskmovps xmm0, xmm1, [rdi]"),
        code!("vgatherdps xmm0, [rdi + xmm1], xmm2"),
        code!("andn rsp, rax, [rdi]"),
        code!("enter 8, 1"),
        code!("retf"),
    ];
    for code in codes {
        let mut machine = Machine::long(code);
        machine.cpu.gprs[RDI] = DEVICE;
        let result = machine.emulate();
        assert!(
            matches!(result, Err(EmulationError::Unsupported(_))),
            "{code:02x?}: {result:?}"
        );
        assert_eq!(machine.device.seen, []);
        assert_eq!(machine.cpu.rip, CODE);
    }
}

#[test]
fn locked_access_to_ram_is_refused() {
    let mut machine = Machine::long(code!("xchg [rdi], eax"));
    machine.cpu.gprs[RDI] = BEFORE_DEVICE;
    machine.cpu.gprs[RAX] = 1;
    let Err(EmulationError::Unsupported(error)) = machine.emulate() else {
        panic!("supported");
    };
    assert_eq!(error.reason, Reason::LockedRam);
}
