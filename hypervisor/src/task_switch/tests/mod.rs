//! Task switches of a flat 32-bit guest without paging, and with it.

mod fuzz;
mod machine;

use std::vec;

use arch::ExceptionVector;
use proptest::prelude::*;
use vmx::addr::GuestPhysAddr;

use super::*;
use crate::emulate::{RAX, RSP};
use crate::guest_memory::GuestMemory;
use machine::*;

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
    machine.expect_fault(Cause::Iret, ExceptionVector::InvalidTss, NEW);
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
    machine.expect_fault(cause, ExceptionVector::Stack, 1);
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
    machine.expect_fault(Cause::Call, ExceptionVector::SegmentNotPresent, NEW);
    machine.set_access_byte(NEW, BUSY_TSS);
    machine.expect_fault(Cause::Jump, ExceptionVector::GeneralProtection, NEW);
    let event = Cause::Event {
        error_code: None,
        external: true,
    };
    machine.expect_fault(event, ExceptionVector::GeneralProtection, NEW | 1);
    machine.set_access_byte(NEW, 0x09);
    assert_eq!(machine.ram.snapshot(), before);
    machine
        .ram
        .write_u64(GDT + u64::from(NEW), descriptor(NEW_TSS, 102, 0x89, 0));
    machine.expect_fault(Cause::Call, ExceptionVector::InvalidTss, NEW);
    assert_eq!(machine.cpu.rip, 0x4000);
    assert_eq!(*machine.cpu.task_entries.borrow(), 0);
}

#[test]
fn the_new_tasks_selectors_are_checked_as_the_manual_says() {
    // SDM vol. 3A, table 8-1.
    let (ts, np, ss) = (
        ExceptionVector::InvalidTss,
        ExceptionVector::SegmentNotPresent,
        ExceptionVector::Stack,
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
        vector: ExceptionVector::Page,
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
    machine.expect_fault(Cause::Call, ExceptionVector::InvalidTss, NEW);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_guest_makes_a_switch_panic(
        cause in 0..4_u8,
        tss in any::<[u32; 26]>(),
        descriptors in any::<[u64; 9]>(),
        kept in any::<u16>(),
        old_limit: u32,
        old_base: u64,
        gdt_limit: u32,
        cr0: bool,
        cr4 in prop::sample::select(vec![0, 1 << 4, 1 << 5]),
    ) {
        let mut machine = Machine::new();
        // Some fields and descriptors stay as they should be, so that switches get far.
        for (index, value) in tss.into_iter().enumerate() {
            if kept >> (index % 16) & 1 == 0 {
                machine.ram.write_u32(NEW_TSS + 4 * index as u64, value);
            }
        }
        for (index, value) in descriptors.into_iter().enumerate() {
            if kept >> (15 - index) & 1 == 0 {
                machine.ram.write_u64(GDT + 8 * index as u64, value);
            }
        }
        if kept & 1 == 0 {
            machine.cpu.segments[SegmentRegister::Tr as usize].limit = old_limit;
            machine.cpu.segments[SegmentRegister::Tr as usize].base = old_base;
            machine.cpu.segments[SegmentRegister::Ldtr as usize].limit = gdt_limit;
            machine.cpu.segments[SegmentRegister::Ldtr as usize].rights = AccessRights::empty();
        }
        if cr0 && kept & 2 == 0 {
            machine.cpu.cr0 |= 1 << 31;
            machine.cpu.cr4 = cr4;
        }
        let cause = match cause {
            0 => Cause::Call,
            1 => Cause::Jump,
            2 => Cause::Iret,
            _ => Cause::Event { error_code: Some(7), external: true },
        };
        let _ = machine.switch(cause);
    }
}
