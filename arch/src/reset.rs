//! Values of registers after power-up, reset and INIT (SDM vol. 3A, table 10-1).

/// CR0 after power-up. An INIT leaves CD and NW as they are.
pub const CR0: u64 = 0x6000_0010;
/// RFLAGS: nothing but the bit that is always one.
pub const RFLAGS: u64 = 1 << 1;
/// RIP.
pub const RIP: u64 = 0xfff0;
/// DR6.
pub const DR6: u64 = 0xffff_0ff0;
/// DR7.
pub const DR7: u64 = 1 << 10;
/// XCR0: x87 state, which is always enabled (SDM vol. 1, 13.3). An INIT does not change it.
pub const XCR0: u64 = 1;
/// IA32_PAT, which an INIT does not change (SDM vol. 3A, table 12-12).
pub const PAT: u64 = 0x0007_0406_0007_0406;
