//! The BIOS data area: the few words of it that operating systems look at before they
//! know anything else of the machine.

use devices::platform_map::port;
use vmx::addr::GuestPhysAddr;

use super::image::MemoryImage;
use super::memory_map::EBDA_START;
use crate::guest_memory::NotRam;

/// The port of COM1.
const COM1_PORT: u64 = 0x400;
/// The segment of the extended BIOS data area.
const EBDA_SEGMENT: u64 = 0x40E;
/// The size of conventional memory in KiB.
const BASE_MEMORY: u64 = 0x413;
/// The size of the extended BIOS data area in KiB: its first byte.
const EBDA_SIZE: u8 = 1;

/// Writes it.
///
/// # Errors
/// If the VM has no RAM there.
pub(super) fn install(memory: &mut MemoryImage<'_>) -> Result<(), NotRam> {
    let words = [
        (COM1_PORT, port::COM1),
        (EBDA_SEGMENT, (EBDA_START >> 4) as u16),
        (BASE_MEMORY, (EBDA_START / 1024) as u16),
    ];
    for (address, word) in words {
        memory.write(GuestPhysAddr(address), word.to_le_bytes().to_vec())?;
    }
    memory.write(GuestPhysAddr(EBDA_START), &[EBDA_SIZE][..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_boot::test_ram::TestRam;

    #[test]
    fn it_tells_where_conventional_memory_ends() {
        let ram = TestRam::with(1 << 20, |memory| install(memory).unwrap());
        let word = |address| u64::from(ram.u32(address) as u16);
        assert_eq!(word(EBDA_SEGMENT) << 4, EBDA_START);
        assert_eq!(word(BASE_MEMORY), 639);
        assert_eq!(word(COM1_PORT), 0x3F8);
    }
}
