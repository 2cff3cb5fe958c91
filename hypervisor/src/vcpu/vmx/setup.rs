//! The VMCS of a new guest processor: what exits, what passes through, and the state that its
//! registers begin with.
#![forbid(unsafe_code)]

use arch::{Cr0Flags, Cr4Flags, ExceptionVector, reset};
use vmx::capabilities::Capabilities;
use vmx::controls::{Entry, Exit, PinBased, Primary, Secondary};
use vmx::fields;
use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};
use vmx::vmcs::{Controls, Vmcs};

use super::VmxCpu;
use crate::guest_boot::EntryState;
use crate::vcpu::backend::GuestCpu;
use crate::vcpu::control_registers::{CR0_HOST_OWNED, CR0_HOST_VALUE};

/// Exceptions that exit. A guest whose handling of #AC or #DB raises the same exception
/// again keeps the processor in microcode for ever, past any preemption timer
/// (CVE-2015-5307, CVE-2015-8104), unless they exit. #MC is the host's.
const INTERCEPTED_EXCEPTIONS: u32 = 1 << ExceptionVector::AlignmentCheck as u8
    | 1 << ExceptionVector::Debug as u8
    | 1 << ExceptionVector::MachineCheck as u8;

/// CR4 bits that are one whatever a guest does: VMXE, which is fixed in VMX operation, and MCE, without
/// which an error of the hardware shuts the machine down.
const CR4_HOST_VALUE: u64 = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits() | MCE;
const MCE: u64 = Cr4Flags::MACHINE_CHECK_EXCEPTION.bits();

/// Returns the control vectors that a VCPU starts with.
pub(super) fn controls(capabilities: &Capabilities) -> Controls {
    let mut secondary = Secondary::EPT
        | Secondary::VPID
        | Secondary::UNRESTRICTED_GUEST
        | Secondary::WBINVD_EXITING;
    // Instructions that the guest's CPUID shows if the host's does; these controls exist on
    // every CPU that has the instructions.
    for optional in [
        Secondary::RDTSCP,
        Secondary::INVPCID,
        Secondary::XSAVES,
        Secondary::TSC_SCALING,
    ] {
        if capabilities.has(optional) {
            secondary |= optional;
        }
    }
    Controls {
        pin: PinBased::EXTERNAL_INTERRUPT_EXITING
            | PinBased::NMI_EXITING
            | PinBased::VIRTUAL_NMIS
            | PinBased::PREEMPTION_TIMER,
        primary: Primary::TSC_OFFSETTING
            | Primary::HLT_EXITING
            | Primary::MWAIT_EXITING
            | Primary::MONITOR_EXITING
            | Primary::RDPMC_EXITING
            | Primary::TPR_SHADOW
            | Primary::IO_BITMAPS
            | Primary::MSR_BITMAPS
            | Primary::SECONDARY,
        secondary,
        exit: Exit::SAVE_DEBUG
            | Exit::HOST_64_BIT
            | Exit::SAVE_PAT
            | Exit::LOAD_PAT
            | Exit::SAVE_EFER
            | Exit::LOAD_EFER,
        entry: Entry::LOAD_DEBUG | Entry::LOAD_PAT | Entry::LOAD_EFER,
    }
}

/// Fills in what does not depend on how the guest boots. `cr4_allowed` are the CR4 bits that
/// the guest's CPUID offers.
pub(super) fn initialize(
    vmcs: &mut Vmcs,
    capabilities: &Capabilities,
    vpid: u16,
    cr4_allowed: u64,
) {
    vmcs.set_controls(capabilities, &controls(capabilities));
    vmcs.write(fields::VPID, vpid);
    vmcs.write(fields::EXCEPTION_BITMAP, INTERCEPTED_EXCEPTIONS);
    // With these, page faults exit as the exception bitmap says: not at all.
    vmcs.write(fields::PAGE_FAULT_ERROR_CODE_MASK, 0);
    vmcs.write(fields::PAGE_FAULT_ERROR_CODE_MATCH, 0);
    vmcs.write(fields::CR3_TARGET_COUNT, 0);
    vmcs.write(fields::TPR_THRESHOLD, 0);
    vmcs.write(fields::CR0_GUEST_HOST_MASK, CR0_HOST_OWNED | !0xffff_ffff);
    vmcs.write(fields::CR4_GUEST_HOST_MASK, !cr4_allowed | MCE);
    vmcs.write(fields::TSC_OFFSET, 0);
    if capabilities.tsc_scaling() {
        vmcs.write(fields::TSC_MULTIPLIER, devices::clock::Rate::ONE.bits());
    }
    if capabilities.has(Secondary::XSAVES) {
        vmcs.write(fields::XSS_EXITING_BITMAP, 0);
    }
    vmcs.write(fields::GUEST_DEBUGCTL, 0);
    vmcs.write(fields::GUEST_PAT, reset::PAT);
    vmcs.write(fields::GUEST_DR7, reset::DR7);
    vmcs.write(fields::GUEST_INTERRUPTIBILITY, 0);
    vmcs.write(fields::GUEST_ACTIVITY_STATE, 0);
    vmcs.write(fields::GUEST_PENDING_DEBUG, 0);
    vmcs.write(fields::GUEST_SYSENTER_CS, 0);
    vmcs.write(fields::GUEST_SYSENTER_ESP, 0);
    vmcs.write(fields::GUEST_SYSENTER_EIP, 0);
    vmcs.write(fields::ENTRY_INTERRUPTION_INFORMATION, 0);
}

impl VmxCpu {
    /// Sets the registers that a boot protocol prescribes.
    pub(super) fn set_entry_state(&mut self, state: &EntryState) {
        use arch::gpr;
        let gprs = &mut self.gpr.gpr;
        gprs.fill(0);
        gprs[gpr::RAX] = state.rax;
        gprs[gpr::RBX] = state.rbx;
        gprs[gpr::RSI] = state.rsi;
        self.set_cr0(state.cr0, state.cr0 & !CR0_HOST_OWNED | CR0_HOST_VALUE);
        self.set_efer(state.efer);
        let vmcs = &mut self.vmcs;
        vmcs.write(fields::GUEST_CR3, state.cr3);
        vmcs.write(fields::GUEST_CR4, state.cr4 | CR4_HOST_VALUE);
        vmcs.write(fields::CR4_READ_SHADOW, state.cr4);
        vmcs.write(fields::GUEST_RIP, state.rip);
        vmcs.write(fields::GUEST_RSP, 0);
        vmcs.write(fields::GUEST_RFLAGS, state.rflags);
        for register in SegmentRegister::ALL {
            let value = match register {
                SegmentRegister::Cs => state.cs,
                SegmentRegister::Tr => state.tr,
                SegmentRegister::Ldtr => state.ldtr,
                _ => state.data,
            };
            vmcs.set_segment(register, value);
        }
        vmcs.set_gdtr(state.gdtr);
        vmcs.set_idtr(state.idtr);
    }

    /// Puts the registers into their state after INIT (SDM vol. 3A, table 10-1), which leaves the
    /// floating-point state, most MSRs and the cache controls alone. EDX tells the processor's
    /// `signature`. What is live in the processor is [`super::live_state::init_reset`]'s.
    pub(super) fn reset_registers(&mut self, signature: u32) {
        const CACHE_CONTROLS: u64 = Cr0Flags::CACHE_DISABLE
            .union(Cr0Flags::NOT_WRITE_THROUGH)
            .bits();
        let cache_controls = self.vmcs.read(fields::CR0_READ_SHADOW) & CACHE_CONTROLS;
        let cr0 = reset::CR0 & !CACHE_CONTROLS | cache_controls;
        self.set_cr0(cr0, cr0 & !CR0_HOST_OWNED | CR0_HOST_VALUE);
        self.set_efer(0);
        let vmcs = &mut self.vmcs;
        vmcs.write(fields::GUEST_CR3, 0);
        vmcs.write(fields::GUEST_CR4, CR4_HOST_VALUE);
        vmcs.write(fields::CR4_READ_SHADOW, 0);
        vmcs.write(fields::GUEST_RFLAGS, reset::RFLAGS);
        vmcs.write(fields::GUEST_RSP, 0);
        vmcs.write(fields::GUEST_RIP, reset::RIP);
        vmcs.write(fields::GUEST_DR7, reset::DR7);
        vmcs.write(fields::GUEST_DEBUGCTL, 0);
        vmcs.write(fields::GUEST_PENDING_DEBUG, 0);
        vmcs.write(fields::GUEST_INTERRUPTIBILITY, 0);
        vmcs.write(fields::GUEST_ACTIVITY_STATE, 0);
        for register in SegmentRegister::ALL {
            let (selector, base, rights) = match register {
                SegmentRegister::Cs => (0xf000, 0xffff_0000, 0x9b),
                SegmentRegister::Ldtr => (0, 0, 0x82),
                SegmentRegister::Tr => (0, 0, 0x8b),
                _ => (0, 0, 0x93),
            };
            let rights = AccessRights::from_bits_retain(rights);
            vmcs.set_segment(
                register,
                Segment {
                    selector,
                    base,
                    limit: 0xffff,
                    rights,
                },
            );
        }
        let empty = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        vmcs.set_gdtr(empty);
        vmcs.set_idtr(empty);
        self.gpr.gpr.fill(0);
        self.gpr.gpr[arch::gpr::RDX] = signature.into();
    }
}
