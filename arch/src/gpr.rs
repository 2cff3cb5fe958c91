//! Numbers of the general-purpose registers, as instructions and exit information encode them
//! (SDM vol. 2A, 2.1.3 and vol. 3C, table 28-3).
#![allow(missing_docs, reason = "the names are the manual's")]

pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;
