//! A processor for tests: its guest does what the test's script says, and it remembers what every
//! entry was like. Neither may give it a state that a real one would not enter a guest with.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::fmt;

use arch::gpr::{RAX, RBX, RDX, RSI};
use arch::msr::DebugCtl;
use arch::{Cr0Flags, EferFlags, RFlags, reset};
use devices::clock::TscScaling;
use devices::time::HostTicks;
use vmx::bitmaps::MsrAccess;
use vmx::diagnosis::GuestState;
use vmx::event::{Event, EventKind};
use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};

use super::exit::Exit;
use super::{
    ApicAssistance, EntryFailed, ExitReason, GuestCpu, Interruptibility, Refused, TlbFlush,
};
use crate::emulate::{Bytes, Computation, Computed, Cpu};
use crate::guest_boot::EntryState;
use crate::guest_paging::PagingRegisters;
use crate::machine::host_time::{fake as host_clock, host_now};
use crate::machine::machine_check::MachineCheck;
use crate::task_switch::TaskCpu;
use crate::vcpu::HostCpu;
use crate::vcpu::control_registers::with_machine_status;
use crate::vm::memory_map::View;

/// The exit that ends a stay, and the event whose delivery it interrupts.
type Ending = (Exit, Option<Event>);

/// A scripted stay in the guest, from an entry to the next exit.
pub(in crate::vcpu) struct Stay {
    ticks: u64,
    run: Box<dyn FnOnce(&mut FakeCpu) -> Ending + Send>,
}

impl Stay {
    /// It runs for so many host ticks and exits.
    pub(in crate::vcpu) fn until(ticks: u64, exit: Exit) -> Self {
        Self {
            ticks,
            run: Box::new(move |_| (exit, None)),
        }
    }

    /// What it does to its processor decides how it ends.
    pub(in crate::vcpu) fn deciding(
        run: impl FnOnce(&mut FakeCpu) -> Ending + Send + 'static,
    ) -> Self {
        Self {
            ticks: 0,
            run: Box::new(run),
        }
    }

    /// And the exit comes in the middle of the delivery of `event`.
    pub(in crate::vcpu) fn delivering(self, event: Event) -> Self {
        Self {
            run: Box::new(move |cpu| ((self.run)(cpu).0, Some(event))),
            ..self
        }
    }

    /// And it does that to its processor before the exit.
    pub(in crate::vcpu) fn having(
        self,
        effect: impl FnOnce(&mut FakeCpu) + Send + 'static,
    ) -> Self {
        Self {
            run: Box::new(move |cpu| {
                effect(cpu);
                (self.run)(cpu)
            }),
            ..self
        }
    }
}

/// The record of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::vcpu) struct Entry {
    pub(in crate::vcpu) at: HostTicks,
    /// The event that it delivered.
    pub(in crate::vcpu) event: Option<Event>,
    /// RFLAGS, as the event's delivery pushes them.
    pub(in crate::vcpu) rflags: u64,
    pub(in crate::vcpu) interruptibility: Interruptibility,
    pub(in crate::vcpu) interrupt_window: bool,
    pub(in crate::vcpu) nmi_window: bool,
    pub(in crate::vcpu) tpr_threshold: u8,
    /// The time for which the guest was allowed to run, in host ticks.
    pub(in crate::vcpu) time_limit: u64,
    pub(in crate::vcpu) tsc: TscScaling,
    pub(in crate::vcpu) cr3_exits: bool,
    pub(in crate::vcpu) cr3_exempt: Vec<u64>,
    pub(in crate::vcpu) debug_addresses: [u64; 4],
    pub(in crate::vcpu) dr7: u64,
    pub(in crate::vcpu) debug_register_exits: bool,
    pub(in crate::vcpu) view: View,
}

/// The processor. After power-up it is in 64-bit mode at CPL 0 with interrupts enabled. Without a
/// script, its guest computes.
pub(in crate::vcpu) struct FakeCpu {
    pub(in crate::vcpu) gprs: [u64; 16],
    pub(in crate::vcpu) rip: u64,
    pub(in crate::vcpu) rflags: u64,
    pub(in crate::vcpu) cr0: u64,
    pub(in crate::vcpu) cr2: u64,
    pub(in crate::vcpu) cr3: u64,
    pub(in crate::vcpu) cr4: u64,
    pub(in crate::vcpu) efer: u64,
    pub(in crate::vcpu) debug_addresses: [u64; 4],
    pub(in crate::vcpu) debug_register_exits: bool,
    pub(in crate::vcpu) dr6: u64,
    pub(in crate::vcpu) dr7: u64,
    pub(in crate::vcpu) debugctl: u64,
    pub(in crate::vcpu) segments: [Segment; 8],
    pub(in crate::vcpu) interruptibility: Interruptibility,
    pub(in crate::vcpu) pending_debug: bool,
    /// The linear address of nested page faults.
    pub(in crate::vcpu) faulting_address: Option<u64>,
    pub(in crate::vcpu) can_virtualize_apic: bool,
    pub(in crate::vcpu) assistance: ApicAssistance,
    /// The highest vectors requested and in service.
    pub(in crate::vcpu) virtual_interrupts: (u8, u8),
    pub(in crate::vcpu) eoi_exits: [u64; 4],
    pub(in crate::vcpu) flushes: Vec<TlbFlush>,
    pub(in crate::vcpu) script: VecDeque<Stay>,
    pub(in crate::vcpu) entries: Vec<Entry>,
    /// The exits, each after the entry of the same place.
    pub(in crate::vcpu) exits: Vec<Exit>,
    pdptes: [u64; 4],
    /// GDTR and IDTR.
    tables: [DescriptorTable; 2],
    xmm: [u128; 16],
    xcr0: u64,
    tsc_aux: u64,
    spec_ctrl: u64,
    /// The MSRs that do not exit, each for reads or (true) for writes.
    passed_msrs: BTreeSet<(u32, bool)>,
    injecting: Option<Event>,
    interrupted: Option<Event>,
    windows: (bool, bool),
    tpr_threshold: u8,
    time_limit: u64,
    tsc: TscScaling,
    cr3_exits: bool,
    cr3_exempt: Vec<u64>,
    view: View,
}

/// The length of the fake processor's instructions.
const INSTRUCTION_LENGTH: u32 = 2;

const CODE_64: AccessRights = AccessRights::PRESENT
    .union(AccessRights::CODE_OR_DATA)
    .union(AccessRights::CODE)
    .union(AccessRights::ACCESSED)
    .union(AccessRights::GRANULARITY)
    .union(AccessRights::LONG);
const DATA: AccessRights = AccessRights::PRESENT
    .union(AccessRights::CODE_OR_DATA)
    .union(AccessRights::WRITABLE_OR_READABLE)
    .union(AccessRights::ACCESSED)
    .union(AccessRights::GRANULARITY);
const BUSY_TSS: AccessRights = AccessRights::PRESENT
    .union(AccessRights::from_bits_retain(0xb))
    .union(AccessRights::GRANULARITY);

impl FakeCpu {
    pub(in crate::vcpu) fn new() -> Self {
        let segment = |rights| Segment {
            selector: 0,
            base: 0,
            limit: u32::MAX,
            rights,
        };
        let mut segments = [segment(DATA); 8];
        segments[SegmentRegister::Cs as usize] = segment(CODE_64);
        segments[SegmentRegister::Ldtr as usize] = segment(AccessRights::UNUSABLE);
        segments[SegmentRegister::Tr as usize] = segment(BUSY_TSS);
        Self {
            gprs: [0; 16],
            rip: 0x1000,
            rflags: RFlags::INTERRUPT_FLAG.bits() | 2,
            cr0: 0x8000_0031,
            cr2: 0,
            cr3: 0,
            cr4: 1 << 5,
            efer: 0x500,
            debug_addresses: [0; 4],
            debug_register_exits: false,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            debugctl: 0,
            segments,
            interruptibility: Interruptibility::empty(),
            pending_debug: false,
            faulting_address: None,
            can_virtualize_apic: false,
            assistance: ApicAssistance::TprShadow,
            virtual_interrupts: (0, 0),
            eoi_exits: [0; 4],
            flushes: Vec::new(),
            script: VecDeque::new(),
            entries: Vec::new(),
            exits: Vec::new(),
            pdptes: [0; 4],
            tables: [DescriptorTable { base: 0, limit: 0 }; 2],
            xmm: [0; 16],
            xcr0: 1,
            tsc_aux: 0,
            spec_ctrl: 0,
            passed_msrs: BTreeSet::new(),
            injecting: None,
            interrupted: None,
            windows: (false, false),
            tpr_threshold: 0,
            time_limit: 0,
            tsc: TscScaling {
                multiplier: 0,
                offset: 0,
            },
            cr3_exits: false,
            cr3_exempt: Vec::new(),
            view: View::Whole,
        }
    }

    /// The last entry.
    pub(in crate::vcpu) fn last_entry(&self) -> &Entry {
        self.entries.last().expect("the guest has been entered")
    }

    /// Sets the privilege level.
    pub(in crate::vcpu) fn set_cpl(&mut self, cpl: u32) {
        let rights = &mut self.segments[SegmentRegister::Ss as usize].rights;
        *rights = AccessRights::from_bits_retain(rights.bits() & !0x60 | cpl << 5);
    }

    /// Whether an access to an MSR exits.
    pub(in crate::vcpu) fn msr_exits(&self, msr: u32, access: MsrAccess) -> bool {
        !self
            .passed_msrs
            .contains(&(msr, access == MsrAccess::Write))
    }

    /// Panics if the state is none that a processor takes, by `whose` fault.
    fn check(&self, whose: &str) {
        let state = GuestState {
            long: self.efer & EferFlags::LONG_MODE_ACTIVE.bits() != 0,
            unrestricted: true,
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            dr7: self.dr7,
            rip: self.rip,
            rflags: self.rflags,
            segments: self.segments,
            gdtr: self.tables[0],
            idtr: self.tables[1],
            activity: 0,
            interruptibility: self.interruptibility.bits(),
            pending_single_step: self.pending_debug,
            steps_branches: self.debugctl & DebugCtl::BTF.bits() != 0,
            injected: self.injecting.map_or(0, |event| {
                event.information(self.cr0 & Cr0Flags::PROTECTED_MODE_ENABLE.bits() != 0)
            }),
        };
        state.check(|failed| panic!("{whose} state of the guest: {failed}"));
    }

    /// What the processor does with the event that an entry delivers, by an interrupt gate.
    fn deliver(&mut self, event: Event) {
        self.rflags &= !RFlags::INTERRUPT_FLAG.bits();
        self.interruptibility -= Interruptibility::SHADOW;
        if event.kind == EventKind::Nmi {
            self.interruptibility |= Interruptibility::BLOCKED_BY_NMI;
        }
    }
}

impl GuestCpu for FakeCpu {
    fn acquire(&mut self) -> Result<(), Refused> {
        Ok(())
    }

    fn release(&mut self) -> Result<(), Refused> {
        Ok(())
    }

    unsafe fn load(&mut self, _: &HostCpu, _: bool) -> Result<(), Refused> {
        Ok(())
    }

    fn unload(&mut self) -> Result<(), Refused> {
        Ok(())
    }

    fn set_time_limit(&mut self, ticks: u64) {
        self.time_limit = ticks;
    }

    unsafe fn enter(&mut self) -> Result<(), EntryFailed> {
        self.check("the entry's");
        let event = self.injecting.take();
        self.entries.push(Entry {
            at: host_now(),
            event,
            rflags: self.rflags,
            interruptibility: self.interruptibility,
            interrupt_window: self.windows.0,
            nmi_window: self.windows.1,
            tpr_threshold: self.tpr_threshold,
            time_limit: self.time_limit,
            tsc: self.tsc,
            cr3_exits: self.cr3_exits,
            cr3_exempt: self.cr3_exempt.clone(),
            debug_addresses: self.debug_addresses,
            dr7: self.dr7,
            debug_register_exits: self.debug_register_exits,
            view: self.view,
        });
        if let Some(event) = event {
            self.deliver(event);
        }
        let computes = || Stay::until(self.time_limit, Exit::TimeLimit);
        let stay = self.script.pop_front().unwrap_or_else(computes);
        assert!(
            stay.ticks <= self.time_limit,
            "the script's stay is longer than the guest may run: {} > {}",
            stay.ticks,
            self.time_limit
        );
        host_clock::advance(stay.ticks);
        let (exit, interrupted) = (stay.run)(self);
        self.exits.push(exit);
        self.interrupted = interrupted;
        self.check("the script's");
        Ok(())
    }

    fn exit_reason(&self) -> ExitReason {
        ExitReason(0)
    }

    fn decode_exit(&self, _: ExitReason) -> Exit {
        self.exits.last().copied().unwrap_or(Exit::Unexpected)
    }

    fn exit_name(_: ExitReason) -> &'static str {
        "scripted"
    }

    fn take_host_interrupt(&mut self) {}

    fn take_host_nmi(&mut self) {}

    fn take_host_machine_check(&mut self) -> MachineCheck {
        MachineCheck::NONE
    }

    fn show_cr4(&mut self, visible: u64) {
        self.cr4 = visible;
    }

    fn interrupted_delivery(&self) -> Option<Event> {
        self.interrupted
    }

    fn inject(&mut self, event: Event) {
        self.injecting = Some(event);
    }

    fn is_injecting(&self) -> bool {
        self.injecting.is_some()
    }

    fn cancel_injection(&mut self) {
        self.injecting = None;
    }

    fn interruptibility(&self) -> Interruptibility {
        self.interruptibility
    }

    fn set_interruptibility(&mut self, state: Interruptibility) {
        self.interruptibility = state;
    }

    fn set_event_windows(&mut self, interrupt: bool, nmi: bool) {
        self.windows = (interrupt, nmi);
    }

    fn faulting_linear_address(&self) -> Option<u64> {
        self.faulting_address
    }

    fn has_pending_debug_exception(&self) -> bool {
        self.pending_debug
    }

    fn set_pending_single_step(&mut self) {
        self.pending_debug = true;
    }

    fn next_rip(&self) -> u64 {
        self.rip.wrapping_add(INSTRUCTION_LENGTH.into())
    }

    fn instruction_length(&self) -> u32 {
        INSTRUCTION_LENGTH
    }

    fn write_rip(&mut self, rip: u64) {
        self.rip = rip;
    }

    fn set_cr0(&mut self, visible: u64, _: u64) {
        self.cr0 = visible;
    }

    fn set_efer(&mut self, efer: u64) {
        self.efer = efer;
    }

    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        self.pdptes = pdptes;
    }

    fn set_cr2(&mut self, address: u64) {
        self.cr2 = address;
    }

    fn add_to_dr6(&mut self, causes: u64) {
        self.dr6 = self.dr6 & !0xf | causes;
    }

    fn debug_address(&self, slot: usize) -> u64 {
        self.debug_addresses[slot]
    }

    fn set_debug_address(&mut self, slot: usize, address: u64) {
        self.debug_addresses[slot] = address;
    }

    fn dr7(&self) -> u64 {
        self.dr7
    }

    fn set_dr7(&mut self, dr7: u64) {
        self.dr7 = dr7;
    }

    fn debugctl(&self) -> u64 {
        self.debugctl
    }

    fn set_debugctl(&mut self, value: u64) {
        self.debugctl = value;
    }

    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }

    fn tsc_aux(&self) -> u64 {
        self.tsc_aux
    }

    fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value;
    }

    fn spec_ctrl(&self) -> u64 {
        self.spec_ctrl
    }

    fn set_spec_ctrl(&mut self, value: u64, _: bool) {
        self.spec_ctrl = value;
    }

    fn enter_at(&mut self, state: &EntryState) {
        self.gprs = [0; 16];
        self.gprs[RAX] = state.rax;
        self.gprs[RBX] = state.rbx;
        self.gprs[RSI] = state.rsi;
        self.rip = state.rip;
        self.rflags = state.rflags;
        self.cr0 = state.cr0;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.efer = state.efer;
        self.segments.fill(state.data);
        self.segments[SegmentRegister::Cs as usize] = state.cs;
        self.segments[SegmentRegister::Tr as usize] = state.tr;
        self.segments[SegmentRegister::Ldtr as usize] = state.ldtr;
        self.tables = [state.gdtr, state.idtr];
    }

    fn init(&mut self, signature: u32) {
        self.gprs = [0; 16];
        self.gprs[RDX] = signature.into();
        self.rip = reset::RIP;
        self.rflags = reset::RFLAGS;
        self.cr0 = reset::CR0;
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = 0;
        self.efer = 0;
        self.dr7 = reset::DR7;
        self.debugctl = 0;
        let segment = |selector, base, rights| Segment {
            selector,
            base,
            limit: 0xffff,
            rights: AccessRights::from_bits_retain(rights),
        };
        self.segments.fill(segment(0, 0, 0x93));
        self.segments[SegmentRegister::Cs as usize] = segment(0xf000, 0xffff_0000, 0x9b);
        self.segments[SegmentRegister::Ldtr as usize] = segment(0, 0, 0x82);
        self.segments[SegmentRegister::Tr as usize] = segment(0, 0, 0x8b);
        self.tables = [DescriptorTable {
            base: 0,
            limit: 0xffff,
        }; 2];
        self.interruptibility = Interruptibility::empty();
        self.pending_debug = false;
    }

    fn set_msr_exits(&mut self, msr: u32, access: MsrAccess, exits: bool) {
        let key = (msr, access == MsrAccess::Write);
        if exits {
            self.passed_msrs.remove(&key);
        } else {
            self.passed_msrs.insert(key);
        }
    }

    fn set_cr3_exits(&mut self, exits: bool, exempt: &[u64]) {
        self.cr3_exits = exits;
        self.cr3_exempt = exempt.to_vec();
    }

    fn set_memory_view(&mut self, view: View) {
        self.view = view;
    }

    fn set_debug_register_exits(&mut self, exits: bool) {
        self.debug_register_exits = exits;
    }

    fn pause(&mut self) {
        host_clock::advance(10);
    }

    fn set_tsc(&mut self, scaling: TscScaling, _: bool) {
        self.tsc = scaling;
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc.offset = offset;
    }

    fn flush_tlb(&mut self, which: TlbFlush) {
        self.flushes.push(which);
    }

    fn flush_nested_tlb(&mut self) {}

    fn can_virtualize_apic(&self) -> bool {
        self.can_virtualize_apic
    }

    fn set_apic_assistance(&mut self, assistance: ApicAssistance) {
        self.assistance = assistance;
        self.tpr_threshold = 0;
        self.eoi_exits = [0; 4];
    }

    fn set_virtual_interrupts(&mut self, requested: u8, in_service: u8) {
        self.virtual_interrupts = (requested, in_service);
    }

    fn set_eoi_exits(&mut self, vectors: [u64; 4]) {
        self.eoi_exits = vectors;
    }

    fn set_tpr_threshold(&mut self, threshold: u8) {
        self.tpr_threshold = threshold;
    }

    fn write_state(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{} entries", self.entries.len())
    }
}

impl PagingRegisters for FakeCpu {
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
        self.efer
    }

    fn pdpte(&self, index: usize) -> u64 {
        self.pdptes[index & 3]
    }

    fn physical_address_bits(&self) -> u32 {
        46
    }
}

impl Cpu for FakeCpu {
    fn xcr0(&self) -> u64 {
        self.xcr0
    }

    fn gpr(&self, index: usize) -> u64 {
        self.gprs[index & 15]
    }

    fn set_gpr(&mut self, index: usize, value: u64) {
        self.gprs[index & 15] = value;
    }

    fn xmm(&self, index: usize) -> u128 {
        self.xmm[index & 15]
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        self.xmm[index & 15] = value;
    }

    fn ymm_high(&self, _: usize) -> u128 {
        0
    }

    fn set_ymm_high(&mut self, _: usize, _: u128) {}

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.go_to(rip);
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }

    fn cpl(&self) -> u8 {
        self.segment_rights(SegmentRegister::Ss).dpl()
    }

    fn segment_selector(&self, segment: SegmentRegister) -> u16 {
        self.segment(segment).selector
    }

    fn segment_base(&self, segment: SegmentRegister) -> u64 {
        self.segment(segment).base
    }

    fn segment_limit(&self, segment: SegmentRegister) -> u32 {
        self.segment(segment).limit
    }

    fn segment_rights(&self, segment: SegmentRegister) -> AccessRights {
        self.segment(segment).rights
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = segment;
    }

    fn block_events_by_mov_ss(&mut self) {
        self.interruptibility -= Interruptibility::SHADOW;
        self.interruptibility |= Interruptibility::BLOCKED_BY_MOV_SS;
    }

    fn gdtr(&self) -> DescriptorTable {
        self.tables[0]
    }

    fn set_gdtr(&mut self, table: DescriptorTable) {
        self.tables[0] = table;
    }

    fn idtr(&self) -> DescriptorTable {
        self.tables[1]
    }

    fn set_idtr(&mut self, table: DescriptorTable) {
        self.tables[1] = table;
    }

    fn compute(&mut self, _: &mut Computation<'_>, _: &mut Bytes) -> Computed {
        Computed::Unavailable
    }

    fn load_machine_status(&mut self, value: u16) {
        self.cr0 = with_machine_status(self.cr0, value);
    }
}

impl TaskCpu for FakeCpu {
    fn set_cr3(&mut self, cr3: u64, pdptes: Option<[u64; 4]>) {
        self.cr3 = cr3;
        if let Some(pdptes) = pdptes {
            self.set_pdptes(pdptes);
        }
    }

    fn enter_task(&mut self, rip: u64, rflags: u64) {
        self.end_shadow();
        self.rip = rip;
        self.rflags = rflags;
        self.pending_debug = false;
        self.cr0 |= Cr0Flags::TASK_SWITCHED.bits();
        self.dr7 &= !0x155;
    }
}
