//! Intel's virtualization under a VCPU: [`VmxCpu`] is a [`GuestCpu`] whose state is in a VMCS. All
//! VMCS fields that tarpit uses are named in this folder and in the crate [`vmx`].

mod exit;
mod registers;
mod setup;
mod state;

use alloc::boxed::Box;
use core::fmt;

use arch::{Cr0Flags, Dr6Flags, EferFlags, msr};
use devices::clock::TscScaling;
use devices::lapic::LocalApic;
use vmx::addr::HostPhysAddr;
use vmx::bitmaps::{IoBitmaps, MsrAccess, MsrBitmaps};
use vmx::capabilities::Capabilities;
use vmx::controls::{Primary, Secondary};
use vmx::entry::{self, GuestRegisters, WorldSwitch};
use vmx::event::Event;
use vmx::fields;
use vmx::page::Page;
use vmx::translation::{self, Vpid};
use vmx::vmcs::{VmInstructionFailed, Vmcs};

use super::HostCpu;
use super::backend::exit::Exit;
use super::backend::{
    ApicAssistance, EntryFailed, ExitReason, GuestCpu, Interruptibility, Refused, TlbFlush,
};
use super::live_state::{self, LiveState};
use crate::guest_boot::EntryState;
use crate::guest_paging::PagingRegisters;
use crate::machine::cpu;
use crate::machine::machine_check::{self, MachineCheck};
use crate::vm::Vm;
use crate::vm::memory_map::View;

/// Pending debug exceptions: BS, a single step, where DR6 has it (SDM vol. 3C, table 25-4).
const PENDING_SINGLE_STEP: u64 = Dr6Flags::STEP.bits();

/// A guest's processor on VMX.
pub(crate) struct VmxCpu {
    gpr: GuestRegisters,
    vmcs: Vmcs,
    live: LiveState,
    capabilities: &'static Capabilities,
    msr_bitmaps: Box<MsrBitmaps>,
    vpid: Vpid,
    /// The EPT pointers of the memory map's views.
    ept_pointers: [u64; 2],
    /// The guest's MAXPHYADDR.
    physical_address_bits: u32,
    /// The primary controls as they are in the VMCS.
    primary: Primary,
    /// The TPR threshold as it is in the VMCS.
    tpr_threshold: u8,
    /// The EOI-exit bitmap as it is in the VMCS.
    eoi_exits: [u64; 4],
}

/// Processor structures of a guest's processor.
pub(crate) struct VmxPages {
    /// The page for the VMCS; its own.
    pub vmcs: Box<Page>,
    /// The bitmaps of MSRs that exit: all, to begin with; its own.
    pub msr_bitmaps: Box<MsrBitmaps>,
    /// The bitmaps of ports that exit: all; may be shared.
    pub io_bitmaps: &'static IoBitmaps,
}

impl From<VmInstructionFailed> for Refused {
    fn from(_: VmInstructionFailed) -> Self {
        Self
    }
}

impl VmxCpu {
    /// Makes a processor of `vm` after power-up, with the local APIC `lapic`, whose translations
    /// are tagged with `vpid`, with `switch` at its entries and exits.
    ///
    /// # Errors
    /// If the processor refuses the VMCS.
    ///
    /// # Safety
    /// This CPU is in VMX operation with `capabilities`, and no VCPU is loaded on it. The VM and
    /// the LAPIC's page live as long as the result. All CPUs that it is loaded on can do what `switch` asks for.
    pub(crate) unsafe fn new(
        vm: &Vm,
        capabilities: &'static Capabilities,
        pages: VmxPages,
        vpid: Vpid,
        lapic: &LocalApic,
        switch: &WorldSwitch,
    ) -> Result<Self, Refused> {
        // SAFETY: VMX operation, by the contract.
        let mut vmcs = unsafe { Vmcs::new(capabilities, pages.vmcs)? };
        vmcs.load()?;
        let limits = *vm.cpuid.limits();
        let cr4_allowed = limits.cr4 & capabilities.cr4_fixed1;
        setup::initialize(&mut vmcs, capabilities, vpid.get(), cr4_allowed);
        let ept_pointers = [View::Whole, View::Guarded].map(|view| vm.memory_map.ept_pointer(view));
        // SAFETY: the VM keeps its tables for as long as it lives, and maps only its own memory.
        unsafe { vmcs.set_ept_pointer(ept_pointers[View::Whole as usize]) };
        let apic_page = HostPhysAddr(core::ptr::from_ref(lapic.page()) as u64);
        // SAFETY: the page lives long enough by the contract, and consists of atomics.
        unsafe { vmcs.set_virtual_apic_page(apic_page) };
        if capabilities.virtual_apic() {
            vmcs.set_apic_access_page(vm.memory_map.apic_access_page());
        }
        vmcs.set_io_bitmaps(pages.io_bitmaps);
        // SAFETY: the bitmaps live as long as the VCPU, with the VMCS; they are changed by it
        // alone, while it is out of the guest.
        unsafe { vmcs.set_msr_bitmaps(&pages.msr_bitmaps) };
        let mut cpu = Self {
            gpr: GuestRegisters::new(switch),
            vmcs,
            live: LiveState::new(&limits),
            capabilities,
            msr_bitmaps: pages.msr_bitmaps,
            vpid,
            ept_pointers,
            physical_address_bits: limits.physical_address_bits,
            primary: setup::controls(capabilities).primary,
            tpr_threshold: 0,
            eoi_exits: [0; 4],
        };
        cpu.reset_registers(vm.cpuid.signature());
        cpu.release()?;
        Ok(cpu)
    }

    fn set_primary(&mut self, primary: Primary) {
        if primary != self.primary {
            self.primary = primary;
            self.vmcs.set_primary(self.capabilities, primary);
        }
    }

    #[cold]
    fn entry_failed(&self) -> EntryFailed {
        let number = self.vmcs.read(fields::INSTRUCTION_ERROR);
        EntryFailed {
            number,
            name: vmx::diagnosis::instruction_error(number),
        }
    }

    fn write_eoi_exits(&mut self) {
        for (field, bits) in [
            fields::EOI_EXIT_BITMAP_0,
            fields::EOI_EXIT_BITMAP_1,
            fields::EOI_EXIT_BITMAP_2,
            fields::EOI_EXIT_BITMAP_3,
        ]
        .into_iter()
        .zip(self.eoi_exits)
        {
            self.vmcs.write(field, bits);
        }
    }
}

impl GuestCpu for VmxCpu {
    fn acquire(&mut self) -> Result<(), Refused> {
        Ok(self.vmcs.load()?)
    }

    fn release(&mut self) -> Result<(), Refused> {
        self.gpr.forget_launch();
        Ok(self.vmcs.clear()?)
    }

    unsafe fn load(&mut self, cpu: &HostCpu, moved: bool) -> Result<(), Refused> {
        self.vmcs.load()?;
        if moved {
            // SAFETY: by the contract.
            unsafe { self.vmcs.set_host_state(&cpu.host) };
            self.vmcs.set_exit_address(self.gpr.exit_address());
            // What this CPU remembers of the VPID is from an earlier stay, or from another VM
            // that had it: the guest's invalidations since were executed elsewhere.
            self.flush_tlb(TlbFlush::All);
            self.flush_nested_tlb();
        }
        self.live.load();
        Ok(())
    }

    fn unload(&mut self) -> Result<(), Refused> {
        self.live.save();
        self.release()
    }

    #[inline]
    fn set_time_limit(&mut self, ticks: u64) {
        let value = (ticks >> self.capabilities.preemption_timer_shift) + 1;
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        self.vmcs.write(fields::PREEMPTION_TIMER_VALUE, value);
    }

    #[inline]
    unsafe fn enter(&mut self) -> Result<(), EntryFailed> {
        // SAFETY: the VMCS is current, with this CPU's host state, the VM's own memory map and
        // bitmaps; interrupts are off by the contract; the registers go with the VMCS, and the CPU can do
        // what is done at the switch, by the contract of `new`.
        match unsafe { entry::enter(&mut self.gpr) } {
            Ok(()) => Ok(()),
            Err(_) => Err(self.entry_failed()),
        }
    }

    #[inline]
    fn exit_reason(&self) -> ExitReason {
        ExitReason(self.vmcs.read(fields::EXIT_REASON))
    }

    #[inline(always)]
    fn decode_exit(&self, reason: ExitReason) -> Exit {
        exit::decode(&self.vmcs, reason)
    }

    fn exit_name(reason: ExitReason) -> &'static str {
        vmx::exit::reason_name(reason.number())
    }

    fn take_host_interrupt(&mut self) {
        cpu::take_pending_interrupts();
    }

    fn take_host_nmi(&mut self) {
        cpu::take_pending_nmi();
    }

    fn take_host_machine_check(&mut self) -> MachineCheck {
        machine_check::take_from_guest()
    }

    #[inline]
    fn interrupted_delivery(&self) -> Option<Event> {
        let information = self.vmcs.read(fields::IDT_VECTORING_INFORMATION);
        if information >> 31 == 0 {
            return None;
        }
        Event::from_information(
            information,
            self.vmcs.read(fields::IDT_VECTORING_ERROR_CODE),
            self.vmcs.read(fields::EXIT_INSTRUCTION_LENGTH),
        )
    }

    fn inject(&mut self, event: Event) {
        let protected = self.cr0() & Cr0Flags::PROTECTED_MODE_ENABLE.bits() != 0;
        self.vmcs.write(
            fields::ENTRY_INTERRUPTION_INFORMATION,
            event.information(protected),
        );
        if let Some(code) = event.error_code {
            self.vmcs.write(fields::ENTRY_EXCEPTION_ERROR_CODE, code);
        }
        self.vmcs
            .write(fields::ENTRY_INSTRUCTION_LENGTH, event.instruction_length);
    }

    fn is_injecting(&self) -> bool {
        self.vmcs.read(fields::ENTRY_INTERRUPTION_INFORMATION) >> 31 != 0
    }

    fn cancel_injection(&mut self) {
        self.vmcs.write(fields::ENTRY_INTERRUPTION_INFORMATION, 0);
    }

    #[inline]
    fn interruptibility(&self) -> Interruptibility {
        Interruptibility::from_bits_retain(self.vmcs.read(fields::GUEST_INTERRUPTIBILITY))
    }

    fn set_interruptibility(&mut self, state: Interruptibility) {
        self.vmcs
            .write(fields::GUEST_INTERRUPTIBILITY, state.bits());
    }

    fn set_event_windows(&mut self, interrupt: bool, nmi: bool) {
        let mut primary = self.primary;
        primary.set(Primary::INTERRUPT_WINDOW_EXITING, interrupt);
        primary.set(Primary::NMI_WINDOW_EXITING, nmi);
        self.set_primary(primary);
    }

    fn faulting_linear_address(&self) -> Option<u64> {
        /// SDM vol. 3C, table 28-7.
        const LINEAR_ADDRESS_VALID: u64 = 1 << 7;
        let qualification = self.vmcs.read(fields::EXIT_QUALIFICATION);
        (qualification & LINEAR_ADDRESS_VALID != 0)
            .then(|| self.vmcs.read(fields::GUEST_LINEAR_ADDRESS))
    }

    fn has_pending_debug_exception(&self) -> bool {
        self.vmcs.read(fields::GUEST_PENDING_DEBUG) != 0
    }

    fn set_pending_single_step(&mut self) {
        let pending = self.vmcs.read(fields::GUEST_PENDING_DEBUG);
        self.vmcs
            .write(fields::GUEST_PENDING_DEBUG, pending | PENDING_SINGLE_STEP);
    }

    #[inline]
    fn next_rip(&self) -> u64 {
        let rip = self.vmcs.read(fields::GUEST_RIP);
        let next = rip.wrapping_add(self.instruction_length().into());
        if (rip ^ next) >> 32 != 0 && !self.in_64_bit_mode() {
            return next & 0xffff_ffff;
        }
        next
    }

    #[inline]
    fn instruction_length(&self) -> u32 {
        self.vmcs.read(fields::EXIT_INSTRUCTION_LENGTH)
    }

    #[inline]
    fn write_rip(&mut self, rip: u64) {
        self.vmcs.write(fields::GUEST_RIP, rip);
    }

    fn set_cr0(&mut self, visible: u64, real: u64) {
        self.vmcs.write(fields::GUEST_CR0, real);
        self.vmcs.write(fields::CR0_READ_SHADOW, visible);
    }

    fn show_cr4(&mut self, visible: u64) {
        self.vmcs.write(fields::CR4_READ_SHADOW, visible);
    }

    fn set_efer(&mut self, efer: u64) {
        self.vmcs.write(fields::GUEST_EFER, efer);
        self.vmcs
            .set_ia32e_mode(efer & EferFlags::LONG_MODE_ACTIVE.bits() != 0);
    }

    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
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

    fn set_cr2(&mut self, address: u64) {
        live_state::set_cr2(address);
    }

    fn add_to_dr6(&mut self, causes: u64) {
        live_state::add_to_dr6(causes);
    }

    fn debug_address(&self, slot: usize) -> u64 {
        live_state::debug_address(slot)
    }

    fn set_debug_address(&mut self, slot: usize, address: u64) {
        live_state::set_debug_address(slot, address);
    }

    fn dr7(&self) -> u64 {
        self.vmcs.read(fields::GUEST_DR7)
    }

    fn set_dr7(&mut self, dr7: u64) {
        self.vmcs.write(fields::GUEST_DR7, dr7);
    }

    fn debugctl(&self) -> u64 {
        self.vmcs.read(fields::GUEST_DEBUGCTL)
    }

    fn set_debugctl(&mut self, value: u64) {
        self.vmcs.write(fields::GUEST_DEBUGCTL, value);
    }

    fn set_xcr0(&mut self, value: u64) {
        self.live.set_xcr0(value);
    }

    fn tsc_aux(&self) -> u64 {
        // SAFETY: CPUID shows RDTSCP or RDPID to guests only where the host has the MSR, which
        // holds the guest's value while the VCPU is loaded.
        unsafe { vmx::msr::read(msr::IA32_TSC_AUX) }
    }

    fn set_tsc_aux(&mut self, value: u64) {
        // SAFETY: as for reading; the value is legal by the contract.
        unsafe { vmx::msr::write(msr::IA32_TSC_AUX, value) };
    }

    fn spec_ctrl(&self) -> u64 {
        self.gpr.spec_ctrl().unwrap_or(0)
    }

    fn set_spec_ctrl(&mut self, value: u64, is_shared: bool) {
        // SAFETY: the CPU has the register with these bits, as CPUID shows them to the guest.
        unsafe { self.gpr.set_spec_ctrl(value, is_shared) };
        self.vmcs.set_exit_address(self.gpr.exit_address());
    }

    fn enter_at(&mut self, state: &EntryState) {
        self.set_entry_state(state);
    }

    fn init(&mut self, signature: u32) {
        self.reset_registers(signature);
        live_state::init_reset();
    }

    fn set_msr_exits(&mut self, msr: u32, access: MsrAccess, exits: bool) {
        self.msr_bitmaps.set_exits(msr, access, exits);
    }

    fn set_cr3_exits(&mut self, exits: bool, exempt: &[u64]) {
        let mut primary = self.primary;
        primary.set(Primary::CR3_LOAD_EXITING, exits);
        self.set_primary(primary);
        let room = (self.capabilities.cr3_targets as usize).min(4);
        let exempt = &exempt[..exempt.len().min(room)];
        for (field, &value) in [
            fields::CR3_TARGET_0,
            fields::CR3_TARGET_1,
            fields::CR3_TARGET_2,
            fields::CR3_TARGET_3,
        ]
        .into_iter()
        .zip(exempt)
        {
            self.vmcs.write(field, value);
        }
        self.vmcs
            .write(fields::CR3_TARGET_COUNT, exempt.len() as u32);
    }

    fn set_debug_register_exits(&mut self, exits: bool) {
        let mut primary = self.primary;
        primary.set(Primary::MOV_DR_EXITING, exits);
        self.set_primary(primary);
    }

    #[inline]
    fn pause(&mut self) {
        core::hint::spin_loop();
    }

    fn set_tsc(&mut self, scaling: TscScaling, at_real_time: bool) {
        if self.capabilities.tsc_scaling() {
            self.vmcs.write(fields::TSC_MULTIPLIER, scaling.multiplier);
        } else if self.primary.contains(Primary::RDTSC_EXITING) == at_real_time {
            // RDMSR of the TSC shows what RDTSC does.
            self.msr_bitmaps.set_exits(
                msr::IA32_TIME_STAMP_COUNTER,
                MsrAccess::Read,
                !at_real_time,
            );
            let mut primary = self.primary;
            primary.set(Primary::RDTSC_EXITING, !at_real_time);
            self.set_primary(primary);
        }
        self.set_tsc_offset(scaling.offset);
    }

    #[inline]
    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(fields::TSC_OFFSET, offset);
    }

    fn flush_tlb(&mut self, which: TlbFlush) {
        let capabilities = &self.capabilities.translation;
        match which {
            TlbFlush::All => translation::invalidate_vpid(capabilities, self.vpid),
            TlbFlush::NonGlobal => {
                translation::invalidate_vpid_non_global(capabilities, self.vpid);
            }
        }
    }

    fn set_memory_view(&mut self, view: View) {
        // SAFETY: the VM keeps the tables of both views for as long as it lives.
        unsafe { self.vmcs.set_ept_pointer(self.ept_pointers[view as usize]) };
    }

    fn flush_nested_tlb(&mut self) {
        for pointer in self.ept_pointers {
            translation::invalidate_ept(&self.capabilities.translation, pointer);
        }
    }

    fn can_virtualize_apic(&self) -> bool {
        self.capabilities.virtual_apic()
    }

    fn set_apic_assistance(&mut self, assistance: ApicAssistance) {
        let registers =
            Secondary::APIC_REGISTER_VIRTUALIZATION | Secondary::VIRTUAL_INTERRUPT_DELIVERY;
        let extra = match assistance {
            ApicAssistance::TprShadow => Secondary::empty(),
            ApicAssistance::XApicTpr => Secondary::VIRTUALIZE_APIC_ACCESSES,
            ApicAssistance::XApic => Secondary::VIRTUALIZE_APIC_ACCESSES | registers,
            ApicAssistance::X2Apic => Secondary::VIRTUALIZE_X2APIC_MODE | registers,
        };
        let controls = setup::controls(self.capabilities);
        self.vmcs
            .set_secondary(self.capabilities, controls.secondary | extra);
        self.tpr_threshold = 0;
        self.vmcs.write(fields::TPR_THRESHOLD, 0);
        self.eoi_exits = [0; 4];
        if self.capabilities.virtual_apic() {
            self.write_eoi_exits();
        }
    }

    fn set_virtual_interrupts(&mut self, requested: u8, in_service: u8) {
        let status = u16::from(in_service) << 8 | u16::from(requested);
        if self.vmcs.read(fields::GUEST_INTERRUPT_STATUS) != status {
            self.vmcs.write(fields::GUEST_INTERRUPT_STATUS, status);
        }
    }

    fn set_eoi_exits(&mut self, vectors: [u64; 4]) {
        if vectors != self.eoi_exits {
            self.eoi_exits = vectors;
            self.write_eoi_exits();
        }
    }

    fn set_tpr_threshold(&mut self, threshold: u8) {
        if threshold != self.tpr_threshold {
            self.tpr_threshold = threshold;
            self.vmcs.write(fields::TPR_THRESHOLD, threshold.into());
        }
    }

    fn write_state(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        state::write(&self.vmcs, out)
    }
}
