//! A VCPU's registers as others see them: its own CPU copies them on [request](super::requests).
#![forbid(unsafe_code)]

/// The names of the general registers, in the order of their encoding.
pub(crate) const GENERAL_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// A segment register, with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentCopy {
    /// Its name, in lower case.
    pub name: &'static str,
    /// The selector.
    pub selector: u16,
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u32,
    /// The access rights, as VMX encodes them.
    pub rights: u32,
}

/// A copy of a VCPU's registers, all of one moment at which it was out of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegisterCopy {
    /// The general registers, in the order of [`GENERAL_NAMES`].
    pub general: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// The flags.
    pub rflags: u64,
    /// The current privilege level.
    pub cpl: u8,
    /// CR0, as the guest has it.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4, as the guest has it.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// Its activity, in words: running, halted, or waiting for a start-up.
    pub activity: &'static str,
    /// Whether NMIs are blocked.
    pub nmis_blocked: bool,
    /// The segment registers, and the two that refer to tables.
    pub segments: [SegmentCopy; 8],
}
