//! The widths that an access can have.

/// An operand's width in bytes: 1, 2, 4 or 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Width(u8);

impl Width {
    /// 8 bits.
    pub const BYTE: Self = Self(1);
    /// 16 bits.
    pub const WORD: Self = Self(2);
    /// 32 bits.
    pub const DOUBLEWORD: Self = Self(4);
    /// 64 bits.
    pub const QUADWORD: Self = Self(8);

    /// Returns the width of `bytes` bytes, if that is an operand's.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 | 2 | 4 | 8 => Some(Self(bytes as u8)),
            _ => None,
        }
    }

    /// Returns the width in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Returns the width in bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32 * 8
    }

    /// Returns the bits of a value of this width.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Returns the sign bit of a value of this width.
    #[must_use]
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// Returns `value` of this width, sign-extended to 64 bits.
    #[must_use]
    pub const fn sign_extend(self, value: u64) -> u64 {
        let shift = 64 - self.bits();
        (((value << shift) as i64) >> shift) as u64
    }
}
