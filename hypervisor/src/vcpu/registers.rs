//! A VCPU's registers, wherever they are: general-purpose registers in memory, the others
//! in the VMCS. Reading one costs a VMREAD, so nothing is read that is not asked for.

use arch::msr::DebugCtl;
use arch::{Cr0Flags, Dr6Flags, Dr7Flags, EferFlags, RFlags, gpr};
use vmx::entry::GuestRegisters;
use vmx::fields;
use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};
use vmx::vmcs::Vmcs;

use super::vector_registers;
use crate::emulate::Cpu;
use crate::guest_paging::PagingRegisters;
use crate::task_switch::TaskCpu;

/// Interruptibility state: blocking by STI and by MOV SS (SDM vol. 3C, table 25-3).
pub const BLOCKED_BY_STI_OR_MOV_SS: u32 = 0b11;
/// Interruptibility state: blocking by NMI.
pub const BLOCKED_BY_NMI: u32 = 1 << 3;
/// Pending debug exceptions: BS, a single step, where DR6 has it (SDM vol. 3C, table 25-4).
const PENDING_SINGLE_STEP: u64 = Dr6Flags::STEP.bits();

/// The registers of the VCPU whose VMCS is current.
pub struct Registers {
    /// The general-purpose registers.
    pub gpr: GuestRegisters,
    /// All others.
    pub vmcs: Vmcs,
    /// The guest's MAXPHYADDR.
    pub physical_address_bits: u32,
}

impl Registers {
    /// Steps over the instruction that caused the exit.
    #[inline]
    pub fn skip_instruction(&mut self) {
        let rip = self.vmcs.read(fields::GUEST_RIP);
        let length = self.vmcs.read(fields::EXIT_INSTRUCTION_LENGTH);
        let mut next = rip.wrapping_add(u64::from(length));
        if (rip ^ next) >> 32 != 0 && !self.in_64_bit_mode() {
            next &= 0xffff_ffff;
        }
        self.go_to(next);
    }

    /// Goes on at `rip` after an instruction that is over: what blocked events for its
    /// duration ends, and a single-step trap is pending if RFLAGS.TF was set.
    #[inline]
    pub fn go_to(&mut self, rip: u64) {
        self.vmcs.write(fields::GUEST_RIP, rip);
        let interruptibility = self.vmcs.read(fields::GUEST_INTERRUPTIBILITY);
        if interruptibility & BLOCKED_BY_STI_OR_MOV_SS != 0 {
            self.vmcs.write(
                fields::GUEST_INTERRUPTIBILITY,
                interruptibility & !BLOCKED_BY_STI_OR_MOV_SS,
            );
        }
        let rflags = self.vmcs.read(fields::GUEST_RFLAGS);
        if rflags & (RFlags::TRAP_FLAG | RFlags::RESUME_FLAG).bits() != 0 {
            self.end_debug_step(rflags);
        }
    }

    #[cold]
    fn end_debug_step(&mut self, rflags: u64) {
        self.vmcs
            .write(fields::GUEST_RFLAGS, rflags & !RFlags::RESUME_FLAG.bits());
        self.single_step(rflags);
    }

    /// Makes a single-step trap pending if RFLAGS.TF was set.
    fn single_step(&mut self, rflags: u64) {
        let branches_only = self.vmcs.read(fields::GUEST_DEBUGCTL) & DebugCtl::BTF.bits() != 0;
        if rflags & RFlags::TRAP_FLAG.bits() != 0 && !branches_only {
            let pending = self.vmcs.read(fields::GUEST_PENDING_DEBUG);
            self.vmcs
                .write(fields::GUEST_PENDING_DEBUG, pending | PENDING_SINGLE_STEP);
        }
    }

    /// Stops between two elements of a repeated string instruction, to go on with it later. It
    /// has begun: nothing blocks events for it any more, a single step ends after each element,
    /// and RFLAGS.RF keeps a breakpoint on it from matching again (SDM vol. 3B, 18.3.1.1 and
    /// 18.3.1.4).
    pub fn pause_instruction(&mut self) {
        let interruptibility = self.vmcs.read(fields::GUEST_INTERRUPTIBILITY);
        self.vmcs.write(
            fields::GUEST_INTERRUPTIBILITY,
            interruptibility & !BLOCKED_BY_STI_OR_MOV_SS,
        );
        let rflags = self.vmcs.read(fields::GUEST_RFLAGS);
        self.vmcs
            .write(fields::GUEST_RFLAGS, rflags | RFlags::RESUME_FLAG.bits());
        self.single_step(rflags);
    }

    /// Whether a debug exception waits for the next VM entry.
    #[must_use]
    pub fn has_pending_debug_exception(&self) -> bool {
        self.vmcs.read(fields::GUEST_PENDING_DEBUG) != 0
    }

    /// Sets the PDPTE registers.
    pub fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        for (field, pdpte) in [
            fields::GUEST_PDPTE0,
            fields::GUEST_PDPTE1,
            fields::GUEST_PDPTE2,
            fields::GUEST_PDPTE3,
        ]
        .into_iter()
        .zip(pdptes)
        {
            self.vmcs.write(field, pdpte);
        }
    }

    /// Whether CS is a 64-bit code segment in IA-32e mode.
    #[must_use]
    pub fn in_64_bit_mode(&self) -> bool {
        self.efer() & EferFlags::LONG_MODE_ACTIVE.bits() != 0
            && self
                .segment_rights(SegmentRegister::Cs)
                .contains(AccessRights::LONG)
    }

    /// Whether the guest is in protected mode: exceptions push error codes.
    #[must_use]
    pub fn in_protected_mode(&self) -> bool {
        self.cr0() & Cr0Flags::PROTECTED_MODE_ENABLE.bits() != 0
    }

    /// EAX of the guest.
    #[must_use]
    pub fn eax(&self) -> u32 {
        self.gpr.gpr[gpr::RAX] as u32
    }

    /// ECX of the guest.
    #[must_use]
    pub fn ecx(&self) -> u32 {
        self.gpr.gpr[gpr::RCX] as u32
    }
}

impl PagingRegisters for Registers {
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

impl Cpu for Registers {
    fn gpr(&self, index: usize) -> u64 {
        match index {
            gpr::RSP => self.vmcs.read(fields::GUEST_RSP),
            _ => self.gpr.gpr[index & 15],
        }
    }

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
        (self
            .vmcs
            .read(fields::guest_access_rights(SegmentRegister::Ss))
            >> 5
            & 3) as u8
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
}

impl TaskCpu for Registers {
    fn gdtr(&self) -> DescriptorTable {
        self.vmcs.gdtr()
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        self.vmcs.segment(register)
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.vmcs.set_segment(register, segment);
    }

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
        let vmcs = &mut self.vmcs;
        vmcs.write(fields::GUEST_RIP, rip);
        vmcs.write(fields::GUEST_RFLAGS, rflags);
        let interruptibility = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
        vmcs.write(
            fields::GUEST_INTERRUPTIBILITY,
            interruptibility & !BLOCKED_BY_STI_OR_MOV_SS,
        );
        vmcs.write(fields::GUEST_PENDING_DEBUG, 0);
        // The guest owns TS: there is no shadow of it.
        vmcs.write(
            fields::GUEST_CR0,
            vmcs.read(fields::GUEST_CR0) | Cr0Flags::TASK_SWITCHED.bits(),
        );
        vmcs.write(fields::GUEST_DR7, vmcs.read(fields::GUEST_DR7) & !DR7_LOCAL);
    }
}
