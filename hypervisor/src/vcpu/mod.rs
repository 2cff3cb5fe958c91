//! A virtual CPU: one guest processor, from its registers to its local APIC.
//!
//! [`Vcpu::run`] is the loop that everything hangs on: enter the guest, decode why it came
//! out, let a device or a rule answer, go back in. How that is done on a processor is behind
//! [`backend::GuestCpu`].

mod apic_virtualization;
pub(crate) mod backend;
mod bus;
pub(crate) mod control_registers;
mod cpu;
pub(crate) mod dump;
mod events;
mod exits;
#[cfg(test)]
mod fixture;
mod live_state;
mod loading;
mod observe;
mod reset;
mod resume_point;
mod root_guard;
mod run;
pub(crate) mod stop_reason;
mod suppress;
mod timekeeping;
mod vector_registers;
pub(crate) mod vmx;

use alloc::boxed::Box;
use alloc::sync::Arc;

use ::vmx::bitmaps::MsrAccess;
use arch::msr;
use devices::lapic::LocalApic;
use devices::time::{Hertz, HostTicks};

use crate::guest_boot::EntryState;
use crate::machine::host_time::host_now;
use crate::msr::Msrs;
use crate::msr::speculation::SpecCtrlMsr;
use crate::suppression::pace::Pace;
use crate::vm::Vm;
use crate::vm::requests::Requests;
use crate::vm::statistics::Statistics;
use apic_virtualization::ApicVirtualization;
use backend::{GuestCpu, Refused};
use cpu::Residence;
use events::EventQueue;
use loading::Loading;
use observe::Observer;
use resume_point::ResumePoint;
use root_guard::RootGuard;
use timekeeping::Timekeeping;
use vmx::VmxCpu;

pub(crate) use cpu::HostCpu;
pub(crate) use run::RunExit;
pub(crate) use stop_reason::StopReason;

/// The activity of a VCPU, as far as its guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Executing instructions.
    Running,
    /// Waiting for an event after HLT.
    Halted,
    /// Waiting for a start-up after INIT.
    WaitingForStartUp,
}

impl Activity {
    /// Returns its name, for people and programs.
    const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Halted => "halted",
            Self::WaitingForStartUp => "waiting-for-start-up",
        }
    }
}

/// A virtual CPU, whose guest runs on a `C`.
pub(crate) struct Vcpu<C: GuestCpu = VmxCpu> {
    vm: Arc<Vm>,
    /// Its number in the VM.
    index: u32,
    /// Its registers, and the way into the guest.
    cpu: C,
    /// The physical CPU that it is on.
    residence: Residence,
    lapic: LocalApic,
    apic_virtualization: ApicVirtualization,
    msrs: Msrs,
    spec_ctrl: SpecCtrlMsr,
    time: Timekeeping,
    activity: Activity,
    events: EventQueue,
    /// The requests of the VCPU itself, to be looked at before the next entry.
    pending: Requests,
    /// The time at which the guest's present stay is to end.
    stay_limit: HostTicks,

    observer: Observer,
    resume_point: ResumePoint,
    root_guard: RootGuard,
    pace: Pace,
    statistics: Statistics,

    /// The guest that is to be loaded first.
    loading: Option<Box<Loading>>,
    /// Whether it has written more to its console than there is room for.
    waits_for_line: bool,
}

/// The configuration of a VCPU, besides its processor.
pub(crate) struct VcpuConfig {
    /// Its number in the VM.
    pub index: u32,
    /// Its local APIC, whose port the VM knows.
    pub lapic: LocalApic,
    /// Its MSRs.
    pub msrs: Msrs,
    /// Whether to let the processor virtualize the APIC, if it can.
    pub virtualize_apic: bool,
    /// The frequency of the host's TSC.
    pub tsc: Hertz,
}

impl<C: GuestCpu> Vcpu<C> {
    /// Makes a VCPU of `vm` after power-up, whose guest runs on `cpu`. No VCPU is loaded on this
    /// physical CPU.
    ///
    /// # Errors
    /// If the processor refuses what it is given for the guest.
    pub(crate) fn new(vm: Arc<Vm>, cpu: C, config: VcpuConfig) -> Result<Self, Refused> {
        let may_virtualize_apic = config.virtualize_apic && cpu.can_virtualize_apic();
        let mut vcpu = Self {
            spec_ctrl: SpecCtrlMsr::new(vm.cpuid.limits().spec_ctrl),
            vm,
            index: config.index,
            cpu,
            residence: Residence::default(),
            lapic: config.lapic,
            apic_virtualization: ApicVirtualization::new(may_virtualize_apic),
            msrs: config.msrs,
            time: Timekeeping::new(),
            activity: if config.index == 0 {
                Activity::Running
            } else {
                Activity::WaitingForStartUp
            },
            events: EventQueue::default(),
            pending: Requests::empty(),
            stay_limit: HostTicks::ZERO,
            observer: Observer::new(host_now()),
            resume_point: ResumePoint::default(),
            root_guard: RootGuard::default(),
            pace: Pace::new(config.tsc),
            statistics: Statistics::default(),
            loading: None,
            waits_for_line: false,
        };
        vcpu.cpu.acquire()?;
        vcpu.pass_msrs_through();
        vcpu.configure_apic();
        vcpu.apply_clock();
        vcpu.cpu.release()?;
        Ok(vcpu)
    }

    /// Sets the registers that a boot protocol prescribes.
    ///
    /// # Errors
    /// If the processor refuses what it is given for the guest.
    pub(crate) fn enter_at(&mut self, state: &EntryState) -> Result<(), Refused> {
        self.cpu.acquire()?;
        self.set_entry_state(state);
        self.cpu.release()
    }

    /// Sets registers as [`Vcpu::enter_at`] does, when its registers are accessible.
    fn set_entry_state(&mut self, state: &EntryState) {
        self.cpu.enter_at(state);
        if self.index == 0 {
            // What firmware leaves behind: the PIC's interrupts pass through LINT0.
            self.lapic.enter_virtual_wire_mode();
            self.follow_apic_enable();
        }
    }

    /// Returns the VM that it belongs to.
    #[must_use]
    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Returns when it wants to run next although it is halted: `u64::MAX` for never.
    #[must_use]
    pub(crate) const fn deadline(&self) -> HostTicks {
        self.time.deadline
    }

    /// Returns what it has done.
    #[cfg(test)]
    pub(crate) const fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Writes a dump of its registers, which must be accessible.
    ///
    /// # Errors
    /// If `out` fails.
    pub(crate) fn write_dump(&self, out: &mut impl core::fmt::Write) -> core::fmt::Result {
        dump::write_dump(&self.cpu, self.activity, &self.vm.ram, out)
    }

    /// Lets the guest access the MSRs of its own without an exit.
    fn pass_msrs_through(&mut self) {
        let cpu = &mut self.cpu;
        for msr in crate::msr::pass_through() {
            cpu.set_msr_exits(msr, MsrAccess::Read, false);
            cpu.set_msr_exits(msr, MsrAccess::Write, false);
        }
        if self.vm.cpuid.limits().tsc_aux {
            cpu.set_msr_exits(msr::IA32_TSC_AUX, MsrAccess::Read, false);
        }
        // Commands, which concern this CPU alone, and which Linux gives at switches between processes.
        if self.vm.cpuid.limits().pred_cmd {
            cpu.set_msr_exits(msr::IA32_PRED_CMD, MsrAccess::Write, false);
        }
        if self.vm.cpuid.limits().flush_cmd {
            cpu.set_msr_exits(msr::IA32_FLUSH_CMD, MsrAccess::Write, false);
        }
        // RDMSR of the TSC shows what RDTSC does; writes move the offset.
        cpu.set_msr_exits(msr::IA32_TIME_STAMP_COUNTER, MsrAccess::Read, false);
        cpu.set_msr_exits(msr::IA32_EFER, MsrAccess::Read, false);
    }
}
