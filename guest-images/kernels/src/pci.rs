//! The configuration space of PCI, by its two ports. PCI Local Bus Specification 3.0, 3.2.2.3.2 and 6.1.

use x86_64::instructions::port::Port;

/// The ports of the address and the data.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// The address's bit without which nothing is accessed.
const ENABLE: u32 = 1 << 31;

/// The register of the vendor and the device, and that of the command and the status.
pub const IDENTITY: u8 = 0x00;
/// The register of the command, and of the status in its upper half.
pub const COMMAND: u8 = 0x04;
/// The register of the first base address.
pub const BAR_0: u8 = 0x10;
/// The register of the first capability's place.
pub const CAPABILITIES: u8 = 0x34;

/// The command's bits: memory is decoded, and the function may access memory.
pub const DECODE_AND_MASTER: u32 = 0b110;

/// The function 0 of a device on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u8);

impl Function {
    /// Returns all that there are.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32)
            .map(Self)
            .filter(|function| function.read(IDENTITY) as u16 != u16::MAX)
    }

    fn select(self, register: u8) {
        let address = ENABLE | u32::from(self.0) << 11 | u32::from(register & 0xfc);
        // SAFETY: the port only takes an address.
        unsafe { Port::new(ADDRESS).write(address) }
    }

    /// Reads the register of four bytes that has this one.
    #[must_use]
    pub fn read(self, register: u8) -> u32 {
        self.select(register);
        // SAFETY: configuration space is read without an effect.
        unsafe { Port::new(DATA).read() }
    }

    /// Writes the register of four bytes that has this one.
    pub fn write(self, register: u8, value: u32) {
        self.select(register);
        // SAFETY: what a function does with its configuration is the caller's concern: all devices here are for
        // tests.
        unsafe { Port::new(DATA).write(value) }
    }

    /// Reads the byte `register`.
    #[must_use]
    pub fn byte(self, register: u8) -> u8 {
        (self.read(register) >> (8 * (register & 3))) as u8
    }

    /// Returns the address in its base address register `bar`, of 32 bits.
    #[must_use]
    pub fn bar(self, bar: u8) -> u64 {
        u64::from(self.read(BAR_0 + 4 * bar) & !0xf)
    }

    /// Returns the places of its capabilities.
    pub fn capabilities(self) -> impl Iterator<Item = u8> {
        let next = |place: u8| (place != 0).then_some(place);
        core::iter::successors(next(self.byte(CAPABILITIES)), move |&place| {
            next(self.byte(place + 1))
        })
    }
}
