//! Why a guest came out, in words that any vendor's virtualization has: what a backend decodes its
//! exits into, as far as each kind needs.

#![forbid(unsafe_code)]

use vmx::addr::GuestPhysAddr;
use vmx::event::Event;

use crate::emulate::{SegmentRegister, Width};

/// An exit of a guest.
///
/// Its kind is a number of its own, not one squeezed into what some kinds have besides: the compiler
/// sees through decoding and matching then, and no value of this type is ever made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// CPUID.
    Cpuid,
    /// RDMSR of the MSR in ECX.
    Rdmsr,
    /// WRMSR to the MSR in ECX.
    Wrmsr,
    /// IN or OUT.
    Io(IoAccess),
    /// INS or OUTS.
    StringIo(StringIoAccess),
    /// The end of the time that the guest was given by
    /// [`GuestCpu::set_time_limit`](super::GuestCpu::set_time_limit).
    TimeLimit,
    /// HLT.
    Hlt,
    /// An interrupt window: the guest can take an interrupt now.
    InterruptWindow,
    /// An NMI window: the guest can take an NMI now.
    NmiWindow,
    /// A task priority that the guest has lowered below the threshold.
    TprBelowThreshold,
    /// A write to the local APIC's register at `offset`; the register page has the value.
    ApicWrite {
        /// The register's offset in the page.
        offset: u16,
    },
    /// An access to the local APIC's page that the processor leaves to us whole.
    ApicAccess(ApicAccess),
    /// The end, by the guest, of an interrupt whose end we want to hear of.
    EndOfInterrupt {
        /// The interrupt's vector.
        vector: u8,
    },
    /// An access to a control register.
    ControlRegister(ControlRegisterAccess),
    /// An access to guest-physical memory that the nested page tables refuse.
    NestedPageFault(NestedPageFault),
    /// An interrupt for the host.
    HostInterrupt,
    /// An NMI for the host.
    HostNmi,
    /// An exception of the guest's that is intercepted.
    Exception(InterceptedException),
    /// MOV to or from a debug register.
    DebugRegister,
    /// VMCALL.
    Hypercall,
    /// XSETBV.
    Xsetbv,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// INVD or WBINVD.
    CacheInvalidation,
    /// A guest's spin loop, or PAUSE.
    Pause,
    /// An instruction that the guest was not told it has: of virtualization, MONITOR, MWAIT.
    UndefinedInstruction,
    /// A task switch.
    TaskSwitch(TaskSwitch),
    /// A triple fault: the guest cannot even deliver a double fault.
    TripleFault,
    /// A refusal by the processor of the guest's state at entry.
    EntryFailure,
    /// A nested page table that the processor does not take: a bug of ours.
    NestedPageTableInvalid(GuestPhysAddr),
    /// An exit that no guest of ours should be able to cause.
    Unexpected,
}

/// IN or OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoAccess {
    /// The port.
    pub port: u16,
    /// The width: a byte, a word or a doubleword.
    pub width: Width,
    /// IN.
    pub input: bool,
}

/// INS or OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StringIoAccess {
    /// The port, the width and the direction.
    pub io: IoAccess,
    /// Whether it has a REP prefix.
    pub repeated: bool,
    /// The width of its addresses and its count.
    pub address_size: Width,
    /// The segment of its memory operand.
    pub segment: SegmentRegister,
    /// The instruction's length in bytes.
    pub length: u8,
}

/// An access to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlRegisterAccess {
    /// MOV to CRn from a general-purpose register.
    Write {
        /// The control register's number.
        register: u8,
        /// The general-purpose register's encoding.
        gpr: u8,
    },
    /// MOV from CRn.
    Read {
        /// The control register's number.
        register: u8,
        /// The general-purpose register's encoding.
        gpr: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW with this operand.
    Lmsw(u16),
}

/// An access to guest-physical memory that the nested page tables refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NestedPageFault {
    /// The guest-physical address of the access.
    pub address: GuestPhysAddr,
    /// A data write.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// Whether the access was to the guest's operand, not to one of its paging structures.
    pub final_access: bool,
    /// Whether it came in an IRET that has already unblocked NMIs.
    pub nmi_unblocked: bool,
}

/// An access to the local APIC's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApicAccess {
    /// The offset in the page (linear accesses only).
    pub offset: u16,
    /// A linear write.
    pub write: bool,
    /// A linear read.
    pub read: bool,
}

/// An exception of the guest's that is intercepted, before it has had any effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterceptedException {
    /// The exception.
    pub event: Event,
    /// Whether it came in an IRET that has already unblocked NMIs.
    pub nmi_unblocked: bool,
    /// The bits of DR6 that the delivery of a #DB sets.
    pub debug_causes: u64,
}

/// The source of a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskSwitchSource {
    /// CALL.
    Call,
    /// IRET.
    Iret,
    /// JMP.
    Jump,
    /// The delivery of an event through a task gate.
    Event,
}

/// A task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskSwitch {
    /// The selector of the new TSS.
    pub selector: u16,
    /// The source of the switch.
    pub source: TaskSwitchSource,
}
