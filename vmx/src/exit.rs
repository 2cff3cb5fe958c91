//! Why the guest came out: the basic exit reasons (SDM vol. 3D, app. C).
#![forbid(unsafe_code)]

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
    pub const ENCLS: u16 = 60;
    pub const XSAVES: u16 = 63;
    pub const XRSTORS: u16 = 64;
    pub const PCONFIG: u16 = 65;
    pub const UMWAIT: u16 = 67;
    pub const TPAUSE: u16 = 68;
    pub const LOADIWKEY: u16 = 69;
    pub const ENCLV: u16 = 70;
    pub const SEAMCALL: u16 = 76;
    pub const TDCALL: u16 = 77;
    pub const RDMSRLIST: u16 = 78;
    pub const WRMSRLIST: u16 = 79;
    pub const URDMSR: u16 = 80;
    pub const UWRMSR: u16 = 81;
    /// One more than the largest basic exit reason that is counted by its number.
    pub const COUNT: usize = 82;
}

/// Returns the name of a basic exit reason, for statistics and dumps.
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
        basic::ENCLS => "encls",
        basic::PCONFIG => "pconfig",
        basic::UMWAIT => "umwait",
        basic::TPAUSE => "tpause",
        basic::LOADIWKEY => "loadiwkey",
        basic::ENCLV => "enclv",
        basic::SEAMCALL => "seamcall",
        basic::TDCALL => "tdcall",
        basic::RDMSRLIST => "rdmsrlist",
        basic::WRMSRLIST => "wrmsrlist",
        basic::URDMSR => "urdmsr",
        basic::UWRMSR => "uwrmsr",
        _ => "other",
    }
}

/// The bit of the exit reason that says that VM entry failed in loading guest state.
pub const ENTRY_FAILURE: u32 = 1 << 31;
