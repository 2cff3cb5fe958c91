//! The configuration space of a function (PCI 3.0, chapter 6).

/// The length of the configuration space in bytes. There is no extended one.
pub const LENGTH: usize = 256;
/// The number of base address registers of a function.
pub const BARS: usize = 6;

/// Offsets of the registers that the bus itself knows of.
pub(super) mod register {
    pub(crate) const VENDOR_ID: usize = 0x00;
    pub(crate) const DEVICE_ID: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION_ID: usize = 0x08;
    pub(crate) const CLASS: usize = 0x09;
    pub(crate) const BARS: usize = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
    pub(crate) const SUBSYSTEM_ID: usize = 0x2e;
    pub(crate) const CAPABILITIES: usize = 0x34;
    pub(crate) const INTERRUPT_LINE: usize = 0x3c;
    pub(crate) const INTERRUPT_PIN: usize = 0x3d;
    /// The offset of the first capability.
    pub(crate) const FIRST_CAPABILITY: usize = 0x40;
}

/// Bits of the command register.
pub(super) mod command {
    pub(crate) const MEMORY: u16 = 1 << 1;
    pub(crate) const BUS_MASTER: u16 = 1 << 2;
    pub(crate) const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
mod status {
    pub(super) const INTERRUPT: u16 = 1 << 3;
    pub(super) const CAPABILITIES: u16 = 1 << 4;
}

/// A configuration space: what its bytes are, and which of their bits software may write.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; LENGTH],
    writable: [u8; LENGTH],
    /// The offset of the next capability.
    next_capability: usize,
    /// The byte that is to point to it.
    capability_pointer: usize,
}

impl Default for ConfigSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl ConfigSpace {
    /// Makes a configuration space of zeros that cannot be written.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; LENGTH],
            writable: [0; LENGTH],
            next_capability: register::FIRST_CAPABILITY,
            capability_pointer: register::CAPABILITIES,
        }
    }

    /// Sets bytes, whether software may write them or not.
    ///
    /// # Panics
    /// If they go beyond the end of the space; meant for values known when the machine is made.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Lets software write the bits of `mask` at `offset`.
    ///
    /// # Panics
    /// As [`ConfigSpace::set`].
    pub fn let_write(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Adds a capability with this identifier; `body` is what follows its header of two bytes, and
    /// software may write the bits of `writable` in it, from its start. Returns the offset of the
    /// capability.
    ///
    /// # Panics
    /// If there is no room; meant for capabilities known when the machine is made.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.next_capability;
        self.bytes[self.capability_pointer] = offset as u8;
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.let_write(offset + 2, writable);
        self.capability_pointer = offset + 1;
        // Capabilities are aligned to four bytes (6.7).
        self.next_capability = (offset + 2 + body.len()).next_multiple_of(4);
        let status = self.u16(register::STATUS) | status::CAPABILITIES;
        self.set(register::STATUS, &status.to_le_bytes());
        offset
    }

    /// Adds a memory BAR of 32 bits that is `size` bytes long, a power of two of 16 or more.
    pub fn add_memory_bar(&mut self, bar: usize, size: u32) {
        debug_assert!(size.is_power_of_two() && size >= 16 && bar < BARS);
        let mask = !(size - 1);
        self.let_write(register::BARS + 4 * bar, &mask.to_le_bytes());
    }

    /// Returns the base and the size of a BAR; `None` if there is none of this number.
    #[must_use]
    pub fn bar(&self, bar: usize) -> Option<(u32, u32)> {
        let offset = register::BARS + 4 * bar;
        let mask = u32::from_le_bytes([
            self.writable[offset],
            self.writable[offset + 1],
            self.writable[offset + 2],
            self.writable[offset + 3],
        ]);
        (mask != 0).then(|| (self.u32(offset), !mask + 1))
    }

    /// Moves a BAR, as firmware does.
    pub fn place_bar(&mut self, bar: usize, base: u32) {
        self.set(register::BARS + 4 * bar, &base.to_le_bytes());
    }

    /// Returns a register of 16 bits.
    #[must_use]
    pub const fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// Returns the command register.
    #[must_use]
    pub const fn command(&self) -> u16 {
        self.u16(register::COMMAND)
    }

    /// Shows in the status register whether the function asserts its interrupt pin.
    pub(super) fn set_interrupt_status(&mut self, asserted: bool) {
        let status = self.u16(register::STATUS) & !status::INTERRUPT;
        let bit = if asserted { status::INTERRUPT } else { 0 };
        self.set(register::STATUS, &(status | bit).to_le_bytes());
    }

    /// Reads `size` bytes (at most 4) from `offset` on, by software. Beyond the end there are
    /// ones.
    #[must_use]
    pub fn read(&self, offset: usize, size: u8) -> u32 {
        let mut value = [0xff; 4];
        let from = self.bytes.get(offset..).unwrap_or_default();
        for (to, from) in value.iter_mut().zip(from).take(size.into()) {
            *to = *from;
        }
        u32::from_le_bytes(value)
    }

    /// Writes the low `size` bytes (at most 4) of `value` from `offset` on, by software.
    pub fn write(&mut self, offset: usize, size: u8, value: u32) {
        let end = (offset + usize::from(size.min(4))).min(LENGTH);
        for (at, byte) in (offset..end).zip(value.to_le_bytes()) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_tells_its_size_as_drivers_ask_for_it() {
        let mut config = ConfigSpace::new();
        config.add_memory_bar(1, 0x4000);
        config.place_bar(1, 0xe010_0000);
        assert_eq!(config.bar(1), Some((0xe010_0000, 0x4000)));
        assert_eq!(config.bar(0), None);
        config.write(0x14, 4, u32::MAX);
        assert_eq!(config.read(0x14, 4), 0xffff_c000);
        // Byte by byte, too.
        config.write(0x16, 1, 0x34);
        config.write(0x17, 1, 0x12);
        assert_eq!(config.bar(1), Some((0x1234_c000, 0x4000)));
        config.write(0x10, 4, u32::MAX);
        assert_eq!(config.read(0x10, 4), 0, "there is no such BAR");
    }

    #[test]
    fn capabilities_are_a_list_that_ends() {
        let mut config = ConfigSpace::new();
        assert_eq!(config.read(0x06, 2) as u16, 0);
        let first = config.add_capability(0x09, &[1, 2, 3], &[]);
        let second = config.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        assert_eq!(config.read(0x06, 2) as u16, 1 << 4);
        assert_eq!(config.read(0x34, 1) as u8, first as u8);
        assert_eq!(config.read(first, 4), 0x0201_0009 | (second as u32) << 8);
        assert_eq!(config.read(second, 2) as u16, 0x0011);
        config.write(second + 2, 2, 0xffff);
        assert_eq!(config.read(second + 2, 2) as u16, 0xc000);
    }

    #[test]
    fn accesses_beyond_the_end_are_harmless() {
        let mut config = ConfigSpace::new();
        config.write(0xfe, 4, 0);
        config.write(0x1000, 4, 0);
        assert_eq!(config.read(0xfe, 4), 0xffff_0000);
        assert_eq!(config.read(0x1000, 4), u32::MAX);
    }
}
