//! Where application processors find their first instructions.

use vmx::addr::PAGE_SIZE;
use x86_64::registers::model_specific::{Efer, EferFlags};

use crate::machine::boot_info::{MemoryKind, MemoryRegion};
use crate::machine::image::Trampoline;
use crate::machine::memory::{LOW_MEMORY_END, OutOfMemory, PhysRange};
use crate::machine::paging::{self, Protection};

/// Returns the highest page below 1 MiB, but not the first page of memory, that the memory map says
/// is available as a whole and that no module touches.
pub(super) fn page(
    map: &[MemoryRegion],
    modules: impl Iterator<Item = PhysRange> + Clone,
) -> Option<u64> {
    (1..LOW_MEMORY_END / PAGE_SIZE)
        .rev()
        .map(|number| number * PAGE_SIZE)
        .find(|&start| {
            let end = start + PAGE_SIZE;
            let touches = |range: PhysRange| range.start.0 < end && start < range.end.0;
            let is_inside = |range: PhysRange| range.start.0 <= start && end <= range.end.0;
            let mut available = map.iter().filter(|r| r.kind == MemoryKind::Available);
            let mut other = map.iter().filter(|r| r.kind != MemoryKind::Available);
            available.any(|region| is_inside(region.range))
                && !other.any(|region| touches(region.range))
                && !modules.clone().any(touches)
        })
}

/// Returns the page number that a start-up IPI takes.
pub(super) fn start_up_page(page: u64) -> Option<u8> {
    u8::try_from(page / PAGE_SIZE).ok()
}

/// Copies the trampoline to `page`, fills in its parameters, and lets it be executed.
///
/// # Safety
/// The page is unused memory; `trampoline` is the image's.
pub(super) unsafe fn place(trampoline: &Trampoline, page: u64) -> Result<(), OutOfMemory> {
    let length = (trampoline.code.end - trampoline.code.start).min(PAGE_SIZE);
    let parameter = |address: u64| (page + (address - trampoline.code.start)) as *mut u32;
    // Tables come from the bottom of memory, far below 4 GiB: 32 bits are what a CPU can load
    // into CR3 before it is in 64-bit mode.
    let root = paging::root().0 as u32;
    let efer = (Efer::read() & EferFlags::NO_EXECUTE_ENABLE).bits() as u32;
    // SAFETY: by the caller; the parameters lie in the code, aligned. The page is mapped one
    // to one.
    unsafe {
        paging::protect(super::page_range(page), Some(Protection::Data))?;
        core::ptr::copy_nonoverlapping(
            trampoline.code.start as *const u8,
            page as *mut u8,
            length as usize,
        );
        parameter(trampoline.root).write_volatile(root);
        parameter(trampoline.efer).write_volatile(efer);
        paging::protect(super::page_range(page), Some(Protection::Code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, kind: MemoryKind) -> MemoryRegion {
        MemoryRegion {
            range: PhysRange::new(start, end),
            kind,
        }
    }

    #[test]
    fn the_highest_whole_free_page_is_chosen() {
        let map = [
            region(0, 0x9_fc00, MemoryKind::Available),
            region(0x9_fc00, 0xa_0000, MemoryKind::Reserved),
            region(0x10_0000, 0x1000_0000, MemoryKind::Available),
        ];
        let none = core::iter::empty();
        assert_eq!(page(&map, none), Some(0x9_e000));
        let modules = [PhysRange::new(0x9_e800, 0x9_e801)].into_iter();
        assert_eq!(page(&map, modules), Some(0x9_d000));
        assert_eq!(start_up_page(0x9_e000), Some(0x9e));
    }

    #[test]
    fn neither_the_null_page_nor_high_memory_will_do() {
        let map = [
            region(0, 0x1000, MemoryKind::Available),
            region(0x10_0000, 0x1000_0000, MemoryKind::Available),
        ];
        assert_eq!(page(&map, core::iter::empty()), None);
    }
}
