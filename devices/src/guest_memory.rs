//! Access to a guest's physical memory, as a safe trait.
//!
//! Page walks, loaders, the instruction emulator, suppression and devices that transfer data by
//! themselves reach guests through it, and are tested on the host with a plain byte array behind
//! it.
//!
//! A guest changes its memory at any time, so there is never a reference to it: bytes are copied
//! in and out, and what was read once is what is worked on.

use arch::addr::GuestPhysAddr;

/// A guest-physical range that is not (wholly) RAM of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam {
    /// The start of the access.
    pub address: GuestPhysAddr,
    /// Its length in bytes.
    pub length: usize,
}

impl core::fmt::Display for NotRam {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{:?} (+{} bytes) is not RAM of the guest",
            self.address, self.length
        )
    }
}

impl core::error::Error for NotRam {}

/// The RAM of one guest.
pub trait GuestMemory {
    /// Copies guest RAM at `address` to `buffer`.
    ///
    /// # Errors
    /// If any byte of the range is not RAM; then `buffer` holds garbage.
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam>;

    /// Copies `data` to guest RAM at `address`.
    ///
    /// # Errors
    /// If any byte of the range is not RAM; then nothing has been written.
    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam>;

    /// Reads the little-endian `u16` at `address`, without tearing if it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u16(&self, address: GuestPhysAddr) -> Result<u16, NotRam> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads the little-endian `u32` at `address`, without tearing if it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u32(&self, address: GuestPhysAddr) -> Result<u32, NotRam> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads the little-endian `u64` at `address`, without tearing if it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::read`].
    fn read_u64(&self, address: GuestPhysAddr) -> Result<u64, NotRam> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the little-endian `u16` at `address`, without tearing if it is aligned.
    ///
    /// # Errors
    /// As [`GuestMemory::write`].
    fn write_u16(&self, address: GuestPhysAddr, value: u16) -> Result<(), NotRam> {
        self.write(address, &value.to_le_bytes())
    }

    /// Replaces the `u32` at `address`, which is aligned, by `new` if it is `current`, as
    /// one atomic operation towards the guest's VCPUs; tells whether it did. Page walks set
    /// accessed and dirty bits by this.
    ///
    /// The provided method is not atomic, and good enough for memory that nobody shares.
    ///
    /// # Errors
    /// As [`GuestMemory::write`].
    fn compare_exchange_u32(
        &self,
        address: GuestPhysAddr,
        current: u32,
        new: u32,
    ) -> Result<bool, NotRam> {
        if self.read_u32(address)? != current {
            return Ok(false);
        }
        self.write(address, &new.to_le_bytes())?;
        Ok(true)
    }
}
