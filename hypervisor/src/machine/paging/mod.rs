//! tarpit's own page tables: an identity map of all RAM and of the first 4 GiB, where the
//! MMIO is, with the largest pages that fit, but for guests' RAM, which is seen through [windows](RamWindow).
//!
//! Memory types are left to the MTRRs, as the firmware set them: every entry selects PAT
//! entry 0, which is write-back, and an MTRR's "uncacheable" prevails over that (SDM
//! vol. 3A, 12.5.2.2).

mod ram_window;
mod tables;
#[cfg(test)]
mod tests;

use spin::Mutex;
use vmx::addr::{HostPhysAddr, PAGE_SIZE};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Efer, EferFlags};

use super::boot_info::{MemoryKind, MemoryRegion};
use super::image::ImageLayout;
use super::memory::{Frames, OutOfMemory, PhysRange, SIZE_2M};

pub(in crate::machine) use ram_window::{OpenWindows, use_own_root};
pub(crate) use ram_window::{RamWindow, leave_windows};
pub(crate) use tables::{PageTables, Protection};

/// The range that is mapped whatever the memory map says: firmware tables, LAPIC, IOAPIC, HPET lie
/// here.
const FIRST_4G: PhysRange = PhysRange::new(0, 4 << 30);

static TABLES: Mutex<Option<PageTables>> = Mutex::new(None);

/// Returns a zeroed frame for a page table: these are in use as long as the machine runs.
fn new_table() -> Result<HostPhysAddr, OutOfMemory> {
    let frame = Frames::allocate(PAGE_SIZE, PAGE_SIZE)?.leak().start;
    // SAFETY: the frame is ours, and all free memory is identity-mapped: by the boot tables
    // below 4 GiB, where small allocations come from first, and by these tables later.
    unsafe { core::ptr::write_bytes(frame.0 as *mut u8, 0, PAGE_SIZE as usize) };
    Ok(frame)
}

/// Builds the page tables and switches this CPU to them. In them the image's code cannot be
/// written, its data cannot be executed, and the guard page of the boot stack is missing.
///
/// # Errors
/// If there is no memory for the tables.
///
/// # Safety
/// Once, on the boot CPU, running in the first 4 GiB identity-mapped, from the image that
/// `image` describes.
pub(crate) unsafe fn init(map: &[MemoryRegion], image: &ImageLayout) -> Result<(), OutOfMemory> {
    let features = raw_cpuid::CpuId::new().get_extended_processor_and_feature_identifiers();
    let has_1g = features.as_ref().is_some_and(|f| f.has_1gib_pages());
    let has_nx = features.as_ref().is_some_and(|f| f.has_execute_disable());

    let mut tables = PageTables::new(&mut new_table, has_1g, has_nx)?;
    let mut map_data = |range| tables.set(range, Some(Protection::Data), &mut new_table);
    map_data(FIRST_4G)?;
    for region in map {
        let is_ram = matches!(
            region.kind,
            MemoryKind::Available | MemoryKind::AcpiTables | MemoryKind::AcpiNvs
        );
        let above = PhysRange::new(
            region.range.start.0.max(FIRST_4G.end.0),
            region.range.end.0.max(FIRST_4G.end.0),
        );
        // Rounded out: what lies between regions of RAM in one large page is not harmed by
        // being mapped, as nothing ever refers to it.
        let start = above.start.0 & !(SIZE_2M - 1);
        let end = above.end.0.checked_next_multiple_of(SIZE_2M);
        if is_ram
            && !above.is_empty()
            && let Some(end) = end
        {
            map_data(PhysRange::new(start, end.min(PageTables::REACH)))?;
        }
    }
    let of =
        |range: &core::ops::Range<u64>| PhysRange::new(range.start, range.end).touched_frames();
    let guard = image.boot_stack_guard;
    for (range, protection) in [
        (of(&image.text), Some(Protection::Code)),
        (of(&image.rodata), Some(Protection::Constants)),
        (PhysRange::new(guard, guard + PAGE_SIZE), None),
    ] {
        tables.set(range, protection, &mut new_table)?;
    }
    // SAFETY: the tables map all that this CPU uses, as identity.
    unsafe { activate(&tables, has_nx) };
    *TABLES.lock() = Some(tables);
    Ok(())
}

/// Loads `tables`, which map everything as this CPU is to see it.
///
/// # Safety
/// `tables` must identity-map all that this CPU uses.
unsafe fn activate(tables: &PageTables, no_execute: bool) {
    // SAFETY: EFER.NXE only gives a meaning to a bit that is zero in the old tables, the
    // rest is by the caller.
    unsafe {
        if no_execute {
            Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE));
        }
        Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT));
        Cr3::write_raw(
            x86_64::structures::paging::PhysFrame::containing_address(x86_64::PhysAddr::new(
                tables.root().0,
            )),
            0,
        );
    }
}

/// Returns the root of tarpit's page tables, for the CR3 of other CPUs and of VM exits.
///
/// # Panics
/// Before [`init`].
#[must_use]
pub(crate) fn root() -> HostPhysAddr {
    TABLES
        .lock()
        .as_ref()
        .map(PageTables::root)
        .expect("paging is set up first")
}

/// Sets what may be done with the 4 KiB pages of `range`: `None` makes any access fault.
/// Does nothing before [`init`].
///
/// # Errors
/// If a large page must be split and there is no memory for that; then part of the range
/// may have been changed.
///
/// # Safety
/// Nothing may use the range in a way that is not allowed any more. Other CPUs may go on
/// using the old translation until they flush it themselves.
pub(crate) unsafe fn protect(
    range: PhysRange,
    protection: Option<Protection>,
) -> Result<(), OutOfMemory> {
    let mut guard = TABLES.lock();
    let Some(tables) = guard.as_mut() else {
        return Ok(());
    };
    let result = tables.set(range, protection, &mut new_table);
    x86_64::instructions::tlb::flush_all();
    result
}

/// Returns whether `address` can be read without a fault. For fault reports: gives up (`false`)
/// when the tables are in use.
#[must_use]
pub(crate) fn is_readable(address: u64) -> bool {
    TABLES.try_lock().is_some_and(|tables| {
        tables
            .as_ref()
            .is_some_and(|tables| tables.protection(address).is_some())
    })
}
