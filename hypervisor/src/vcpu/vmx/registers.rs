//! A guest's registers, wherever they are: general-purpose registers in memory, the others in the
//! VMCS or live in the processor. Reading one of the VMCS costs a VMREAD, so nothing is read that
//! is not asked for.
#![forbid(unsafe_code)]

use arch::{Cr0Flags, Dr7Flags, gpr};
use vmx::fields;
use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};

use super::VmxCpu;
use crate::emulate::{Bytes, Computation, Computed, Cpu};
use crate::guest_paging::PagingRegisters;
use crate::task_switch::TaskCpu;
use crate::vcpu::backend::{GuestCpu, Interruptibility};
use crate::vcpu::control_registers::with_machine_status;
use crate::vcpu::vector_registers;

impl PagingRegisters for VmxCpu {
    fn cr0(&self) -> u64 {
        // The bits that the guest does not own read as it wrote them.
        let mask = self.vmcs.read(fields::CR0_GUEST_HOST_MASK);
        self.vmcs.read(fields::GUEST_CR0) & !mask | self.vmcs.read(fields::CR0_READ_SHADOW) & mask
    }

    fn cr3(&self) -> u64 {
        self.vmcs.read(fields::GUEST_CR3)
    }

    fn cr4(&self) -> u64 {
        let mask = self.vmcs.read(fields::CR4_GUEST_HOST_MASK);
        self.vmcs.read(fields::GUEST_CR4) & !mask | self.vmcs.read(fields::CR4_READ_SHADOW) & mask
    }

    fn efer(&self) -> u64 {
        self.vmcs.read(fields::GUEST_EFER)
    }

    fn pdpte(&self, index: usize) -> u64 {
        self.vmcs.read(match index & 3 {
            0 => fields::GUEST_PDPTE0,
            1 => fields::GUEST_PDPTE1,
            2 => fields::GUEST_PDPTE2,
            _ => fields::GUEST_PDPTE3,
        })
    }

    fn physical_address_bits(&self) -> u32 {
        self.physical_address_bits
    }
}

impl Cpu for VmxCpu {
    #[inline]
    fn xcr0(&self) -> u64 {
        self.live.xcr0()
    }

    #[inline]
    fn gpr(&self, index: usize) -> u64 {
        match index {
            gpr::RSP => self.vmcs.read(fields::GUEST_RSP),
            _ => self.gpr.gpr[index & 15],
        }
    }

    #[inline]
    fn set_gpr(&mut self, index: usize, value: u64) {
        match index {
            gpr::RSP => self.vmcs.write(fields::GUEST_RSP, value),
            _ => self.gpr.gpr[index & 15] = value,
        }
    }

    fn xmm(&self, index: usize) -> u128 {
        vector_registers::xmm(index)
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        vector_registers::set_xmm(index, value);
    }

    fn ymm_high(&self, index: usize) -> u128 {
        vector_registers::ymm_high(index)
    }

    fn set_ymm_high(&mut self, index: usize, value: u128) {
        vector_registers::set_ymm_high(index, value);
    }

    fn rip(&self) -> u64 {
        self.vmcs.read(fields::GUEST_RIP)
    }

    fn set_rip(&mut self, rip: u64) {
        self.go_to(rip);
    }

    fn rflags(&self) -> u64 {
        self.vmcs.read(fields::GUEST_RFLAGS)
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vmcs.write(fields::GUEST_RFLAGS, rflags);
    }

    fn cpl(&self) -> u8 {
        self.segment_rights(SegmentRegister::Ss).dpl()
    }

    fn segment_selector(&self, segment: SegmentRegister) -> u16 {
        self.vmcs.read(fields::guest_selector(segment))
    }

    fn segment_base(&self, segment: SegmentRegister) -> u64 {
        self.vmcs.read(fields::guest_base(segment))
    }

    fn segment_limit(&self, segment: SegmentRegister) -> u32 {
        self.vmcs.read(fields::guest_limit(segment))
    }

    fn segment_rights(&self, segment: SegmentRegister) -> AccessRights {
        AccessRights::from_bits_retain(self.vmcs.read(fields::guest_access_rights(segment)))
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        self.vmcs.segment(register)
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.vmcs.set_segment(register, segment);
    }

    fn block_events_by_mov_ss(&mut self) {
        let state = self.interruptibility() - Interruptibility::SHADOW;
        self.set_interruptibility(state | Interruptibility::BLOCKED_BY_MOV_SS);
    }

    fn gdtr(&self) -> DescriptorTable {
        self.vmcs.gdtr()
    }

    fn set_gdtr(&mut self, table: DescriptorTable) {
        self.vmcs.set_gdtr(table);
    }

    fn idtr(&self) -> DescriptorTable {
        self.vmcs.idtr()
    }

    fn set_idtr(&mut self, table: DescriptorTable) {
        self.vmcs.set_idtr(table);
    }

    fn compute(&mut self, computation: &mut Computation<'_>, operand: &mut Bytes) -> Computed {
        self.live.compute(computation, operand)
    }

    fn load_machine_status(&mut self, value: u16) {
        // The guest owns these bits: there is no shadow of them.
        let cr0 = self.vmcs.read(fields::GUEST_CR0);
        let cr0 = with_machine_status(cr0, value);
        self.vmcs.write(fields::GUEST_CR0, cr0);
    }
}

impl TaskCpu for VmxCpu {
    fn set_cr3(&mut self, cr3: u64, pdptes: Option<[u64; 4]>) {
        self.vmcs.write(fields::GUEST_CR3, cr3);
        if let Some(pdptes) = pdptes {
            self.set_pdptes(pdptes);
        }
    }

    fn enter_task(&mut self, rip: u64, rflags: u64) {
        const DR7_LOCAL: u64 = Dr7Flags::LOCAL_BREAKPOINT_0_ENABLE
            .union(Dr7Flags::LOCAL_BREAKPOINT_1_ENABLE)
            .union(Dr7Flags::LOCAL_BREAKPOINT_2_ENABLE)
            .union(Dr7Flags::LOCAL_BREAKPOINT_3_ENABLE)
            .union(Dr7Flags::LOCAL_EXACT_BREAKPOINT_ENABLE)
            .bits();
        self.end_shadow();
        let vmcs = &mut self.vmcs;
        vmcs.write(fields::GUEST_RIP, rip);
        vmcs.write(fields::GUEST_RFLAGS, rflags);
        vmcs.write(fields::GUEST_PENDING_DEBUG, 0);
        // The guest owns TS: there is no shadow of it.
        vmcs.write(
            fields::GUEST_CR0,
            vmcs.read(fields::GUEST_CR0) | Cr0Flags::TASK_SWITCHED.bits(),
        );
        vmcs.write(fields::GUEST_DR7, vmcs.read(fields::GUEST_DR7) & !DR7_LOCAL);
    }
}
