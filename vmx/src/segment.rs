//! Segment registers as the VMCS holds them (SDM vol. 3C, 25.4.1).
#![forbid(unsafe_code)]

use bitflags::bitflags;

bitflags! {
    /// Segment access rights (table 25-2). Bits 3:0 are the type, bits 6:5 the DPL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AccessRights: u32 {
        /// Accessed (code and data).
        const ACCESSED = 1 << 0;
        /// Writable (data) or readable (code).
        const WRITABLE_OR_READABLE = 1 << 1;
        /// Expand-down (data) or conforming (code).
        const EXPAND_DOWN_OR_CONFORMING = 1 << 2;
        /// A code segment.
        const CODE = 1 << 3;
        /// A code or data segment, not a system segment.
        const CODE_OR_DATA = 1 << 4;
        /// Present.
        const PRESENT = 1 << 7;
        /// 64-bit code.
        const LONG = 1 << 13;
        /// 32-bit operands or stack.
        const DEFAULT_BIG = 1 << 14;
        /// The limit is in units of 4 KiB.
        const GRANULARITY = 1 << 15;
        /// The register holds no usable segment.
        const UNUSABLE = 1 << 16;
        const _ = !0;
    }
}

impl AccessRights {
    /// Returns the descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.bits() >> 5 & 3) as u8
    }

    /// Returns whether a null selector was loaded.
    #[must_use]
    pub const fn is_unusable(self) -> bool {
        self.contains(Self::UNUSABLE)
    }

    /// Returns, of a code or data segment, whether it is one for code.
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.contains(Self::CODE)
    }

    /// Returns, of a code or data segment, whether data may be read. All but execute-only code.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        !self.is_code() || self.contains(Self::WRITABLE_OR_READABLE)
    }

    /// Returns, of a code or data segment, whether data may be written.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        !self.is_code() && self.contains(Self::WRITABLE_OR_READABLE)
    }

    /// Returns, of a code or data segment, whether it is one for data, whose offsets lie above the
    /// limit.
    #[must_use]
    pub const fn is_expand_down(self) -> bool {
        !self.is_code() && self.contains(Self::EXPAND_DOWN_OR_CONFORMING)
    }
}

/// A segment register: what is visible and what is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base address.
    pub base: u64,
    /// The limit in bytes (already scaled).
    pub limit: u32,
    /// The access rights.
    pub rights: AccessRights,
}

/// The segment registers, in the order of their VMCS encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SegmentRegister {
    /// ES
    Es = 0,
    /// CS
    Cs = 1,
    /// SS
    Ss = 2,
    /// DS
    Ds = 3,
    /// FS
    Fs = 4,
    /// GS
    Gs = 5,
    /// LDTR
    Ldtr = 6,
    /// TR
    Tr = 7,
}

impl SegmentRegister {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Es,
        Self::Cs,
        Self::Ss,
        Self::Ds,
        Self::Fs,
        Self::Gs,
        Self::Ldtr,
        Self::Tr,
    ];
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorTable {
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u32,
}
