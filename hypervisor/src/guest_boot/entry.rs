//! The state that a guest's first VCPU starts in.

use vmx::segment::{AccessRights, DescriptorTable, Segment};

/// Protection enable.
pub const CR0_PE: u64 = 1;
/// Extension type; fixed to 1 since the 486.
pub const CR0_ET: u64 = 1 << 4;
/// Numeric error; fixed to 1 in VMX operation.
pub const CR0_NE: u64 = 1 << 5;
/// Paging.
pub const CR0_PG: u64 = 1 << 31;
/// Physical address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// IA-32e mode enable and active.
pub const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// The bit of RFLAGS that is always 1; all others are clear, IF among them.
const RFLAGS_FIXED: u64 = 1 << 1;

/// A flat 64-bit code segment.
const fn code64(selector: u16) -> Segment {
    flat(selector, CODE.union(AccessRights::LONG))
}

/// A flat 32-bit code segment.
const fn code32(selector: u16) -> Segment {
    flat(selector, CODE.union(AccessRights::DEFAULT_BIG))
}

/// A flat 32-bit data segment, writable.
const fn data(selector: u16) -> Segment {
    flat(selector, FLAT.union(AccessRights::DEFAULT_BIG))
}

/// Present, accessed, readable or writable, with its limit in pages.
const FLAT: AccessRights = AccessRights::ACCESSED
    .union(AccessRights::WRITABLE_OR_READABLE)
    .union(AccessRights::CODE_OR_DATA)
    .union(AccessRights::PRESENT)
    .union(AccessRights::GRANULARITY);
const CODE: AccessRights = FLAT.union(AccessRights::CODE);

const fn flat(selector: u16, rights: AccessRights) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        rights,
    }
}

/// A busy TSS of 32 bits: VM entry demands one, though no guest uses this one.
const BUSY_TSS: Segment = Segment {
    selector: 0,
    base: 0,
    limit: 0xFFFF,
    rights: AccessRights::from_bits_retain(0xB).union(AccessRights::PRESENT),
};

/// The null selector.
const UNUSABLE: Segment = Segment {
    selector: 0,
    base: 0,
    limit: 0xFFFF,
    rights: AccessRights::UNUSABLE,
};

/// The registers of a VCPU when it runs the guest's first instruction. What is not here
/// is as after reset (SDM vol. 3, table 10-1), but zero where it is a general register.
///
/// Control registers are as the guest shall see them: bits that VMX operation fixes are
/// for the VCPU to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// RIP.
    pub rip: u64,
    /// RFLAGS; interrupts are off.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// CS.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS alike.
    pub data: Segment,
    /// TR.
    pub tr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR: empty, so that an exception before the guest has one is a triple fault.
    pub idtr: DescriptorTable,
}

impl EntryState {
    /// 64-bit mode with the page tables at `cr3`.
    #[must_use]
    pub const fn long_mode(rip: u64, cr3: u64, gdtr: DescriptorTable) -> Self {
        Self {
            cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
            cr3,
            cr4: CR4_PAE,
            efer: EFER_LME_LMA,
            cs: code64(super::gdt::CODE),
            ..Self::protected_mode(rip, gdtr)
        }
    }

    /// 32-bit protected mode, flat, paging off.
    #[must_use]
    pub const fn protected_mode(rip: u64, gdtr: DescriptorTable) -> Self {
        Self {
            rax: 0,
            rbx: 0,
            rsi: 0,
            rip,
            rflags: RFLAGS_FIXED,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: code32(super::gdt::CODE),
            data: data(super::gdt::DATA),
            tr: BUSY_TSS,
            ldtr: UNUSABLE,
            gdtr,
            idtr: DescriptorTable { base: 0, limit: 0 },
        }
    }
}
