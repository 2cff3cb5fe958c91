//! A flat 32-bit guest with two tasks.

use core::cell::RefCell;

use arch::ExceptionVector;
use vmx::addr::GuestPhysAddr;

use super::super::*;
use crate::emulate::{DescriptorTable, SegmentRegister as Encoded};
use crate::guest_paging::PagingRegisters;
use crate::test_ram::TestRam;

pub(super) const GDT: u64 = 0x1000;
pub(super) const OLD_TSS: u64 = 0x2000;
/// The linear address of the new task's TSS, which lies across a page border.
pub(super) const NEW_TSS: u64 = 0x3fe0;
pub(super) const STACK: u32 = 0x8000;
pub(super) const DIRECTORY: u64 = 0x9000;

pub(super) const CODE: u16 = 0x08;
pub(super) const DATA: u16 = 0x10;
pub(super) const OLD: u16 = 0x18;
pub(super) const NEW: u16 = 0x20;
pub(super) const LDT: u16 = 0x28;
pub(super) const USER_DATA: u16 = 0x30 | 3;
pub(super) const CONFORMING: u16 = 0x38 | 3;
pub(super) const ABSENT: u16 = 0x40;

pub(super) const EFLAGS_NT: u32 = arch::RFlags::NESTED_TASK.bits() as u32;
pub(super) const BUSY_TSS: u8 = 0x8b;
pub(super) const FREE_TSS: u8 = 0x89;

pub(super) struct TestCpu {
    pub(super) gprs: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) segments: [Segment; 8],
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) pdptes: [u64; 4],
    pub(super) task_entries: RefCell<u32>,
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
    fn xcr0(&self) -> u64 {
        1
    }
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
    fn ymm_high(&self, _: usize) -> u128 {
        0
    }
    fn set_ymm_high(&mut self, _: usize, _: u128) {}
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
    fn segment_rights(&self, segment: Encoded) -> AccessRights {
        self.segments[segment as usize].rights
    }
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
    fn block_events_by_mov_ss(&mut self) {}
    fn set_gdtr(&mut self, _: DescriptorTable) {}
    fn idtr(&self) -> DescriptorTable {
        DescriptorTable { base: 0, limit: 0 }
    }
    fn set_idtr(&mut self, _: DescriptorTable) {}
    fn load_machine_status(&mut self, _: u16) {}
    fn compute(
        &mut self,
        _: &mut crate::emulate::Computation<'_>,
        _: &mut crate::emulate::Bytes,
    ) -> crate::emulate::Computed {
        crate::emulate::Computed::Unavailable
    }
}

impl TaskCpu for TestCpu {
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

pub(super) struct Machine {
    pub(super) cpu: TestCpu,
    pub(super) ram: TestRam,
}

pub(super) fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24) << 56
}

impl Machine {
    pub(super) fn new() -> Self {
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

    pub(super) fn switch(&mut self, cause: Cause) -> Result<Switched, SwitchError> {
        let request = Request {
            selector: NEW,
            cause,
            return_rip: 0x4007,
        };
        switch_task(&mut self.cpu, &self.ram, &request)
    }

    /// Switches, and expects a fault with this vector and error code.
    pub(super) fn expect_fault(&mut self, cause: Cause, vector: ExceptionVector, code: u16) {
        let fault = Fault {
            vector,
            error_code: Some(code.into()),
            cr2: None,
        };
        assert_eq!(self.switch(cause), Err(SwitchError::Fault(fault)));
    }

    pub(super) fn access_byte(&self, selector: u16) -> u8 {
        let mut byte = [0];
        let address = GuestPhysAddr(GDT + u64::from(selector & !7) + 5);
        self.ram.read(address, &mut byte).unwrap();
        byte[0]
    }

    pub(super) fn set_access_byte(&self, selector: u16, access: u8) {
        let address = GuestPhysAddr(GDT + u64::from(selector & !7) + 5);
        self.ram.write(address, &[access]).unwrap();
    }

    pub(super) fn read(&self, address: u64) -> u32 {
        self.ram.read_u32(GuestPhysAddr(address)).unwrap()
    }

    pub(super) fn selector(&self, register: SegmentRegister) -> u16 {
        self.cpu.segment(register).selector
    }
}
