//! Why the guest came out: exit reasons and qualifications, decoded (SDM vol. 3D, app. C,
//! and vol. 3C, 28.2.1).

use crate::addr::{GuestPhysAddr, GuestVirtAddr};
use crate::event::Event;
use crate::fields;
use crate::vmcs::Vmcs;

/// Basic exit reasons (app. C).
pub mod basic {
    #![allow(missing_docs, reason = "the names are the SDM's")]
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INIT: u16 = 3;
    pub const SIPI: u16 = 4;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const INVLPG: u16 = 14;
    pub const RDPMC: u16 = 15;
    pub const RDTSC: u16 = 16;
    pub const VMCALL: u16 = 18;
    pub const VMXON: u16 = 27;
    pub const CR_ACCESS: u16 = 28;
    pub const MOV_DR: u16 = 29;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const INVALID_GUEST_STATE: u16 = 33;
    pub const MSR_LOADING: u16 = 34;
    pub const MWAIT: u16 = 36;
    pub const MONITOR_TRAP_FLAG: u16 = 37;
    pub const MONITOR: u16 = 39;
    pub const PAUSE: u16 = 40;
    pub const MACHINE_CHECK: u16 = 41;
    pub const TPR_BELOW_THRESHOLD: u16 = 43;
    pub const APIC_ACCESS: u16 = 44;
    pub const VIRTUALIZED_EOI: u16 = 45;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const RDTSCP: u16 = 51;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const APIC_WRITE: u16 = 56;
    pub const INVPCID: u16 = 58;
    pub const VMFUNC: u16 = 59;
    pub const XSAVES: u16 = 63;
    pub const XRSTORS: u16 = 64;
    /// One more than the largest basic exit reason that is counted by its number.
    pub const COUNT: usize = 70;
}

/// The name of a basic exit reason, for statistics and dumps.
#[must_use]
pub const fn reason_name(reason: u16) -> &'static str {
    match reason {
        basic::EXCEPTION_OR_NMI => "exception-or-nmi",
        basic::EXTERNAL_INTERRUPT => "external-interrupt",
        basic::TRIPLE_FAULT => "triple-fault",
        basic::INIT => "init",
        basic::SIPI => "sipi",
        basic::INTERRUPT_WINDOW => "interrupt-window",
        basic::NMI_WINDOW => "nmi-window",
        basic::TASK_SWITCH => "task-switch",
        basic::CPUID => "cpuid",
        basic::GETSEC => "getsec",
        basic::HLT => "hlt",
        basic::INVD => "invd",
        basic::INVLPG => "invlpg",
        basic::RDPMC => "rdpmc",
        basic::RDTSC => "rdtsc",
        basic::VMCALL => "vmcall",
        19..=27 => "vmx-instruction",
        basic::CR_ACCESS => "cr-access",
        basic::MOV_DR => "mov-dr",
        basic::IO => "io",
        basic::RDMSR => "rdmsr",
        basic::WRMSR => "wrmsr",
        basic::INVALID_GUEST_STATE => "invalid-guest-state",
        basic::MSR_LOADING => "msr-loading",
        basic::MWAIT => "mwait",
        basic::MONITOR_TRAP_FLAG => "monitor-trap-flag",
        basic::MONITOR => "monitor",
        basic::PAUSE => "pause",
        basic::MACHINE_CHECK => "machine-check",
        basic::TPR_BELOW_THRESHOLD => "tpr-below-threshold",
        basic::APIC_ACCESS => "apic-access",
        basic::VIRTUALIZED_EOI => "virtualized-eoi",
        46 => "gdtr-or-idtr",
        47 => "ldtr-or-tr",
        basic::EPT_VIOLATION => "ept-violation",
        basic::EPT_MISCONFIGURATION => "ept-misconfiguration",
        basic::INVEPT => "invept",
        basic::RDTSCP => "rdtscp",
        basic::PREEMPTION_TIMER => "preemption-timer",
        basic::INVVPID => "invvpid",
        basic::WBINVD => "wbinvd",
        basic::XSETBV => "xsetbv",
        basic::APIC_WRITE => "apic-write",
        57 => "rdrand",
        basic::INVPCID => "invpcid",
        basic::VMFUNC => "vmfunc",
        61 => "rdseed",
        basic::XSAVES => "xsaves",
        basic::XRSTORS => "xrstors",
        _ => "other",
    }
}

/// The bit of the exit reason that says that VM entry failed in loading guest state.
const ENTRY_FAILURE: u32 = 1 << 31;

/// A VM exit, decoded as far as its kind needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// An exception in the guest, or an NMI of the host.
    ExceptionOrNmi(Option<Event>),
    /// An interrupt for the host.
    ExternalInterrupt,
    /// The guest could not even deliver a double fault.
    TripleFault,
    /// The guest can take an interrupt now.
    InterruptWindow,
    /// The guest can take an NMI now.
    NmiWindow,
    /// A task switch.
    TaskSwitch(TaskSwitch),
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// INVD or WBINVD.
    CacheInvalidation,
    /// INVLPG of an address.
    Invlpg(GuestVirtAddr),
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// VMCALL.
    Vmcall,
    /// An instruction that the guest was not told it has: VMX, SMX, MONITOR, MWAIT.
    UnknownInstruction,
    /// MOV to or from a control register, CLTS or LMSW.
    CrAccess(CrAccess),
    /// MOV DR.
    MovDr {
        /// The debug register.
        register: u8,
        /// The general-purpose register.
        gpr: u8,
        /// From the debug register to the other.
        read: bool,
    },
    /// IN, OUT, INS or OUTS.
    Io(IoAccess),
    /// RDMSR of the MSR in ECX.
    Rdmsr,
    /// WRMSR to the MSR in ECX.
    Wrmsr,
    /// XSETBV.
    Xsetbv,
    /// One instruction has been executed under the monitor trap flag.
    MonitorTrap,
    /// A spinning guest.
    Pause,
    /// The TPR went below the threshold.
    TprBelowThreshold,
    /// An access to the APIC-access page that was not virtualised.
    ApicAccess(ApicAccess),
    /// The guest wrote the virtual-APIC register at this offset; the page has the value.
    ApicWrite {
        /// The register's offset in the page.
        offset: u16,
    },
    /// A virtualised EOI of a vector in the EOI-exit bitmap.
    VirtualizedEoi {
        /// The vector.
        vector: u8,
    },
    /// The guest touched memory that EPT does not let it.
    EptViolation(EptViolation),
    /// An EPT entry that no CPU takes: a bug of ours.
    EptMisconfiguration(GuestPhysAddr),
    /// The preemption timer has run down.
    PreemptionTimer,
    /// VM entry failed: guest state or MSRs that no CPU takes.
    EntryFailure {
        /// The basic exit reason.
        reason: u16,
    },
    /// Nothing that a guest of ours should be able to cause.
    Unexpected {
        /// The basic exit reason.
        reason: u16,
    },
}

/// An access to a control register (table 28-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
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

/// A port access (table 28-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// REP.
    pub repeated: bool,
}

/// An access to guest-physical memory that EPT refused (table 28-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation {
    /// Where.
    pub address: GuestPhysAddr,
    /// A data read.
    pub read: bool,
    /// A data write.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The linear address, if the access had one.
    pub linear: Option<GuestVirtAddr>,
    /// The access was to the translation of that address, not to a paging structure.
    pub final_access: bool,
}

/// An access to the APIC-access page (table 28-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicAccess {
    /// The offset in the page (linear accesses only).
    pub offset: u16,
    /// A linear write.
    pub write: bool,
    /// A linear read.
    pub read: bool,
}

/// A task switch (table 28-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// The selector of the new TSS.
    pub selector: u16,
    /// 0 CALL, 1 IRET, 2 JMP, 3 task gate in the IDT.
    pub source: u8,
}

impl VmExit {
    /// Decodes the exit that has just happened on the current VMCS. The second value is the
    /// basic exit reason.
    #[inline]
    #[must_use]
    pub fn decode(vmcs: &Vmcs) -> (Self, u16) {
        let full = vmcs.read(fields::EXIT_REASON);
        let reason = full as u16;
        if full & ENTRY_FAILURE != 0 {
            return (Self::EntryFailure { reason }, reason);
        }
        let qualification = || vmcs.read(fields::EXIT_QUALIFICATION);
        let exit = match reason {
            basic::CPUID => Self::Cpuid,
            basic::WRMSR => Self::Wrmsr,
            basic::RDMSR => Self::Rdmsr,
            basic::IO => Self::Io(io_access(qualification())),
            basic::PREEMPTION_TIMER => Self::PreemptionTimer,
            basic::HLT => Self::Hlt,
            basic::INTERRUPT_WINDOW => Self::InterruptWindow,
            basic::APIC_WRITE => Self::ApicWrite {
                offset: qualification() as u16 & 0xfff,
            },
            basic::CR_ACCESS => Self::CrAccess(cr_access(qualification())),
            basic::EPT_VIOLATION => Self::EptViolation(ept_violation(vmcs, qualification())),
            basic::APIC_ACCESS => apic_access(qualification()),
            basic::VIRTUALIZED_EOI => Self::VirtualizedEoi {
                vector: qualification() as u8,
            },
            basic::EXTERNAL_INTERRUPT => Self::ExternalInterrupt,
            basic::VMCALL => Self::Vmcall,
            basic::EXCEPTION_OR_NMI => Self::ExceptionOrNmi(Event::from_information(
                vmcs.read(fields::EXIT_INTERRUPTION_INFORMATION),
                vmcs.read(fields::EXIT_INTERRUPTION_ERROR_CODE),
                vmcs.read(fields::EXIT_INSTRUCTION_LENGTH),
            )),
            basic::TRIPLE_FAULT => Self::TripleFault,
            basic::NMI_WINDOW => Self::NmiWindow,
            basic::TASK_SWITCH => {
                let qualification = qualification();
                Self::TaskSwitch(TaskSwitch {
                    selector: qualification as u16,
                    source: (qualification >> 30 & 3) as u8,
                })
            }
            basic::INVD | basic::WBINVD => Self::CacheInvalidation,
            basic::INVLPG => Self::Invlpg(GuestVirtAddr(qualification())),
            basic::RDTSC => Self::Rdtsc,
            basic::RDTSCP => Self::Rdtscp,
            basic::RDPMC => Self::Rdpmc,
            basic::XSETBV => Self::Xsetbv,
            basic::MONITOR_TRAP_FLAG => Self::MonitorTrap,
            basic::PAUSE => Self::Pause,
            basic::TPR_BELOW_THRESHOLD => Self::TprBelowThreshold,
            basic::MOV_DR => {
                let qualification = qualification();
                Self::MovDr {
                    register: (qualification & 7) as u8,
                    gpr: (qualification >> 8 & 15) as u8,
                    read: qualification >> 4 & 1 != 0,
                }
            }
            basic::GETSEC
            | 19..=27
            | basic::MWAIT
            | basic::MONITOR
            | basic::INVEPT
            | basic::INVVPID
            | basic::VMFUNC => Self::UnknownInstruction,
            basic::EPT_MISCONFIGURATION => {
                Self::EptMisconfiguration(GuestPhysAddr(vmcs.read(fields::GUEST_PHYSICAL_ADDRESS)))
            }
            _ => Self::Unexpected { reason },
        };
        (exit, reason)
    }
}

fn io_access(qualification: u64) -> IoAccess {
    IoAccess {
        port: (qualification >> 16) as u16,
        size: (qualification & 7) as u8 + 1,
        input: qualification >> 3 & 1 != 0,
        string: qualification >> 4 & 1 != 0,
        repeated: qualification >> 5 & 1 != 0,
    }
}

fn cr_access(qualification: u64) -> CrAccess {
    let register = (qualification & 15) as u8;
    let gpr = (qualification >> 8 & 15) as u8;
    match qualification >> 4 & 3 {
        0 => CrAccess::Write { register, gpr },
        1 => CrAccess::Read { register, gpr },
        2 => CrAccess::Clts,
        _ => CrAccess::Lmsw((qualification >> 16) as u16),
    }
}

fn ept_violation(vmcs: &Vmcs, qualification: u64) -> EptViolation {
    let linear_valid = qualification >> 7 & 1 != 0;
    EptViolation {
        address: GuestPhysAddr(vmcs.read(fields::GUEST_PHYSICAL_ADDRESS)),
        read: qualification & 1 != 0,
        write: qualification >> 1 & 1 != 0,
        fetch: qualification >> 2 & 1 != 0,
        linear: linear_valid.then(|| GuestVirtAddr(vmcs.read(fields::GUEST_LINEAR_ADDRESS))),
        final_access: linear_valid && qualification >> 8 & 1 != 0,
    }
}

fn apic_access(qualification: u64) -> VmExit {
    let kind = qualification >> 12 & 15;
    VmExit::ApicAccess(ApicAccess {
        offset: qualification as u16 & 0xfff,
        read: kind == 0,
        write: kind == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_out_to_the_debug_exit_port_is_decoded() {
        let access = io_access(0x00f4_0000);
        assert_eq!(
            access,
            IoAccess {
                port: 0xf4,
                size: 1,
                input: false,
                string: false,
                repeated: false
            }
        );
        assert!(io_access(0x03f8_0038).input && io_access(0x03f8_0038).repeated);
    }

    #[test]
    fn control_register_accesses_are_told_apart() {
        assert_eq!(
            cr_access(0x0503),
            CrAccess::Write {
                register: 3,
                gpr: 5
            }
        );
        assert_eq!(
            cr_access(0x0010),
            CrAccess::Read {
                register: 0,
                gpr: 0
            }
        );
        assert_eq!(cr_access(0x0020), CrAccess::Clts);
        assert_eq!(cr_access(0x0001_0030), CrAccess::Lmsw(1));
    }
}
