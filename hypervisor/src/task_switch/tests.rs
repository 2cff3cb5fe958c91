//! Task switches of a flat 32-bit guest without paging, and with it.

use core::cell::RefCell;

use vmx::addr::GuestPhysAddr;

use super::*;
use crate::emulate::{RAX, RSP, SegmentRegister as Encoded, SegmentRights};
use crate::guest_paging::PagingRegisters;
use crate::test_ram::TestRam;

const GDT: u64 = 0x1000;
const OLD_TSS: u64 = 0x2000;
/// Across a page border.
const NEW_TSS: u64 = 0x3fe0;
const STACK: u32 = 0x8000;
const DIRECTORY: u64 = 0x9000;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const OLD: u16 = 0x18;
const NEW: u16 = 0x20;
const LDT: u16 = 0x28;
const USER_DATA: u16 = 0x30 | 3;
const CONFORMING: u16 = 0x38 | 3;
const ABSENT: u16 = 0x40;

const EFLAGS_NT: u32 = 1 << 14;
const BUSY_TSS: u8 = 0x8b;
const FREE_TSS: u8 = 0x89;

struct TestCpu {
    gprs: [u64; 16],
    rip: u64,
    rflags: u64,
    segments: [Segment; 8],
    cr0: u64,
    cr3: u64,
    cr4: u64,
    pdptes: [u64; 4],
    task_entries: RefCell<u32>,
}

impl PagingRegisters for TestCpu {
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn cr3(&self) -> u64 {
        self.cr3
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn efer(&self) -> u64 {
        0
    }
    fn pdpte(&self, index: usize) -> u64 {
        self.pdptes[index]
    }
    fn physical_address_bits(&self) -> u32 {
        40
    }
}

impl Cpu for TestCpu {
    fn gpr(&self, index: usize) -> u64 {
        self.gprs[index]
    }
    fn set_gpr(&mut self, index: usize, value: u64) {
        self.gprs[index] = value;
    }
    fn xmm(&self, _: usize) -> u128 {
        0
    }
    fn set_xmm(&mut self, _: usize, _: u128) {}
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }
    fn cpl(&self) -> u8 {
        self.segments[SegmentRegister::Ss as usize].rights.dpl()
    }
    fn segment_selector(&self, segment: Encoded) -> u16 {
        self.segments[segment as usize].selector
    }
    fn segment_base(&self, segment: Encoded) -> u64 {
        self.segments[segment as usize].base
    }
    fn segment_limit(&self, segment: Encoded) -> u32 {
        self.segments[segment as usize].limit
    }
    fn segment_rights(&self, segment: Encoded) -> SegmentRights {
        SegmentRights(self.segments[segment as usize].rights.bits())
    }
}

impl TaskCpu for TestCpu {
    fn gdtr(&self) -> DescriptorTable {
        DescriptorTable {
            base: GDT,
            limit: 0x47,
        }
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = segment;
    }
    fn set_cr3(&mut self, cr3: u64, pdptes: Option<[u64; 4]>) {
        self.cr3 = cr3;
        self.pdptes = pdptes.unwrap_or(self.pdptes);
    }
    fn enter_task(&mut self, rip: u64, rflags: u64) {
        self.rip = rip;
        self.rflags = rflags;
        *self.task_entries.borrow_mut() += 1;
    }
}

struct Machine {
    cpu: TestCpu,
    ram: TestRam,
}

fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24) << 56
}

impl Machine {
    fn new() -> Self {
        let ram = TestRam::new(0x1_0000);
        for (selector, value) in [
            (CODE, descriptor(0, 0xf_ffff, 0x9b, 0xc)),
            (DATA, descriptor(0, 0xf_ffff, 0x92, 0xc)),
            (OLD, descriptor(OLD_TSS, 103, BUSY_TSS.into(), 0)),
            (NEW, descriptor(NEW_TSS, 103, FREE_TSS.into(), 0)),
            (LDT, descriptor(GDT, 0x47, 0x82, 0)),
            (USER_DATA, descriptor(0, 0xf_ffff, 0xf3, 0xc)),
            (CONFORMING, descriptor(0, 0xf_ffff, 0x9f, 0xc)),
            (ABSENT, descriptor(0, 0xf_ffff, 0x13, 0xc)),
        ] {
            ram.write_u64(GDT + u64::from(selector & !7), value);
        }
        let flat = |selector, rights| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            rights: AccessRights::from_bits_retain(rights),
        };
        let mut segments = [flat(DATA, 0xc093); 8];
        segments[SegmentRegister::Cs as usize] = flat(CODE, 0xc09b);
        segments[SegmentRegister::Ldtr as usize] = flat(0, 1 << 16);
        segments[SegmentRegister::Tr as usize] = Segment {
            selector: OLD,
            base: OLD_TSS,
            limit: 103,
            rights: AccessRights::from_bits_retain(BUSY_TSS.into()),
        };
        let machine = Self {
            cpu: TestCpu {
                gprs: core::array::from_fn(|index| 0x100 + index as u64),
                rip: 0x4000,
                rflags: 0x202,
                segments,
                cr0: 1,
                cr3: 0,
                cr4: 0,
                pdptes: [0; 4],
                task_entries: RefCell::new(0),
            },
            ram,
        };
        for (offset, value) in [
            (0x1c, DIRECTORY as u32),
            (0x20, 0x5000),
            (0x24, 2),
            (0x28, 0xaaaa),
            (0x38, STACK),
            (0x48, DATA.into()),
            (0x4c, CODE.into()),
            (0x50, DATA.into()),
            (0x54, DATA.into()),
        ] {
            machine.ram.write_u32(NEW_TSS + offset, value);
        }
        machine
    }

    fn switch(&mut self, cause: Cause) -> Result<Switched, SwitchError> {
        let request = Request {
            selector: NEW,
            cause,
            return_rip: 0x4007,
        };
        switch_task(&mut self.cpu, &self.ram, &request)
    }

    /// Switches, and expects a fault with this vector and error code.
    fn expect_fault(&mut self, cause: Cause, vector: u8, code: u16) {
        let fault = Fault {
            vector,
            error_code: Some(code.into()),
            cr2: None,
        };
        assert_eq!(self.switch(cause), Err(SwitchError::Fault(fault)));
    }

    fn access_byte(&self, selector: u16) -> u8 {
        let mut byte = [0];
        let address = GuestPhysAddr(GDT + u64::from(selector & !7) + 5);
        self.ram.read(address, &mut byte).unwrap();
        byte[0]
    }

    fn set_access_byte(&self, selector: u16, access: u8) {
        let address = GuestPhysAddr(GDT + u64::from(selector & !7) + 5);
        self.ram.write(address, &[access]).unwrap();
    }

    fn read(&self, address: u64) -> u32 {
        self.ram.read_u32(GuestPhysAddr(address)).unwrap()
    }

    fn selector(&self, register: SegmentRegister) -> u16 {
        self.cpu.segment(register).selector
    }
}

#[test]
fn a_call_saves_the_old_task_and_runs_the_new_one_nested() {
    let mut machine = Machine::new();
    let switched = machine.switch(Cause::Call).unwrap();
    assert!(!switched.debug_trap);
    assert_eq!(machine.read(OLD_TSS + 0x20), 0x4007, "EIP is behind CALL");
    assert_eq!(machine.read(OLD_TSS + 0x24), 0x202);
    assert_eq!(machine.read(OLD_TSS + 0x28), 0x100, "EAX");
    assert_eq!(machine.read(OLD_TSS + 0x44), 0x107, "EDI");
    assert_eq!(machine.read(OLD_TSS + 0x4c), u32::from(CODE));
    assert_eq!(
        machine.read(NEW_TSS) as u16,
        OLD,
        "the back link leads home"
    );
    assert_eq!(
        (machine.access_byte(OLD), machine.access_byte(NEW)),
        (BUSY_TSS, BUSY_TSS)
    );
    assert_eq!(machine.cpu.rip, 0x5000);
    assert_eq!(machine.cpu.rflags, u64::from(EFLAGS_NT | 2));
    assert_eq!(machine.cpu.gprs[RAX], 0xaaaa);
    assert_eq!(machine.cpu.gprs[RSP], u64::from(STACK));
    assert_eq!(machine.selector(SegmentRegister::Tr), NEW);
    assert_eq!(*machine.cpu.task_entries.borrow(), 1);
    assert!(
        machine
            .cpu
            .segment(SegmentRegister::Fs)
            .rights
            .contains(AccessRights::UNUSABLE)
    );
    assert_eq!(
        machine.access_byte(DATA),
        0x93,
        "loading a segment sets its accessed flag"
    );
}

#[test]
fn a_jump_frees_the_old_task_and_nests_nothing() {
    let mut machine = Machine::new();
    machine.switch(Cause::Jump).unwrap();
    assert_eq!(
        (machine.access_byte(OLD), machine.access_byte(NEW)),
        (FREE_TSS, BUSY_TSS)
    );
    assert_eq!(machine.cpu.rflags, 2);
    assert_eq!(machine.read(NEW_TSS) as u16, 0, "no back link");
}

#[test]
fn iret_goes_back_to_a_busy_task_and_ends_the_nesting() {
    let mut machine = Machine::new();
    machine.cpu.rflags |= u64::from(EFLAGS_NT);
    machine.expect_fault(Cause::Iret, vector::INVALID_TSS, NEW);
    machine.set_access_byte(NEW, BUSY_TSS);
    machine.switch(Cause::Iret).unwrap();
    assert_eq!(
        machine.read(OLD_TSS + 0x24),
        0x202,
        "NT is off in the image"
    );
    assert_eq!(
        (machine.access_byte(OLD), machine.access_byte(NEW)),
        (FREE_TSS, BUSY_TSS)
    );
}

#[test]
fn an_event_leaves_its_error_code_on_the_new_stack() {
    let mut machine = Machine::new();
    let cause = Cause::Event {
        error_code: Some(0x1234),
        external: true,
    };
    machine.switch(cause).unwrap();
    assert_eq!(machine.cpu.gprs[RSP], u64::from(STACK) - 4);
    assert_eq!(machine.read(u64::from(STACK) - 4), 0x1234);
    assert_eq!(
        machine.cpu.rflags & u64::from(EFLAGS_NT),
        u64::from(EFLAGS_NT)
    );
}

#[test]
fn an_error_code_that_the_stack_has_no_room_for_is_a_stack_fault() {
    let mut machine = Machine::new();
    machine
        .ram
        .write_u64(GDT + u64::from(DATA), descriptor(0, 0x10, 0x93, 4));
    let cause = Cause::Event {
        error_code: Some(0),
        external: true,
    };
    machine.expect_fault(cause, vector::STACK_FAULT, 1);
    assert_eq!(
        machine.selector(SegmentRegister::Tr),
        NEW,
        "in the new task"
    );
}

#[test]
fn a_fault_before_the_commit_changes_nothing() {
    let mut machine = Machine::new();
    machine.set_access_byte(NEW, 0x09);
    let before = machine.ram.snapshot();
    machine.expect_fault(Cause::Call, vector::SEGMENT_NOT_PRESENT, NEW);
    machine.set_access_byte(NEW, BUSY_TSS);
    machine.expect_fault(Cause::Jump, vector::GENERAL_PROTECTION, NEW);
    let event = Cause::Event {
        error_code: None,
        external: true,
    };
    machine.expect_fault(event, vector::GENERAL_PROTECTION, NEW | 1);
    machine.set_access_byte(NEW, 0x09);
    assert_eq!(machine.ram.snapshot(), before);
    machine
        .ram
        .write_u64(GDT + u64::from(NEW), descriptor(NEW_TSS, 102, 0x89, 0));
    machine.expect_fault(Cause::Call, vector::INVALID_TSS, NEW);
    assert_eq!(machine.cpu.rip, 0x4000);
    assert_eq!(*machine.cpu.task_entries.borrow(), 0);
}

#[test]
fn the_new_tasks_selectors_are_checked_as_the_manual_says() {
    // SDM vol. 3A, table 9-1.
    let (ts, np, ss) = (
        vector::INVALID_TSS,
        vector::SEGMENT_NOT_PRESENT,
        vector::STACK_FAULT,
    );
    for (offset, selector, vector, why) in [
        (0x60, DATA, ts, "LDTR: no LDT"),
        (0x60, 4, ts, "LDTR: in the LDT"),
        (0x4c, 0, ts, "CS: null"),
        (0x4c, DATA, ts, "CS: data"),
        (0x4c, CODE | 3, ts, "CS: RPL is not DPL"),
        (0x4c, 0x48, ts, "CS: behind the table"),
        (0x50, 0, ts, "SS: null"),
        (0x50, CODE, ts, "SS: not writable"),
        (0x50, USER_DATA, ts, "SS: not the CPL"),
        (0x50, ABSENT, ss, "SS: absent"),
        (0x48, OLD, ts, "ES: a system segment"),
        (0x54, ABSENT, np, "DS: absent"),
        (0x58, DATA | 4, ts, "FS: there is no LDT"),
    ] {
        let mut machine = Machine::new();
        machine.ram.write_u32(NEW_TSS + offset, selector.into());
        let fault = Fault {
            vector,
            error_code: Some(u32::from(selector & !3)),
            cr2: None,
        };
        assert_eq!(
            machine.switch(Cause::Call),
            Err(SwitchError::Fault(fault)),
            "{why}"
        );
        assert_eq!(
            machine.selector(SegmentRegister::Tr),
            NEW,
            "{why}: the fault is the new task's"
        );
        assert_eq!(machine.cpu.rip, 0x5000, "{why}");
        for register in [SegmentRegister::Cs, SegmentRegister::Ss] {
            let rights = machine.cpu.segment(register).rights;
            assert!(
                rights.contains(AccessRights::PRESENT),
                "{why}: a VCPU always has {register:?}"
            );
        }
    }
}

#[test]
fn conforming_code_takes_the_privilege_of_its_selector() {
    let mut machine = Machine::new();
    for (offset, selector) in [
        (0x48, USER_DATA),
        (0x4c, CONFORMING),
        (0x50, USER_DATA),
        (0x54, USER_DATA),
    ] {
        machine.ram.write_u32(NEW_TSS + offset, selector.into());
    }
    machine.switch(Cause::Call).unwrap();
    assert_eq!(machine.cpu.cpl(), 3);
    assert_eq!(machine.selector(SegmentRegister::Cs), CONFORMING);
}

#[test]
fn an_ldt_is_loaded_before_the_selectors_that_need_it() {
    let mut machine = Machine::new();
    machine.ram.write_u32(NEW_TSS + 0x60, LDT.into());
    machine
        .ram
        .write_u32(NEW_TSS + 0x54, u32::from(DATA) | 1 << 2);
    machine.switch(Cause::Call).unwrap();
    assert_eq!(machine.selector(SegmentRegister::Ldtr), LDT);
    assert_eq!(machine.selector(SegmentRegister::Ds), DATA | 1 << 2);
}

#[test]
fn a_virtual_8086_task_has_real_mode_segments() {
    let mut machine = Machine::new();
    machine.ram.write_u32(NEW_TSS + 0x24, 0x2_0002);
    machine.ram.write_u32(NEW_TSS + 0x4c, 0x4200);
    machine.switch(Cause::Jump).unwrap();
    let code = machine.cpu.segment(SegmentRegister::Cs);
    assert_eq!((code.base, code.limit), (0x4_2000, 0xffff));
    assert_eq!(code.rights.bits(), 0xf3);
    assert_eq!(machine.cpu.cpl(), 3);
}

#[test]
fn a_tss_of_16_bits_holds_half_of_everything() {
    let mut machine = Machine::new();
    machine
        .ram
        .write_u64(GDT + u64::from(NEW), descriptor(NEW_TSS, 43, 0x81, 0));
    for offset in (0..0x2c).step_by(4) {
        machine.ram.write_u32(NEW_TSS + offset, 0);
    }
    let word = |offset: u64, value: u16| {
        let address = GuestPhysAddr(NEW_TSS + offset);
        machine.ram.write(address, &value.to_le_bytes()).unwrap();
    };
    for (offset, value) in [
        (0x0e, 0x6000),
        (0x12, 0xbbbb),
        (0x1a, 0x7000),
        (0x22, DATA),
        (0x24, CODE),
        (0x26, DATA),
        (0x28, DATA),
    ] {
        word(offset, value);
    }
    let cause = Cause::Event {
        error_code: Some(0x55),
        external: true,
    };
    machine.switch(cause).unwrap();
    assert_eq!(machine.cpu.rip, 0x6000);
    assert_eq!(machine.cpu.gprs[RAX], 0xbbbb);
    assert_eq!(machine.cpu.gprs[RSP], 0x6ffe, "a word was pushed");
    assert_eq!(machine.selector(SegmentRegister::Gs), 0);

    // And back: the task of 16 bits saves its half.
    machine.cpu.gprs[RAX] = 0xdead_cafe;
    machine.cpu.rip = 0x6010;
    let request = Request {
        selector: OLD,
        cause: Cause::Iret,
        return_rip: 0x6012,
    };
    switch_task(&mut machine.cpu, &machine.ram, &request).unwrap();
    assert_eq!(machine.read(NEW_TSS + 0x0e) as u16, 0x6012);
    assert_eq!(machine.read(NEW_TSS + 0x12) as u16, 0xcafe);
    assert_eq!(machine.cpu.gprs[RAX], 0x100);
    assert_eq!(machine.access_byte(NEW), 0x81);
}

#[test]
fn paging_switches_with_the_task_and_a_page_fault_before_it_changes_nothing() {
    let mut machine = Machine::new();
    // One page of 4 MiB in both address spaces.
    const OLD_DIRECTORY: u64 = 0xa000;
    machine.ram.write_u32(OLD_DIRECTORY, 0x83);
    machine.ram.write_u32(DIRECTORY, 0x83);
    machine.cpu.cr0 |= 1 << 31;
    machine.cpu.cr4 = 1 << 4;
    machine.cpu.cr3 = OLD_DIRECTORY;
    machine.switch(Cause::Call).unwrap();
    assert_eq!(machine.cpu.cr3, DIRECTORY);

    let mut machine = Machine::new();
    machine.cpu.cr0 |= 1 << 31;
    machine.cpu.cr4 = 1 << 4;
    machine.cpu.cr3 = OLD_DIRECTORY;
    machine.ram.write_u32(OLD_DIRECTORY, 0x83);
    // The new TSS lies where nothing is mapped.
    machine
        .ram
        .write_u64(GDT + u64::from(NEW), descriptor(0x80_0000, 103, 0x89, 0));
    let fault = Fault {
        vector: vector::PAGE_FAULT,
        error_code: Some(0),
        cr2: Some(0x80_0000),
    };
    assert_eq!(machine.switch(Cause::Call), Err(SwitchError::Fault(fault)));
    assert_eq!(machine.access_byte(NEW), FREE_TSS);
    assert_eq!(machine.selector(SegmentRegister::Tr), OLD);
}

#[test]
fn pae_tasks_bring_their_pdptes_and_bad_ones_are_refused() {
    let pae = || {
        let mut machine = Machine::new();
        machine.cpu.cr0 |= 1 << 31;
        machine.cpu.cr4 = 1 << 5;
        machine.cpu.pdptes = [0xb001, 0, 0, 0];
        machine.ram.write_u64(0xb000, 0x83);
        machine
    };
    let mut machine = pae();
    machine.ram.write_u64(DIRECTORY, 0xb001);
    machine.ram.write_u64(DIRECTORY + 24, 0xc001);
    machine.switch(Cause::Call).unwrap();
    assert_eq!(machine.cpu.pdptes, [0xb001, 0, 0, 0xc001]);

    let mut machine = pae();
    machine.ram.write_u64(DIRECTORY, 0xb003);
    machine.expect_fault(Cause::Call, vector::INVALID_TSS, NEW);
    assert_eq!(machine.access_byte(NEW), FREE_TSS);
}

#[test]
fn the_t_flag_asks_for_a_debug_trap() {
    let mut machine = Machine::new();
    machine.ram.write_u32(NEW_TSS + 0x64, 1);
    assert_eq!(
        machine.switch(Cause::Call),
        Ok(Switched { debug_trap: true })
    );
}
