//! The GDT that a guest is started with: it backs the segment registers of its
//! [`EntryState`](super::EntryState) until it has its own.

use vmx::addr::GuestPhysAddr;
use vmx::segment::DescriptorTable;

use super::image::MemoryImage;
use crate::guest_memory::NotRam;

/// Selector of the code segment: `__BOOT_CS` of the Linux boot protocol.
pub(crate) const CODE: u16 = 0x10;
/// Selector of the data segment: `__BOOT_DS` of the Linux boot protocol.
pub(crate) const DATA: u16 = 0x18;

/// Its size in bytes.
pub(super) const SIZE: usize = 32;

/// Descriptors (SDM vol. 3A, 3.4.5), flat and present at privilege level 0.
const CODE64: u64 = 0x00AF_9B00_0000_FFFF;
const CODE32: u64 = 0x00CF_9B00_0000_FFFF;
const DATA32: u64 = 0x00CF_9300_0000_FFFF;

/// The kind of code in the code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// 64-bit mode.
    Bits64,
    /// 32-bit protected mode.
    Bits32,
}

/// Writes the GDT to `address`.
pub(super) fn install(
    memory: &mut MemoryImage<'_>,
    address: u64,
    code: Code,
) -> Result<DescriptorTable, NotRam> {
    let code = match code {
        Code::Bits64 => CODE64,
        Code::Bits32 => CODE32,
    };
    let mut table = [0; SIZE];
    for (bytes, descriptor) in table.chunks_exact_mut(8).zip([0, 0, code, DATA32]) {
        bytes.copy_from_slice(&u64::to_le_bytes(descriptor));
    }
    memory.write(GuestPhysAddr(address), table.to_vec())?;
    Ok(DescriptorTable {
        base: address,
        limit: SIZE as u32 - 1,
    })
}
