//! Registers of the I/O APIC, and the redirection entries (82093AA datasheet, 3.0; the EOI register is
//! that of version 0x20, ICH9 datasheet, 13.5).

/// Offset in the page: the index register.
pub const IOREGSEL: u16 = 0x00;
/// Offset in the page: the data register, a window on the register of the index.
pub const IOWIN: u16 = 0x10;
/// Offset in the page: the EOI register.
pub const EOI: u16 = 0x40;

/// Index of the ID register.
pub const ID: u8 = 0;
/// Index of the version register, which tells the number of entries too.
pub const VERSION: u8 = 1;
/// Index of the low half of the first redirection entry; its high half follows, then the next.
pub const ENTRIES: u8 = 0x10;

/// Redirection entry, delivery mode: an NMI, whatever the vector, at the edge.
pub const NMI: u64 = 4 << 8;
/// Redirection entry: logical destination mode.
pub const LOGICAL: u64 = 1 << 11;
/// Redirection entry: the pin is active low.
pub const ACTIVE_LOW: u64 = 1 << 13;
/// Redirection entry: a level interrupt was accepted and not yet ended; read-only.
pub const REMOTE_IRR: u64 = 1 << 14;
/// Redirection entry: level trigger mode.
pub const LEVEL: u64 = 1 << 15;
/// Redirection entry: mask.
pub const MASKED: u64 = 1 << 16;
