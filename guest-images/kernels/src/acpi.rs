//! The few facts that the tests take from ACPI: where the PM timer and the HPET are.

use core::ptr::read_unaligned;

/// Finds the table with `signature` by the RSDP that firmware left below 1 MiB.
fn table(signature: [u8; 4]) -> Option<u64> {
    // SAFETY: all of low memory is mapped, and the tables that the RSDP leads to are in RAM
    // below 4 GiB.
    unsafe {
        let ebda = u64::from(read_unaligned(0x40e as *const u16)) << 4;
        let rsdp = (ebda..ebda + 1024)
            .chain(0xe_0000..0x10_0000)
            .step_by(16)
            .find(|address| read_unaligned(*address as *const [u8; 8]) == *b"RSD PTR ")?;
        let revision = read_unaligned((rsdp + 15) as *const u8);
        let extended = if revision >= 2 {
            read_unaligned((rsdp + 24) as *const u64)
        } else {
            0
        };
        let (root, width) = if extended != 0 {
            (extended, 8)
        } else {
            (u64::from(read_unaligned((rsdp + 16) as *const u32)), 4)
        };
        let length = u64::from(read_unaligned((root + 4) as *const u32));
        (root + 36..root + length).step_by(width).find_map(|entry| {
            let address = if width == 8 {
                read_unaligned(entry as *const u64)
            } else {
                u64::from(read_unaligned(entry as *const u32))
            };
            (read_unaligned(address as *const [u8; 4]) == signature).then_some(address)
        })
    }
}

/// Returns the PM timer's port, and whether it counts 32 bits (else 24). ACPI specification, 5.2.9.
#[must_use]
pub fn pm_timer() -> Option<(u16, bool)> {
    let fadt = table(*b"FACP")?;
    // SAFETY: a FADT of any version has these fields.
    let (port, flags) = unsafe {
        (
            read_unaligned((fadt + 76) as *const u32),
            read_unaligned((fadt + 112) as *const u32),
        )
    };
    (port != 0).then_some((port as u16, flags & 1 << 8 != 0))
}

/// Returns the HPET's address. HPET specification, 3.2.4.
#[must_use]
pub fn hpet() -> Option<u64> {
    let hpet = table(*b"HPET")?;
    // SAFETY: an HPET table has a generic address at byte 40, the address proper at 44.
    Some(unsafe { read_unaligned((hpet + 44) as *const u64) })
}
