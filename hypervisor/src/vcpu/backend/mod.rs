//! The seam where the processor's vendor begins: [`GuestCpu`] is all that a VCPU asks of the
//! virtualization it runs on.
//!
//! Above it, in [`Vcpu`](super::Vcpu), is what the architecture demands: which event is delivered
//! when, what a guest may write to a control register, how long it may run. Below it, in
//! [`vmx`](super::vmx), is how Intel's processors are told; VMCS fields are named there and nowhere
//! else. A fake processor takes its place in tests.
//!
//! The trait is used as a type parameter, never as an object: a call costs nothing.

pub(crate) mod exit;
#[cfg(test)]
pub(super) mod fake;

use core::fmt;

use arch::gpr::{RAX, RDX};
use arch::msr::DebugCtl;
use arch::{EferFlags, RFlags};
use bitflags::bitflags;
use devices::clock::TscScaling;
use vmx::bitmaps::MsrAccess;
use vmx::event::Event;

use super::HostCpu;
use crate::emulate::{AccessRights, SegmentRegister};
use crate::guest_boot::EntryState;
use crate::machine::machine_check::MachineCheck;
use crate::task_switch::TaskCpu;
use crate::vm::memory_map::View;
use exit::Exit;

/// A refusal by the processor of the structure that it is given for a guest: a bug of tarpit's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// A VM entry that did not happen at all: a bug of tarpit's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryFailed {
    /// The vendor's number of the error.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
}

impl fmt::Display for EntryFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, name } = self;
        write!(f, "{name} (VM-instruction error {number})")
    }
}

/// The reason for a guest's exit, as the vendor encodes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitReason(pub u32);

impl ExitReason {
    /// Returns the number by which exits of this kind are counted.
    #[inline]
    #[must_use]
    pub(crate) const fn number(self) -> u16 {
        self.0 as u16
    }
}

bitflags! {
    /// The guest's interruptibility state: what blocks events at an instruction boundary.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Interruptibility: u32 {
        /// Blocking by STI: the last instruction was one that set RFLAGS.IF.
        const BLOCKED_BY_STI = 1 << 0;
        /// Blocking by MOV SS: the last instruction loaded SS.
        const BLOCKED_BY_MOV_SS = 1 << 1;
        /// Blocking by NMI: one is being handled.
        const BLOCKED_BY_NMI = 1 << 3;
        const _ = !0;
    }
}

impl Interruptibility {
    /// The shadow of an STI or a MOV SS, which one instruction long holds events off.
    pub(crate) const SHADOW: Self = Self::BLOCKED_BY_STI.union(Self::BLOCKED_BY_MOV_SS);
}

/// The cached translations to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlbFlush {
    /// All of the guest's.
    All,
    /// Those that are not global, as a MOV to CR3 does.
    NonGlobal,
}

/// The extent to which the processor virtualizes the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApicAssistance {
    /// The TPR shadow, for CR8.
    TprShadow,
    /// The TPR shadow, for CR8 and in the APIC-access page; other accesses to that exit.
    XApicTpr,
    /// Registers in the APIC-access page, and interrupt delivery.
    XApic,
    /// Registers as MSRs, and interrupt delivery.
    X2Apic,
}

/// A processor as a guest has it. Its registers are those of the supertraits.
///
/// All methods but [`GuestCpu::acquire`] and [`GuestCpu::load`] want the VCPU to be acquired or
/// loaded on the physical CPU that calls them.
pub(crate) trait GuestCpu: TaskCpu + Send {
    // On and off a physical CPU.

    /// Makes the registers accessible on this physical CPU, for setting them up.
    ///
    /// # Errors
    /// If the processor refuses it.
    fn acquire(&mut self) -> Result<(), Refused>;

    /// Ends what [`GuestCpu::acquire`] has begun: any physical CPU may have it now.
    ///
    /// # Errors
    /// If the processor refuses it.
    fn release(&mut self) -> Result<(), Refused>;

    /// Puts the guest on this physical CPU, which is `cpu`. `moved` says that it was on another
    /// one before, so that what this one has cached of it is out of date.
    ///
    /// # Errors
    /// If the processor refuses it.
    ///
    /// # Safety
    /// `cpu` describes this physical CPU, which is ready for guests, and has no other one loaded.
    unsafe fn load(&mut self, cpu: &HostCpu, moved: bool) -> Result<(), Refused>;

    /// Takes the guest off this physical CPU.
    ///
    /// # Errors
    /// If the processor refuses it.
    fn unload(&mut self) -> Result<(), Refused>;

    // Entry and exit.

    /// Has the guest leave after so many host ticks, or a little more, if it has not before.
    fn set_time_limit(&mut self, ticks: u64);

    /// Enters the guest, and returns after its next exit.
    ///
    /// # Errors
    /// If there was no entry.
    ///
    /// # Safety
    /// It is loaded on this physical CPU, whose interrupts are off.
    unsafe fn enter(&mut self) -> Result<(), EntryFailed>;

    /// Returns what the processor says of the last exit.
    fn exit_reason(&self) -> ExitReason;

    /// Decodes the last exit, whose reason is `reason`, as far as its kind needs.
    fn decode_exit(&self, reason: ExitReason) -> Exit;

    /// Returns the name of an exit, for statistics and dumps.
    fn exit_name(reason: ExitReason) -> &'static str;

    /// Takes the interrupt of the host's that has ended the guest's stay.
    fn take_host_interrupt(&mut self);

    /// Takes the NMI of the host's that has ended the guest's stay.
    fn take_host_nmi(&mut self);

    /// Takes the machine check that has ended the guest's stay, and tells what it was.
    fn take_host_machine_check(&mut self) -> MachineCheck;

    // Events.

    /// Returns the event whose delivery the last exit interrupted, if any.
    fn interrupted_delivery(&self) -> Option<Event>;

    /// Has the next entry deliver `event`.
    fn inject(&mut self, event: Event);

    /// Returns whether the next entry delivers an event.
    fn is_injecting(&self) -> bool;

    /// Has the next entry deliver nothing.
    fn cancel_injection(&mut self);

    /// Returns what keeps events off.
    fn interruptibility(&self) -> Interruptibility;

    /// Sets what keeps events off.
    fn set_interruptibility(&mut self, state: Interruptibility);

    /// Has the guest leave as soon as it can take an interrupt, or an NMI.
    fn set_event_windows(&mut self, interrupt: bool, nmi: bool);

    /// Returns the linear address of the access that the last nested page fault was about; `None` if there was
    /// none, as where PDPTEs are loaded.
    fn faulting_linear_address(&self) -> Option<u64>;

    /// Returns whether a debug exception waits for the next entry.
    fn has_pending_debug_exception(&self) -> bool;

    /// Makes the trap of a single step wait for the next entry.
    fn set_pending_single_step(&mut self);

    // Registers that instructions do not name.

    /// Returns the address behind the instruction that has caused the exit.
    fn next_rip(&self) -> u64;

    /// Returns the length in bytes of the instruction that has caused the exit.
    fn instruction_length(&self) -> u32;

    /// Sets RIP, and nothing else.
    fn write_rip(&mut self, rip: u64);

    /// Sets CR0: as the guest reads it, and as the processor has it.
    fn set_cr0(&mut self, visible: u64, real: u64);

    /// Sets CR4 as the guest reads it, where that may differ from what the processor has.
    fn show_cr4(&mut self, visible: u64);

    /// Sets IA32_EFER.
    fn set_efer(&mut self, efer: u64);

    /// Sets the PDPTE registers.
    fn set_pdptes(&mut self, pdptes: [u64; 4]);

    /// Sets CR2.
    fn set_cr2(&mut self, address: u64);

    /// Adds `causes` to DR6, as the delivery of a #DB does: bits 3:0 are replaced, the others set
    /// (SDM vol. 3B, 18.2.3).
    fn add_to_dr6(&mut self, causes: u64);

    /// Returns the debug register `slot`, 0 to 3: a breakpoint's linear address.
    fn debug_address(&self, slot: usize) -> u64;

    /// Sets the debug register `slot`, 0 to 3.
    fn set_debug_address(&mut self, slot: usize, address: u64);

    /// Returns DR7.
    fn dr7(&self) -> u64;

    /// Sets DR7.
    fn set_dr7(&mut self, dr7: u64);

    /// Returns IA32_DEBUGCTL.
    fn debugctl(&self) -> u64;

    /// Sets IA32_DEBUGCTL.
    fn set_debugctl(&mut self, value: u64);

    /// Sets XCR0, to a combination of components that CPUID shows to the guest.
    fn set_xcr0(&mut self, value: u64);

    /// Returns IA32_TSC_AUX, if CPUID shows it to the guest.
    fn tsc_aux(&self) -> u64;

    /// Sets IA32_TSC_AUX, which CPUID shows to the guest, to a value of 32 bits.
    fn set_tsc_aux(&mut self, value: u64);

    /// Returns the guest's IA32_SPEC_CTRL, which CPUID shows to it: zero until it has been set.
    fn spec_ctrl(&self) -> u64;

    /// Sets IA32_SPEC_CTRL, which CPUID shows to the guest, to a value that it takes. `is_shared`: from now on
    /// the guest writes it by itself.
    fn set_spec_ctrl(&mut self, value: u64, is_shared: bool);

    /// Sets the registers that a boot protocol prescribes.
    fn enter_at(&mut self, state: &EntryState);

    /// Puts the registers into their state after INIT (SDM vol. 3A, table 10-1), with the
    /// processor's `signature` in EDX.
    fn init(&mut self, signature: u32);

    // What makes the guest exit.

    /// Sets whether an access to an MSR exits.
    fn set_msr_exits(&mut self, msr: u32, access: MsrAccess, exits: bool);

    /// Sets whether loads of CR3 exit, but for those of the values `exempt`, of which the
    /// processor may take only the first.
    fn set_cr3_exits(&mut self, exits: bool, exempt: &[u64]);

    /// Sets whether the guest's accesses to debug registers exit.
    fn set_debug_register_exits(&mut self, exits: bool);

    // Time and memory.

    /// Lets a moment of host time pass, while the guest is kept out.
    fn pause(&mut self);

    /// Shows the guest its TSC. `at_real_time` says that it counts as fast as the host's; a
    /// processor that cannot scale it has reads exit if not.
    fn set_tsc(&mut self, scaling: TscScaling, at_real_time: bool);

    /// Moves the TSC that [`GuestCpu::set_tsc`] has shown to another offset.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Drops cached translations of the guest's.
    fn flush_tlb(&mut self, which: TlbFlush);

    /// Lets the guest see its memory by `view`.
    fn set_memory_view(&mut self, view: View);

    /// Drops what this physical CPU has cached of the VM's nested page tables, of all views.
    fn flush_nested_tlb(&mut self);

    // The local APIC.

    /// Returns whether the processor can do more for the local APIC than shadow the TPR.
    fn can_virtualize_apic(&self) -> bool;

    /// Has the processor do `assistance` for the local APIC.
    fn set_apic_assistance(&mut self, assistance: ApicAssistance);

    /// Sets, with interrupt delivery by the processor, the highest vectors that are requested and
    /// in service, 0 for none.
    fn set_virtual_interrupts(&mut self, requested: u8, in_service: u8);

    /// Sets, with interrupt delivery by the processor, the vectors whose ends exit.
    fn set_eoi_exits(&mut self, vectors: [u64; 4]);

    /// Has the guest leave, without interrupt delivery by the processor, when it lowers the task
    /// priority class below `threshold`.
    fn set_tpr_threshold(&mut self, threshold: u8);

    // For people.

    /// Writes what of its state only the vendor knows, and what of it a processor would refuse.
    ///
    /// # Errors
    /// If `out` fails.
    fn write_state(&self, out: &mut dyn fmt::Write) -> fmt::Result;

    // What follows from the above.

    /// Steps over the instruction that has caused the exit.
    #[inline]
    fn skip_instruction(&mut self) {
        let next = self.next_rip();
        self.go_to(next);
    }

    /// Goes on at `rip` after an instruction that is over: what blocked events for its duration
    /// ends, and a single-step trap is pending if RFLAGS.TF was set.
    #[inline]
    fn go_to(&mut self, rip: u64) {
        self.write_rip(rip);
        self.end_shadow();
        let rflags = self.rflags();
        if rflags & (RFlags::TRAP_FLAG | RFlags::RESUME_FLAG).bits() != 0 {
            self.end_debug_step(rflags);
        }
    }

    /// Ends the shadow of an STI or a MOV SS.
    #[inline]
    fn end_shadow(&mut self) {
        let state = self.interruptibility();
        if state.intersects(Interruptibility::SHADOW) {
            self.set_interruptibility(state - Interruptibility::SHADOW);
        }
    }

    /// Does what the end of an instruction means for debugging, if RFLAGS.TF or RFLAGS.RF is set.
    #[cold]
    fn end_debug_step(&mut self, rflags: u64) {
        self.set_rflags(rflags & !RFlags::RESUME_FLAG.bits());
        self.end_single_step(rflags);
    }

    /// Makes a single-step trap pending if RFLAGS.TF was set.
    fn end_single_step(&mut self, rflags: u64) {
        if rflags & RFlags::TRAP_FLAG.bits() != 0 && self.debugctl() & DebugCtl::BTF.bits() == 0 {
            self.set_pending_single_step();
        }
    }

    /// Stops between two elements of a repeated string instruction, to go on with it later. It
    /// has begun: nothing blocks events for it any more, a single step ends after each element,
    /// and RFLAGS.RF keeps a breakpoint on it from matching again (SDM vol. 3B, 18.3.1.1 and
    /// 18.3.1.4).
    fn pause_instruction(&mut self) {
        self.end_shadow();
        let rflags = self.rflags();
        self.set_rflags(rflags | RFlags::RESUME_FLAG.bits());
        self.end_single_step(rflags);
    }

    /// Goes on at `offset` in `segment`, in real mode.
    fn jump_far(&mut self, segment: u16, offset: u16) {
        let mut cs = self.segment(SegmentRegister::Cs);
        cs.selector = segment;
        cs.base = u64::from(segment) << 4;
        self.set_segment(SegmentRegister::Cs, cs);
        self.write_rip(offset.into());
    }

    /// Returns whether CS is a 64-bit code segment in IA-32e mode.
    fn in_64_bit_mode(&self) -> bool {
        self.efer() & EferFlags::LONG_MODE_ACTIVE.bits() != 0
            && self
                .segment_rights(SegmentRegister::Cs)
                .contains(AccessRights::LONG)
    }

    /// Returns the value of EDX:EAX.
    #[inline]
    fn edx_eax(&self) -> u64 {
        self.gpr(RDX) << 32 | self.gpr(RAX) & 0xffff_ffff
    }

    /// Sets EDX:EAX, which clears the high halves of RDX and RAX.
    #[inline]
    fn set_edx_eax(&mut self, value: u64) {
        self.set_gpr(RAX, value & 0xffff_ffff);
        self.set_gpr(RDX, value >> 32);
    }
}
