//! The fields of a table, by their offsets. What is not within the table is missing: older tables are
//! shorter, and firmware makes mistakes.
#![forbid(unsafe_code)]

/// The size of the header that every table begins with (ACPI 6.5, 5.2.6).
pub(super) const HEADER: usize = 36;
/// The offset of the table's revision.
const REVISION: usize = 8;

/// A table, with its header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a>(pub(super) &'a [u8]);

/// A register's place (ACPI 6.5, 5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    space: u8,
    address: u64,
}

impl Address {
    const MEMORY: u8 = 0;
    const IO: u8 = 1;

    /// Returns the I/O port, if it is at one.
    pub(super) fn port(self) -> Option<u16> {
        let port = u16::try_from(self.address).ok()?;
        (self.space == Self::IO && port != 0).then_some(port)
    }

    /// Returns the physical address, if it is in memory.
    pub(super) fn memory(self) -> Option<u64> {
        (self.space == Self::MEMORY && self.address != 0).then_some(self.address)
    }
}

impl<'a> Table<'a> {
    fn array<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    /// Returns the revision; 0 without a header.
    pub(super) fn revision(self) -> u8 {
        self.byte(REVISION).unwrap_or(0)
    }

    /// Returns the byte at `offset`.
    pub(super) fn byte(self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    /// Returns the 16 bits at `offset`.
    pub(super) fn u16(self, offset: usize) -> Option<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    /// Returns the 32 bits at `offset`.
    pub(super) fn u32(self, offset: usize) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    /// Returns the 64 bits at `offset`.
    pub(super) fn u64(self, offset: usize) -> Option<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }

    /// Returns the place of a register that is described at `offset`; `None` for none.
    pub(super) fn address(self, offset: usize) -> Option<Address> {
        let [space, _width, _bit, access] = self.array(offset)?;
        let address = self.u64(offset + 4)?;
        // Undefined, or a size from a byte to 64 bits.
        (access <= 4 && address != 0).then_some(Address { space, address })
    }

    /// Returns the structures from `offset` on, of which each has its kind and its length in its first two
    /// bytes, up to one that cannot be.
    pub(super) fn structures(self, offset: usize) -> impl Iterator<Item = (u8, Table<'a>)> {
        let mut rest = self.0.get(offset..).unwrap_or_default();
        core::iter::from_fn(move || {
            let &[kind, length, ..] = rest else {
                return None;
            };
            let (structure, after) = rest.split_at_checked(usize::from(length).max(2))?;
            // One of no length would be found for ever.
            if length < 2 {
                return None;
            }
            rest = after;
            Some((kind, Table(structure)))
        })
    }
}
