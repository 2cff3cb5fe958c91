//! A virtual CPU: one guest processor, from its registers to its local APIC.
//!
//! [`Vcpu::run`] is the loop that everything hangs on: enter the guest, decode why it came
//! out, let a device or a rule answer, go back in.

mod apic_virtualization;
mod bus;
pub mod control_registers;
mod cpu;
pub mod dump;
mod events;
mod exits;
pub mod live_state;
mod loading;
mod observe;
pub mod registers;
mod reset;
mod run;
mod setup;
pub mod stop_reason;
mod timekeeping;
mod vector_registers;

use alloc::boxed::Box;
use alloc::sync::Arc;

use devices::lapic::LocalApic;
use devices::time::{Hertz, HostTicks};
use devices::tsc::Tsc;
use vmx::bitmaps::{IoBitmaps, MsrBitmaps};
use vmx::capabilities::Capabilities;
use vmx::controls::Primary;
use vmx::entry::GuestRegisters;
use vmx::event::Event;
use vmx::fields;
use vmx::page::Page;
use vmx::translation::Vpid;
use vmx::vmcs::{VmInstructionFailed, Vmcs};

use crate::guest_boot::EntryState;
use crate::msr::Msrs;
use crate::suppression::pace::Pace;
use crate::vm::Vm;
use crate::vm::statistics::Statistics;
use live_state::LiveState;
use registers::Registers;

pub use cpu::HostCpu;
pub use run::RunExit;
pub use stop_reason::StopReason;

/// What a VCPU is doing, as far as its guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Executing instructions.
    Running,
    /// Waiting for an event after HLT.
    Halted,
    /// Waiting for a start-up after INIT.
    WaitingForStartUp,
}

/// Processor structures that a VCPU needs, each for itself alone.
pub struct VcpuPages {
    /// For the VMCS.
    pub vmcs: &'static mut Page,
    /// Which MSRs exit.
    pub msr_bitmaps: &'static mut MsrBitmaps,
    /// Which ports exit: all; may be shared.
    pub io_bitmaps: &'static IoBitmaps,
}

/// A virtual CPU.
pub struct Vcpu {
    vm: Arc<Vm>,
    /// Its number in the VM.
    index: u32,
    registers: Registers,
    live: LiveState,
    lapic: LocalApic,
    tsc: Tsc,
    msrs: Msrs,
    capabilities: &'static Capabilities,
    vpid: Vpid,
    msr_bitmaps: &'static mut MsrBitmaps,
    activity: Activity,
    launched: bool,
    /// The physical CPU that it is on or was last on: whose host state is in the VMCS.
    cpu: Option<u32>,
    /// The state of the VM's clock gate when the clock was last applied.
    clock_seen: u64,
    /// The generation of the VM's memory map for which this CPU's translations are right.
    memory_seen: u64,

    /// The primary controls as they are in the VMCS.
    primary: Primary,
    /// The TPR threshold as it is in the VMCS.
    tpr_threshold: u32,
    /// The EOI-exit bitmap as it is in the VMCS.
    eoi_exits: [u64; 4],
    /// Whether the processor may do more of the LAPIC than CR8.
    may_virtualize_apic: bool,
    /// Whether it delivers interrupts now.
    virtual_delivery: bool,
    /// Whether the LAPIC was enabled by software when the controls were last set.
    apic_was_enabled: bool,

    /// An event whose delivery the last exit interrupted.
    being_delivered: Option<Event>,
    /// An exception to be delivered at the next entry.
    to_inject: Option<Event>,
    /// Something that the next entry depends on has changed: events, timers, the clock.
    attention: bool,
    /// When the first timer of the guest is due.
    deadline: HostTicks,

    observer: observe::Observer,
    pace: Pace,
    /// When the preemption timer is to end the guest's stay.
    look_at: HostTicks,
    statistics: Statistics,

    /// The guest that is to be loaded first.
    loading: Option<Box<loading::Loading>>,
    /// It has written more to its console than there is room for.
    waits_for_line: bool,
}

/// What a VCPU is made with, besides its pages.
pub struct VcpuConfig {
    /// Its number in the VM.
    pub index: u32,
    /// Its local APIC, whose port the VM knows.
    pub lapic: LocalApic,
    /// Tags its translations.
    pub vpid: Vpid,
    /// Its MSRs.
    pub msrs: Msrs,
    /// Whether to let the processor virtualise the APIC, if it can.
    pub virtualize_apic: bool,
    /// How fast the host's TSC counts.
    pub tsc: Hertz,
}

impl Vcpu {
    /// A VCPU of `vm` after power-up.
    ///
    /// # Errors
    /// If the processor refuses the VMCS.
    ///
    /// # Safety
    /// This CPU is in VMX operation with `capabilities`, and no other VCPU is loaded on it.
    pub unsafe fn new(
        vm: Arc<Vm>,
        capabilities: &'static Capabilities,
        pages: VcpuPages,
        config: VcpuConfig,
    ) -> Result<Self, VmInstructionFailed> {
        // SAFETY: VMX operation, by the contract.
        let mut vmcs = unsafe { Vmcs::new(capabilities, pages.vmcs)? };
        vmcs.load()?;
        let limits = *vm.cpuid.limits();
        let cr4_allowed = limits.cr4 & capabilities.cr4_fixed1;
        setup::initialise(&mut vmcs, capabilities, config.vpid.get(), cr4_allowed);
        // SAFETY: the VM keeps its tables for as long as its VCPUs live, and maps only its
        // own memory.
        unsafe { vmcs.set_ept_pointer(vm.ept_pointer()) };
        // SAFETY: the page is part of the LAPIC's port, which lives as long as the VCPU, and
        // consists of atomics.
        unsafe {
            vmcs.set_virtual_apic_page(vmx::addr::HostPhysAddr(core::ptr::from_ref(
                config.lapic.page(),
            ) as u64));
        }
        if capabilities.virtual_apic() {
            vmcs.set_apic_access_page(vm.apic_access_page());
        }
        vmcs.set_io_bitmaps(pages.io_bitmaps);
        // SAFETY: the address of the bitmaps; they are changed by this VCPU alone, while it
        // is out of the guest.
        vmcs.set_msr_bitmaps(unsafe { &*core::ptr::from_ref(pages.msr_bitmaps) });
        let primary = setup::controls(capabilities).primary;
        let mut vcpu = Self {
            vm,
            index: config.index,
            registers: Registers {
                gpr: GuestRegisters::default(),
                vmcs,
                physical_address_bits: limits.physical_address_bits,
            },
            live: LiveState::new(&limits),
            lapic: config.lapic,
            tsc: Tsc::new(),
            msrs: config.msrs,
            capabilities,
            vpid: config.vpid,
            msr_bitmaps: pages.msr_bitmaps,
            activity: if config.index == 0 {
                Activity::Running
            } else {
                Activity::WaitingForStartUp
            },
            launched: false,
            cpu: None,
            clock_seen: 0,
            memory_seen: 0,
            primary,
            tpr_threshold: 0,
            eoi_exits: [0; 4],
            may_virtualize_apic: config.virtualize_apic && capabilities.virtual_apic(),
            virtual_delivery: false,
            apic_was_enabled: false,
            being_delivered: None,
            to_inject: None,
            attention: true,
            deadline: HostTicks(u64::MAX),
            observer: observe::Observer::new(crate::machine::host_time::host_now()),
            pace: Pace::new(config.tsc),
            look_at: HostTicks(0),
            statistics: Statistics::default(),
            loading: None,
            waits_for_line: false,
        };
        setup::init_reset(&mut vcpu.registers, vcpu.vm.cpuid.signature());
        vcpu.pass_msrs_through();
        vcpu.configure_apic();
        vcpu.apply_clock();
        vcpu.release_vmcs()?;
        Ok(vcpu)
    }

    /// Sets the registers that a boot protocol prescribes.
    ///
    /// # Errors
    /// If the processor refuses the VMCS.
    pub fn enter_at(&mut self, state: &EntryState) -> Result<(), VmInstructionFailed> {
        self.registers.vmcs.load()?;
        self.set_entry_state(state);
        self.release_vmcs()
    }

    /// As [`Vcpu::enter_at`], when its VMCS is current.
    fn set_entry_state(&mut self, state: &EntryState) {
        use arch::gpr;
        setup::enter_at(&mut self.registers.vmcs, state);
        let gprs = &mut self.registers.gpr.gpr;
        gprs.fill(0);
        gprs[gpr::RAX] = state.rax;
        gprs[gpr::RBX] = state.rbx;
        gprs[gpr::RSI] = state.rsi;
        if self.index == 0 {
            // What firmware leaves behind: the PIC's interrupts pass through LINT0.
            self.lapic.enter_virtual_wire_mode();
            self.follow_apic_enable();
        }
        self.attention = true;
    }

    /// The VM that it belongs to.
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Its number in the VM.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// What its guest has it do.
    #[must_use]
    pub const fn activity(&self) -> Activity {
        self.activity
    }

    /// When it wants to run next although it is halted: `u64::MAX` for never.
    #[must_use]
    pub const fn deadline(&self) -> HostTicks {
        self.deadline
    }

    /// What it has done.
    #[must_use]
    pub const fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Writes a dump of its registers. Its VMCS must be current.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_dump(&self, out: &mut impl core::fmt::Write) -> core::fmt::Result {
        dump::write_dump(&self.registers, &self.vm.ram, out)
    }

    fn pass_msrs_through(&mut self) {
        use vmx::bitmaps::MsrAccess;
        for msr in crate::msr::pass_through() {
            self.msr_bitmaps.pass_through(msr);
        }
        if self.vm.cpuid.limits().tsc_aux {
            self.msr_bitmaps
                .set_exits(arch::msr::IA32_TSC_AUX, MsrAccess::Read, false);
        }
        // RDMSR of the TSC shows what RDTSC does; writes move the offset.
        self.msr_bitmaps
            .set_exits(arch::msr::IA32_TIME_STAMP_COUNTER, MsrAccess::Read, false);
        self.msr_bitmaps
            .set_exits(arch::msr::IA32_EFER, MsrAccess::Read, false);
    }

    /// CR3 as the guest has it.
    fn cr3(&self) -> u64 {
        self.registers.vmcs.read(fields::GUEST_CR3)
    }
}
