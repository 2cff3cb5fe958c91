//! A target for fuzzing: task-state segments and descriptors as a guest may write them.

use std::vec::Vec;

use super::machine::{GDT, Machine, NEW_TSS};
use super::*;

#[test]
fn task_switches() {
    fuzzing::check!()
        .with_type::<(
            u8,
            Vec<(u8, u32)>,
            Vec<(u8, u64)>,
            Vec<(u8, u8)>,
            [u32; 3],
            u8,
        )>()
        .for_each(
            |(cause, fields, descriptors, access, [old_limit, ldt_limit, code], mode)| {
                let mut machine = Machine::new();
                for &(field, value) in fields {
                    // Selectors and addresses that are there, as often as not.
                    let value = if value >> 31 == 0 {
                        value & 0xffff
                    } else {
                        value
                    };
                    let at = NEW_TSS + u64::from(field % 26) * 4;
                    machine.ram.write_u32(at, value);
                }
                for &(index, value) in descriptors {
                    machine.ram.write_u64(GDT + u64::from(index % 9) * 8, value);
                }
                for &(index, byte) in access {
                    machine.set_access_byte(u16::from(index % 9) * 8, byte);
                }
                if mode & 1 != 0 {
                    machine.cpu.segments[SegmentRegister::Tr as usize].limit = *old_limit;
                }
                if mode & 2 != 0 {
                    machine.cpu.segments[SegmentRegister::Ldtr as usize].limit = *ldt_limit;
                    machine.cpu.segments[SegmentRegister::Ldtr as usize].rights =
                        AccessRights::empty();
                }
                if mode & 4 != 0 {
                    machine.cpu.cr0 |= 1 << 31;
                    machine.cpu.cr4 = u64::from(mode >> 3 & 3) << 4;
                }
                let cause = match cause % 5 {
                    0 => Cause::Call,
                    1 => Cause::Jump,
                    2 => Cause::Iret,
                    3 => Cause::Event {
                        error_code: None,
                        external: false,
                    },
                    _ => Cause::Event {
                        error_code: Some(*code),
                        external: true,
                    },
                };
                let state = |machine: &Machine| {
                    let cpu = &machine.cpu;
                    let registers = [cpu.rip, cpu.rflags, cpu.cr0, cpu.cr3];
                    (cpu.gprs, registers, cpu.segments, machine.ram.snapshot())
                };
                let before = state(&machine);
                match machine.switch(cause) {
                    Ok(_) => assert_eq!(*machine.cpu.task_entries.borrow(), 1),
                    Err(error) => {
                        if let SwitchError::Fault(fault) = error {
                            let external = matches!(cause, Cause::Event { external: true, .. });
                            let is_selector =
                                fault.vector != ExceptionVector::Page && fault.error_code.is_some();
                            assert!(
                                !is_selector
                                    || (fault.error_code.unwrap_or(0) & 1 != 0) == external
                            );
                        }
                        // Before the commit nothing has changed, but flags of pages that were looked at.
                        if *machine.cpu.task_entries.borrow() == 0 {
                            let after = state(&machine);
                            assert_eq!((after.0, after.1), (before.0, before.1));
                            assert_eq!(after.2, before.2);
                            assert!(mode & 4 != 0 || after.3 == before.3, "memory changed");
                        }
                    }
                }
            },
        );
}
