//! The GDT that a guest is started with: it backs the segment registers of its
//! [`EntryState`](super::EntryState) until it has its own.

use vmx::addr::GuestPhysAddr;
use vmx::segment::DescriptorTable;

use super::image::MemoryImage;
use crate::guest_memory::NotRam;

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

impl Code {
    /// Returns the selectors that a kernel of this kind is started with.
    pub(super) const fn selectors(self) -> Selectors {
        match self {
            Self::Bits64 => Selectors {
                code: 0x10,
                data: 0x18,
            },
            Self::Bits32 => Selectors {
                code: 0x08,
                data: 0x10,
            },
        }
    }

    const fn descriptor(self) -> u64 {
        match self {
            Self::Bits64 => CODE64,
            Self::Bits32 => CODE32,
        }
    }
}

/// The selectors of the two segments.
///
/// In 64-bit mode they are `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol. Multiboot leaves them
/// to the loader, and they are as with QEMU's `-kernel`, since there are kernels that keep them when
/// they load a GDT of their own: xv6, for one, whose code has selector 8, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selectors {
    /// The code segment's.
    pub(super) code: u16,
    /// The data segment's.
    pub(super) data: u16,
}

/// Writes the GDT to `address`.
pub(super) fn install(
    memory: &mut MemoryImage<'_>,
    address: u64,
    code: Code,
) -> Result<DescriptorTable, NotRam> {
    let selectors = code.selectors();
    let mut table = [0; SIZE];
    for (selector, descriptor) in [
        (selectors.code, code.descriptor()),
        (selectors.data, DATA32),
    ] {
        table[usize::from(selector)..][..8].copy_from_slice(&descriptor.to_le_bytes());
    }
    memory.write(GuestPhysAddr(address), table.to_vec())?;
    Ok(DescriptorTable {
        base: address,
        limit: SIZE as u32 - 1,
    })
}
