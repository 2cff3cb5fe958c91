//! The state that a guest's first VCPU starts in.

use arch::{Cr0Flags, Cr4Flags, EferFlags};
use vmx::segment::{AccessRights, DescriptorTable, Segment};

use super::gdt::Code;

/// CR0 in protected mode: extension type is fixed to one since the 486.
const PROTECTED_MODE: Cr0Flags = Cr0Flags::PROTECTED_MODE_ENABLE.union(Cr0Flags::EXTENSION_TYPE);

/// Returns a flat 64-bit code segment.
const fn code64(selector: u16) -> Segment {
    flat(selector, CODE.union(AccessRights::LONG))
}

/// Returns a flat 32-bit code segment.
const fn code32(selector: u16) -> Segment {
    flat(selector, CODE.union(AccessRights::DEFAULT_BIG))
}

/// Returns a flat 32-bit data segment, writable.
const fn data(selector: u16) -> Segment {
    flat(selector, FLAT.union(AccessRights::DEFAULT_BIG))
}

/// Access rights: present, accessed, readable or writable, with the limit in pages.
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

/// Returns a segment of real mode that begins at `base`, with the rights of a code or data segment.
const fn real(selector: u16, base: u64, rights: AccessRights) -> Segment {
    Segment {
        selector,
        base,
        limit: 0xFFFF,
        rights: rights.difference(AccessRights::GRANULARITY),
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
/// is as after reset (SDM vol. 3A, table 10-1), but zero where it is a general register.
///
/// Control registers are as the guest shall see them: bits that VMX operation fixes are
/// for the VCPU to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryState {
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
    /// Makes the state after reset (SDM vol. 3A, table 10-1): real mode, at the reset vector 16 bytes
    /// below 4 GiB. EDX, which would tell what the processor is, is zero.
    #[must_use]
    pub(crate) const fn reset() -> Self {
        const RESET_VECTOR: u64 = 0xFFF0;
        const BIOS_SEGMENT: u16 = 0xF000;
        const BIOS_BASE: u64 = 0xFFFF_0000;
        const WHOLE_SEGMENT: DescriptorTable = DescriptorTable {
            base: 0,
            limit: 0xFFFF,
        };
        Self {
            cr0: arch::reset::CR0,
            cs: real(BIOS_SEGMENT, BIOS_BASE, CODE),
            data: real(0, 0, FLAT),
            idtr: WHOLE_SEGMENT,
            ..Self::protected_mode(RESET_VECTOR, WHOLE_SEGMENT)
        }
    }

    /// Makes the state of 64-bit mode with the page tables at `cr3`.
    #[must_use]
    pub(crate) const fn long_mode(rip: u64, cr3: u64, gdtr: DescriptorTable) -> Self {
        let selectors = Code::Bits64.selectors();
        Self {
            cr0: PROTECTED_MODE
                .union(Cr0Flags::NUMERIC_ERROR)
                .union(Cr0Flags::PAGING)
                .bits(),
            cr3,
            cr4: Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits(),
            efer: EferFlags::LONG_MODE_ENABLE
                .union(EferFlags::LONG_MODE_ACTIVE)
                .bits(),
            cs: code64(selectors.code),
            data: data(selectors.data),
            ..Self::protected_mode(rip, gdtr)
        }
    }

    /// Makes the state of 32-bit protected mode, flat, paging off.
    #[must_use]
    pub(crate) const fn protected_mode(rip: u64, gdtr: DescriptorTable) -> Self {
        let selectors = Code::Bits32.selectors();
        Self {
            rax: 0,
            rbx: 0,
            rsi: 0,
            rip,
            rflags: arch::reset::RFLAGS,
            cr0: PROTECTED_MODE.bits(),
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: code32(selectors.code),
            data: data(selectors.data),
            tr: BUSY_TSS,
            ldtr: UNUSABLE,
            gdtr,
            idtr: DescriptorTable { base: 0, limit: 0 },
        }
    }
}
