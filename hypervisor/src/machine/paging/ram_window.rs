//! Windows: where tarpit sees the RAM of guests.
//!
//! The identity map, which all CPUs share, has all memory but guests' RAM. The RAM of each guest has a window of its
//! own in the upper half of the address space: entries of level 4 that no other guest has anything in. A CPU has a
//! root of its own, and a window in it only while it uses that: from its first access, which faults, until it lets go
//! of the VCPU that it has loaded. So what the processor does by a wrong prediction while one guest's exit is being
//! handled finds the memory of no other guest.
//!
//! # Why no CPU uses what was there
//! A CPU that takes a window out flushes its translations of it, and only then counts as no user of it. The tables
//! of a window, the RAM in it and its place are used for something else only when it has no user.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::paging::{ADDRESS, ENTRIES};
use spin::Mutex;
use vmx::addr::{HostPhysAddr, PAGE_SIZE};
use x86_64::registers::control::{Cr2, Cr3};

use super::super::cpu::{PerCpu, fatal_trap, trap};
use super::super::memory::{Frames, OutOfMemory};
use super::{PageTables, Protection, TABLES, protect};

/// The places for windows: the entries of level 4 in the upper half of the address space.
const PLACES: usize = ENTRIES / 2;
/// The bytes that one of them covers.
const PLACE_SIZE: u64 = 1 << 39;
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
/// The vector of page faults.
const PAGE_FAULT: u8 = arch::ExceptionVector::Page as u8;

/// The places in the upper half of the address space, and the windows at them.
#[derive(Debug)]
struct Windows {
    /// The entries of level 4 for the windows at the places; zero for none.
    entries: [AtomicU64; PLACES],
    /// The numbers of CPUs that have them in their tables.
    users: [AtomicU32; PLACES],
    /// Whether the places are taken.
    taken: Mutex<[bool; PLACES]>,
    /// The contents of windows that are closed, which CPUs still have in their tables.
    closed: Mutex<Vec<Contents>>,
}

static WINDOWS: Windows = Windows::new();

/// The windows that a CPU has in its tables: one bit a place.
#[derive(Debug, Default)]
pub(in crate::machine) struct OpenWindows([AtomicU64; PLACES / 64]);

/// The memory that a window shows, and what else it takes.
#[derive(Debug)]
struct Contents {
    places: Range<usize>,
    _tables: Vec<Frames>,
    pieces: Vec<Frames>,
}

/// The window on memory that is its own, which is in no other place of the address space for as long.
#[derive(Debug)]
pub(crate) struct RamWindow {
    windows: &'static Windows,
    /// Its contents, until it is closed.
    contents: Option<Contents>,
}

impl RamWindow {
    /// Opens a window on `pieces`, which lie in it one after the other. Nobody has references to them.
    ///
    /// # Errors
    /// If there is no memory for tables, or no place. The pieces are given back to the machine then.
    pub(crate) fn new(pieces: Vec<Frames>) -> Result<Self, OutOfMemory> {
        #[cfg(not(test))]
        let windows = &WINDOWS;
        // Tests leave more VMs behind than a machine has.
        #[cfg(test)]
        let windows = alloc::boxed::Box::leak(alloc::boxed::Box::new(Windows::new()));
        Self::among(windows, pieces)
    }

    fn among(windows: &'static Windows, pieces: Vec<Frames>) -> Result<Self, OutOfMemory> {
        windows.free_closed();
        let mut tables = Vec::new();
        let map = map(&pieces, &mut tables)?;
        let size = pieces.iter().map(|piece| piece.range().size()).sum();
        let places = windows.take_places(size).ok_or(OutOfMemory {
            size,
            alignment: PLACE_SIZE,
        })?;
        // From here on all is given back when it is dropped.
        let contents = Contents {
            places: places.clone(),
            _tables: tables,
            pieces,
        };
        let window = Self {
            windows,
            contents: Some(contents),
        };
        for (_, piece) in window.pieces() {
            // SAFETY: nobody uses the memory at this address. Where CPUs have it in their translations for a while
            // longer it is still what it was.
            unsafe { protect(piece.range(), None)? };
        }
        for (index, place) in places.enumerate() {
            windows.entries[place].store(map.root_entry(index), Ordering::Release);
        }
        Ok(window)
    }

    /// Returns the pieces, each with the address at which it is seen.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, &Frames)> {
        let contents = self.contents.iter();
        contents.flat_map(|contents| {
            let mut offset = contents.places.start as u64 * PLACE_SIZE;
            contents.pieces.iter().map(move |piece| {
                let address = UPPER_HALF + offset;
                offset += piece.range().size();
                // Where tests run there are no tables of ours, and each piece is where it is.
                let is_seen = !cfg!(test);
                (
                    if is_seen {
                        address
                    } else {
                        piece.range().start.0
                    },
                    piece,
                )
            })
        })
    }
}

impl Drop for RamWindow {
    fn drop(&mut self) {
        if let Some(contents) = self.contents.take() {
            self.windows.close(contents);
        }
    }
}

impl Windows {
    const fn new() -> Self {
        Self {
            entries: [const { AtomicU64::new(0) }; PLACES],
            users: [const { AtomicU32::new(0) }; PLACES],
            taken: Mutex::new([false; PLACES]),
            closed: Mutex::new(Vec::new()),
        }
    }

    /// Takes places for `size` bytes, one after the other.
    fn take_places(&self, size: u64) -> Option<Range<usize>> {
        let count = usize::try_from(size.div_ceil(PLACE_SIZE)).ok()?.max(1);
        let mut taken = self.taken.lock();
        let first = taken
            .windows(count)
            .position(|places| !places.contains(&true))?;
        taken[first..first + count].fill(true);
        Some(first..first + count)
    }

    /// Closes a window: its contents are given back when no CPU has them any more.
    fn close(&self, contents: Contents) {
        for place in contents.places.clone() {
            self.entries[place].store(0, Ordering::Release);
        }
        if self.has_users(&contents) {
            self.closed.lock().push(contents);
        } else {
            self.free(contents);
        }
    }

    fn has_users(&self, contents: &Contents) -> bool {
        let mut users = self.users[contents.places.clone()].iter();
        users.any(|users| users.load(Ordering::Acquire) != 0)
    }

    /// Gives back what no CPU has any more.
    fn free(&self, contents: Contents) {
        for piece in contents.pieces {
            // SAFETY: the memory is nobody's, and may be used as any other from now on.
            let is_back = unsafe { protect(piece.range(), Some(Protection::Data)) }.is_ok();
            if !is_back {
                // Memory that is not mapped is of no use to anybody.
                let _ = piece.leak();
            }
        }
        self.taken.lock()[contents.places].fill(false);
    }

    /// Gives back what closed windows have shown that no CPU has any more.
    fn free_closed(&self) {
        loop {
            // Not under the lock: what is freed takes others.
            let mut closed = self.closed.lock();
            let Some(unused) = closed.iter().position(|contents| !self.has_users(contents)) else {
                return;
            };
            let contents = closed.swap_remove(unused);
            drop(closed);
            self.free(contents);
        }
    }

    /// Puts the window that `address` is in into the tables whose upper half is `places`, as one of `own`. Returns
    /// whether it was missing there, and is there now. What is missing in tables is in no CPU's translations: there is
    /// nothing to flush.
    ///
    /// # Safety
    /// `places` are 256 entries, which nobody else changes.
    unsafe fn open(&self, places: *mut u64, own: &OpenWindows, address: u64) -> bool {
        let Some(offset) = address.checked_sub(UPPER_HALF) else {
            return false;
        };
        let place = (offset / PLACE_SIZE) as usize;
        let entry = self.entries[place].load(Ordering::Acquire);
        // SAFETY: in the upper half there are no addresses but those of the places.
        let slot = unsafe { places.add(place) };
        // SAFETY: by the contract.
        if entry == 0 || unsafe { slot.read_volatile() } != 0 {
            return false;
        }
        self.users[place].fetch_add(1, Ordering::AcqRel);
        own.0[place / 64].fetch_or(1 << (place % 64), Ordering::Relaxed);
        // SAFETY: by the contract; the entry refers to tables of RAM that is in the window.
        unsafe { slot.write_volatile(entry) };
        true
    }

    /// Takes the windows `own` out of the tables whose upper half is `places`, and has the CPU's translations flushed by
    /// `flush`, if there are any.
    ///
    /// # Safety
    /// As for [`Windows::open`].
    unsafe fn leave(&self, places: *mut u64, own: &OpenWindows, flush: impl FnOnce()) {
        let open: [u64; PLACES / 64] =
            core::array::from_fn(|word| own.0[word].swap(0, Ordering::Relaxed));
        if open == [0; PLACES / 64] {
            return;
        }
        for place in places_in(open) {
            // SAFETY: by the contract.
            unsafe { places.add(place).write_volatile(0) };
        }
        flush();
        for place in places_in(open) {
            self.users[place].fetch_sub(1, Ordering::Release);
        }
        if self
            .closed
            .try_lock()
            .is_some_and(|closed| !closed.is_empty())
        {
            self.free_closed();
        }
    }
}

/// Returns the places whose bits are set.
fn places_in(bits: [u64; PLACES / 64]) -> impl Iterator<Item = usize> {
    let words = bits.into_iter().enumerate();
    words.flat_map(|(word, bits)| {
        let left = core::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
        let left = left.take_while(|&bits| bits != 0);
        left.map(move |bits| word * 64 + bits.trailing_zeros() as usize)
    })
}

/// Makes tables that have `pieces` one after the other, from address zero on, which lie in `frames`.
fn map(pieces: &[Frames], frames: &mut Vec<Frames>) -> Result<PageTables, OutOfMemory> {
    let mut new_table = || {
        let frame = Frames::allocate(PAGE_SIZE, PAGE_SIZE)?;
        let start = frame.range().start;
        // SAFETY: the frame is ours, and is identity-mapped as all memory that is free.
        unsafe { core::ptr::write_bytes(start.0 as *mut u8, 0, PAGE_SIZE as usize) };
        frames.push(frame);
        Ok(start)
    };
    let mut map = {
        let tables = TABLES.lock();
        match tables.as_ref() {
            Some(tables) => tables.new_like(&mut new_table)?,
            None => PageTables::new(&mut new_table, false, false)?,
        }
    };
    let mut address = 0;
    for piece in pieces {
        map.map(address, piece.range(), Protection::Data, &mut new_table)?;
        address += piece.range().size();
    }
    Ok(map)
}

/// Gives this CPU a root of its own, with the identity map and no windows.
///
/// # Errors
/// If there is no memory for it.
///
/// # Safety
/// Once on each CPU, with interrupts off; the CPU's root is the one that [`super::root`] returns, which is complete.
pub(in crate::machine) unsafe fn use_own_root() -> Result<(), OutOfMemory> {
    trap::set_hook(PAGE_FAULT, Some(on_page_fault));
    let own = super::new_table()?;
    let (from, to) = (super::root().0 as *const u64, own.0 as *mut u64);
    // SAFETY: both are tables of 512 entries, of which the new one is ours.
    unsafe { core::ptr::copy_nonoverlapping(from, to, PLACES) };
    // SAFETY: the new tables map what the old ones do.
    unsafe { load_root(own) };
    Ok(())
}

/// Loads the root at `root`, and flushes all translations.
///
/// # Safety
/// The tables must map all that this CPU uses.
unsafe fn load_root(root: HostPhysAddr) {
    let frame = x86_64::structures::paging::PhysFrame::containing_address(x86_64::PhysAddr::new(
        root.0 & ADDRESS,
    ));
    // SAFETY: by the contract.
    unsafe { Cr3::write_raw(frame, 0) };
}

/// Returns the upper half of this CPU's root.
fn own_places() -> *mut u64 {
    let (frame, _) = Cr3::read_raw();
    let root = frame.start_address().as_u64() as *mut u64;
    // Within the table.
    root.wrapping_add(PLACES)
}

fn on_page_fault(frame: &mut trap::TrapFrame) {
    // SAFETY: it is this CPU's own root, by `use_own_root`.
    let is_open =
        unsafe { WINDOWS.open(own_places(), PerCpu::current().windows(), Cr2::read_raw()) };
    if !is_open {
        fatal_trap(frame);
    }
}

/// Takes the windows that this CPU has out of its tables.
pub(crate) fn leave_windows() {
    let (frame, _) = Cr3::read_raw();
    let root = HostPhysAddr(frame.start_address().as_u64());
    // SAFETY: it is this CPU's own root, by `use_own_root`. The tables map the same but for the windows, in which
    // there are no references.
    unsafe {
        WINDOWS.leave(own_places(), PerCpu::current().windows(), || {
            load_root(root)
        })
    };
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec;

    use super::*;

    /// A CPU: the upper half of its root, and the windows in it.
    struct Cpu {
        windows: &'static Windows,
        places: Box<[u64; PLACES]>,
        own: OpenWindows,
    }

    impl Cpu {
        fn new(windows: &'static Windows) -> Self {
            Self {
                windows,
                places: Box::new([0; PLACES]),
                own: OpenWindows::default(),
            }
        }

        fn open(&mut self, address: u64) -> bool {
            // SAFETY: the table is the test's.
            unsafe {
                self.windows
                    .open(self.places.as_mut_ptr(), &self.own, address)
            }
        }

        /// Leaves the windows, and returns whether translations were flushed.
        fn leave(&mut self) -> bool {
            let mut is_flushed = false;
            // SAFETY: the table is the test's.
            unsafe {
                self.windows
                    .leave(self.places.as_mut_ptr(), &self.own, || is_flushed = true);
            }
            is_flushed
        }

        fn has_any(&self) -> bool {
            self.places.iter().any(|&entry| entry != 0)
        }
    }

    fn windows() -> &'static Windows {
        Box::leak(Box::new(Windows::new()))
    }

    fn window(windows: &'static Windows, sizes: &[u64]) -> RamWindow {
        let pieces = sizes
            .iter()
            .map(|&size| Frames::allocate(size, 4096).unwrap());
        RamWindow::among(windows, pieces.collect()).unwrap()
    }

    fn address(window: &RamWindow) -> u64 {
        UPPER_HALF + window.contents.as_ref().unwrap().places.start as u64 * PLACE_SIZE
    }

    #[test]
    fn a_cpu_has_a_window_from_its_first_access_until_it_leaves() {
        let all = windows();
        let window = window(all, &[0x4000]);
        let at = address(&window);
        let mut cpu = Cpu::new(all);
        assert!(!cpu.leave(), "there is nothing to flush");
        assert!(cpu.open(at + 0x123) && cpu.has_any());
        assert!(!cpu.open(at), "a fault in what is there is a fault");
        assert!(cpu.leave() && !cpu.has_any());
        assert!(cpu.open(at), "and again");
    }

    #[test]
    fn what_is_no_window_faults() {
        let all = windows();
        let window = window(all, &[0x1000]);
        let mut cpu = Cpu::new(all);
        for address in [0, 0x1000, UPPER_HALF - 1, u64::MAX] {
            assert!(!cpu.open(address), "{address:#x}");
        }
        let at = address(&window);
        drop(window);
        assert!(!cpu.open(at), "it is closed");
        assert!(!cpu.has_any());
    }

    #[test]
    fn two_guests_are_never_in_one_place() {
        let all = windows();
        let open: Vec<_> = (0..PLACES).map(|_| window(all, &[0x1000])).collect();
        let mut places: Vec<_> = open.iter().map(address).collect();
        places.dedup();
        assert_eq!(places.len(), PLACES);
        let pieces = vec![Frames::allocate(0x1000, 0x1000).unwrap()];
        assert!(RamWindow::among(all, pieces).is_err(), "there are no more");
        drop(open);
        assert!(!all.taken.lock().contains(&true));
    }

    #[test]
    fn a_guest_that_is_larger_than_a_place_has_several_in_a_row() {
        let all = windows();
        all.taken.lock()[1] = true;
        assert_eq!(all.take_places(2 * PLACE_SIZE + 1), Some(2..5));
        assert_eq!(all.take_places(PLACE_SIZE), Some(0..1));
        assert_eq!(all.take_places(1), Some(5..6));
        assert_eq!(all.take_places(256 * PLACE_SIZE), None);
    }

    #[test]
    fn the_place_of_a_closed_window_is_free_when_all_cpus_have_left_it() {
        let all = windows();
        let window = window(all, &[0x2000, 0x1000]);
        let at = address(&window);
        let mut cpus = [Cpu::new(all), Cpu::new(all)];
        for cpu in &mut cpus {
            assert!(cpu.open(at));
        }
        drop(window);
        for cpu in &mut cpus {
            assert!(all.taken.lock().contains(&true), "one has it still");
            cpu.leave();
        }
        assert!(!all.taken.lock().contains(&true));
        assert!(all.closed.lock().is_empty());
    }

    #[test]
    fn each_bit_is_a_place() {
        let places = [0, 1, 63, 64, 200, 255];
        let mut bits = [0; PLACES / 64];
        for place in places {
            bits[place / 64] |= 1 << (place % 64);
        }
        assert_eq!(places_in(bits).collect::<Vec<_>>(), places);
        assert_eq!(places_in([0; PLACES / 64]).count(), 0);
    }

    #[test]
    fn pieces_lie_in_the_window_one_after_the_other() {
        let sizes = [0x20_0000, 0x1000, 0x3000];
        let pieces: Vec<_> = sizes
            .iter()
            .map(|&size| Frames::allocate(size, size.next_power_of_two()).unwrap())
            .collect();
        let mut frames = Vec::new();
        let tables = map(&pieces, &mut frames).unwrap();
        let mut address = 0;
        for piece in &pieces {
            for offset in (0..piece.range().size()).step_by(0x1000) {
                let expected = piece.range().start.0 + offset;
                assert_eq!(tables.translate(address + offset), Some(expected));
            }
            address += piece.range().size();
        }
        assert_eq!(tables.translate(address), None);
        assert_eq!(frames.len(), 4, "large pages where they fit");
    }
}
