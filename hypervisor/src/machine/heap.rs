//! The heap: a small arena in the image for the first steps of booting, growing out of the
//! machine's free memory from then on.

use crate::machine::memory;

/// The memory that the machine keeps for itself, in bytes: for what must not fail.
const RESERVE: u64 = 16 << 20;

/// Tells whether there is memory on the heap for what guests take of it as they go: for others,
/// some always stays free.
#[must_use]
pub(crate) fn has_room_for_guests() -> bool {
    memory::free_bytes() + global::free_bytes() > RESERVE
}

#[cfg(target_os = "none")]
mod global {
    use core::alloc::Layout;

    use talc::TalcLock;
    use talc::base::{Talc, binning::Binning};
    use talc::source::Source;

    use crate::machine::memory::Frames;

    /// The size of the arena for copies of boot information, the memory map and module command
    /// lines, made before there is an allocator of frames.
    const ARENA_SIZE: usize = 128 << 10;
    /// The unit by multiples of which the heap grows, so that it rarely has to.
    const GROWTH: u64 = 1 << 20;
    /// Space beyond the wanted allocation that a new area needs for talc's own accounts.
    const OVERHEAD: u64 = 4 << 10;

    static mut ARENA: [u8; ARENA_SIZE] = [0; ARENA_SIZE];

    #[derive(Debug)]
    struct ArenaThenFrames {
        arena_claimed: bool,
    }

    // SAFETY: neither the frame allocator nor its lock use the heap.
    unsafe impl Source for ArenaThenFrames {
        fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
            if !talc.source.arena_claimed {
                talc.source.arena_claimed = true;
                let base = (&raw mut ARENA).cast::<u8>();
                // SAFETY: the arena is used for nothing else, and claimed once.
                return unsafe { talc.claim(base, ARENA_SIZE) }.map(drop).ok_or(());
            }
            let wanted = (layout.size() as u64)
                .checked_add(layout.align() as u64)
                .and_then(|size| size.checked_add(OVERHEAD))
                .and_then(|size| size.checked_next_multiple_of(GROWTH))
                .ok_or(())?;
            let range = Frames::allocate(wanted, 1).map_err(drop)?.leak();
            // SAFETY: the frames are ours alone from now on, and all free memory is
            // identity-mapped, readable and writable.
            unsafe { talc.claim(range.start.0 as *mut u8, range.size() as usize) }
                .map(drop)
                .ok_or(())
        }
    }

    #[global_allocator]
    static HEAP: TalcLock<spin::Mutex<()>, ArenaThenFrames> = TalcLock::new(ArenaThenFrames {
        arena_claimed: false,
    });

    /// Returns how much of the memory that the heap has taken is free, in bytes.
    pub(super) fn free_bytes() -> u64 {
        HEAP.lock().counters().available_bytes as u64
    }
}

/// On a host's own heap there is room.
#[cfg(not(target_os = "none"))]
mod global {
    pub(super) const fn free_bytes() -> u64 {
        u64::MAX / 2
    }
}
