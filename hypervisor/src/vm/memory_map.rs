//! What a guest finds at which guest-physical address: its RAM and the APIC-access page.
//!
//! # Two views
//! The map exists twice: as a whole, and with some pages *guarded*, out of the guest's reach. A VCPU
//! runs with the one or the other, and changes between them by changing its EPT pointer. That takes
//! no invalidation: translations are tagged with the root of the tables that they were made with
//! (SDM vol. 3C, 29.4.1: combined and guest-physical mappings belong to an EP4TA), so none that was
//! made with the whole view is used with the guarded one. An instruction of the guest's that drops
//! translations drops those of all views (SDM vol. 3C, 29.4.3.1). Only when pages become guarded may
//! a CPU have translations of the guarded view that reach them: then it is to drop these, as after
//! any change of the map.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::apic::DEFAULT_ADDRESS;
use spin::Mutex;
use vmx::addr::{GuestPhysAddr, HostPhysAddr, PAGE_SIZE};
use vmx::ept::{Access, Ept, EptError};
use vmx::page::Page;

/// The part of the map that a VCPU sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// All of it.
    Whole,
    /// All but the guarded pages.
    Guarded,
}

/// The memory map of a VM, which all its VCPUs run with.
pub(crate) struct MemoryMap {
    tables: Mutex<Tables>,
    pointers: [u64; 2],
    /// Whether there are guarded pages.
    is_guarding: AtomicBool,
    /// The generation of the map: changes whenever it becomes such that cached translations are
    /// wrong.
    generation: AtomicU64,
    /// A page of nothing.
    apic_access_page: Box<Page>,
    /// One bit a VCPU: those that want the APIC-access page mapped.
    apic_page_users: AtomicU32,
    /// The bits of all VCPUs.
    vcpus: u32,
}

struct Tables {
    whole: Ept,
    /// The map without the guarded pages.
    guarded: Ept,
    guarded_pages: Vec<GuestPhysAddr>,
}

impl Tables {
    /// Returns the tables of all views.
    fn all(&mut self) -> [&mut Ept; 2] {
        [&mut self.whole, &mut self.guarded]
    }

    /// Lets go of the guarded pages.
    fn let_go(&mut self) {
        let Self {
            whole,
            guarded,
            guarded_pages,
        } = self;
        for page in guarded_pages.drain(..) {
            let is_rom = whole
                .access(page)
                .is_some_and(|access| !access.contains(Access::WRITE));
            let access = match is_rom {
                true => Access::READ | Access::EXECUTE,
                false => Access::all(),
            };
            // Those behind one that is no RAM were not guarded.
            let result = guarded.protect_page(page, access);
            debug_assert_ne!(result, Err(EptError::OutOfMemory), "it was split before");
        }
    }
}

impl MemoryMap {
    /// Makes the map of a VM of `vcpus` VCPUs, at least one and at most 32, from the tables of its
    /// two views, both of which map its RAM. `apic_access_page` is a page of nothing, for
    /// [`vmx::vmcs::Vmcs::set_apic_access_page`].
    #[must_use]
    pub(crate) fn new(whole: Ept, guarded: Ept, apic_access_page: Box<Page>, vcpus: u32) -> Self {
        debug_assert!((1..=32).contains(&vcpus));
        Self {
            pointers: [whole.pointer(), guarded.pointer()],
            is_guarding: AtomicBool::new(false),
            tables: Mutex::new(Tables {
                whole,
                guarded,
                guarded_pages: Vec::new(),
            }),
            generation: AtomicU64::new(0),
            apic_access_page,
            apic_page_users: AtomicU32::new(0),
            vcpus: u32::MAX >> (32 - vcpus.clamp(1, 32)),
        }
    }

    /// Returns the EPT pointer of `view` for the VMCS.
    #[must_use]
    pub(crate) const fn ept_pointer(&self, view: View) -> u64 {
        self.pointers[view as usize]
    }

    /// Returns whether there are guarded pages.
    #[must_use]
    #[inline]
    pub(crate) fn is_guarding(&self) -> bool {
        self.is_guarding.load(Ordering::Acquire)
    }

    /// Returns whether the page at `address` is guarded.
    #[must_use]
    pub(crate) fn is_guarded(&self, address: GuestPhysAddr) -> bool {
        self.is_guarding() && self.tables.lock().guarded_pages.contains(&address.page())
    }

    /// Guards the pages that `pages` says, which are RAM, and no others. Returns whether that is a
    /// change: then all VCPUs are to drop what they have cached of the map.
    ///
    /// # Errors
    /// If there is no memory for tables; no page is guarded then.
    pub(crate) fn guard(
        &self,
        pages: impl FnOnce(&mut Vec<GuestPhysAddr>) -> Result<(), TryReserveError>,
    ) -> Result<bool, EptError> {
        let mut tables = self.tables.lock();
        // Under the lock, so that of two callers the later one has the last word.
        let mut wanted = Vec::new();
        let listed = pages(&mut wanted).map_err(|_| EptError::OutOfMemory);
        if listed.is_ok() && wanted == tables.guarded_pages {
            return Ok(false);
        }
        let had_some = !tables.guarded_pages.is_empty();
        // Families grow more often than they shrink.
        let kept = if wanted.starts_with(&tables.guarded_pages) {
            tables.guarded_pages.len()
        } else {
            tables.let_go();
            0
        };
        let guarded = listed.and_then(|()| {
            tables.guarded_pages = wanted;
            let Tables {
                guarded,
                guarded_pages,
                ..
            } = &mut *tables;
            let mut pages = guarded_pages[kept..].iter();
            pages.try_for_each(|&page| guarded.protect_page(page, Access::empty()))
        });
        if guarded.is_err() {
            tables.let_go();
        }
        let is_guarding = !tables.guarded_pages.is_empty();
        self.is_guarding.store(is_guarding, Ordering::Release);
        self.generation.fetch_add(1, Ordering::SeqCst);
        drop(tables);
        guarded.map(|()| had_some || is_guarding)
    }

    /// Lets the guest execute at `address`, which it may not in large pages, and returns whether it may: it is RAM.
    ///
    /// # Errors
    /// If there is no memory for tables.
    pub(crate) fn execute(&self, address: GuestPhysAddr) -> Result<bool, EptError> {
        let mut tables = self.tables.lock();
        // One that is guarded is out of reach there, whatever it is.
        tables.guarded.execute(address)?;
        tables.whole.execute(address)
    }

    /// Returns the APIC-access page.
    #[must_use]
    pub(crate) fn apic_access_page(&self) -> HostPhysAddr {
        self.apic_access_page.address()
    }

    /// Returns a number that differs from what it was if translations that a CPU has cached since
    /// may be wrong.
    #[must_use]
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Says whether VCPU `index` wants the APIC-access page in the map. It is mapped while all
    /// want it; otherwise accesses to the LAPIC's page exit, which is right for any mode, only
    /// slower. Returns whether the map has changed: then all VCPUs are to drop what they have
    /// cached of it.
    ///
    /// # Errors
    /// If there is no memory for tables.
    pub(crate) fn want_apic_access_page(&self, index: u32, wanted: bool) -> Result<bool, EptError> {
        let bit = 1u32 << (index & 31);
        debug_assert_ne!(self.vcpus & bit, 0, "there is no such VCPU");
        // Decided and carried out as one, or the last to change its mind may be the first to
        // change the map.
        let mut tables = self.tables.lock();
        let before = self.apic_page_users.load(Ordering::Relaxed);
        let after = if wanted { before | bit } else { before & !bit };
        self.apic_page_users.store(after, Ordering::Relaxed);
        if (before == self.vcpus) == (after == self.vcpus) {
            return Ok(false);
        }
        let page = GuestPhysAddr(DEFAULT_ADDRESS);
        for ept in tables.all() {
            if after == self.vcpus {
                let access = Access::READ | Access::WRITE;
                // SAFETY: the APIC-access page holds nothing; all guests may do with it what they
                // like.
                unsafe { ept.map(page, self.apic_access_page.address(), PAGE_SIZE, access)? };
            } else {
                ept.unmap_page(page)?;
            }
        }
        drop(tables);
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use vmx::capabilities::Translation;

    use super::*;

    const RAM: u64 = 4 << 20;

    fn map(vcpus: u32) -> MemoryMap {
        let ept = || {
            let mut ept = Ept::new(&Translation::ALL).unwrap();
            // SAFETY: no CPU uses these tables.
            unsafe {
                ept.map(GuestPhysAddr(0), HostPhysAddr(1 << 30), RAM, Access::all())
                    .unwrap();
            }
            ept
        };
        MemoryMap::new(ept(), ept(), Page::try_new().unwrap(), vcpus)
    }

    fn is_mapped(map: &MemoryMap) -> bool {
        let mut tables = map.tables.lock();
        let [whole, guarded] = tables
            .all()
            .map(|ept| ept.translate(GuestPhysAddr(DEFAULT_ADDRESS)));
        assert_eq!(whole, guarded);
        assert!(whole.is_none_or(|page| page == map.apic_access_page()));
        whole.is_some()
    }

    fn guard(map: &MemoryMap, pages: &[u64]) -> bool {
        let list = |wanted: &mut Vec<GuestPhysAddr>| {
            wanted.extend(pages.iter().map(|&page| GuestPhysAddr(page)));
            Ok(())
        };
        map.guard(list).unwrap()
    }

    /// What a guest may do at `address` with each view.
    fn access(map: &MemoryMap, address: u64) -> [Access; 2] {
        let mut tables = map.tables.lock();
        tables
            .all()
            .map(|ept| ept.access(GuestPhysAddr(address)).unwrap())
    }

    #[test]
    fn guarded_pages_are_out_of_reach_in_one_view_only() {
        let map = map(1);
        let generation = map.generation();
        assert!(guard(&map, &[0x5000, 0x20_3000]));
        assert_ne!(map.generation(), generation);
        for page in [0x5000, 0x20_3000] {
            assert_eq!(access(&map, page), [Access::all(), Access::empty()]);
            assert!(map.is_guarded(GuestPhysAddr(page + 0x123)));
        }
        for page in [0, 0x4fff, 0x6000, 0x20_2000, 0x20_4000, RAM - 1] {
            assert_eq!(access(&map, page), [Access::all(); 2], "{page:#x}");
            assert!(!map.is_guarded(GuestPhysAddr(page)));
        }
        assert_ne!(map.ept_pointer(View::Whole), map.ept_pointer(View::Guarded));
    }

    #[test]
    fn what_is_guarded_no_more_is_there_again() {
        let map = map(1);
        assert!(guard(&map, &[0x5000, 0x6000]));
        assert!(guard(&map, &[0x6000, 0x7000]));
        assert_eq!(access(&map, 0x5000), [Access::all(); 2]);
        assert_eq!(access(&map, 0x7000)[1], Access::empty());
        let generation = map.generation();
        assert!(!guard(&map, &[0x6000, 0x7000]), "nothing new");
        assert_eq!(map.generation(), generation);
        assert!(guard(&map, &[]));
        assert!(!map.is_guarding());
        assert_eq!(access(&map, 0x6000), [Access::all(); 2]);
    }

    #[test]
    fn a_guest_executes_in_small_pages_of_both_views_where_it_may_not_in_large_ones() {
        let ept = || {
            let mut ept = Ept::new(&Translation::ALL)
                .unwrap()
                .without_execution_in_large_pages();
            // SAFETY: no CPU uses these tables.
            unsafe {
                ept.map(GuestPhysAddr(0), HostPhysAddr(1 << 30), RAM, Access::all())
                    .unwrap();
            }
            ept
        };
        let map = MemoryMap::new(ept(), ept(), Page::try_new().unwrap(), 1);
        guard(&map, &[0x20_5000]);
        let data = Access::READ | Access::WRITE;
        assert_eq!(access(&map, 0x1000), [data; 2]);
        assert_eq!(map.execute(GuestPhysAddr(0x1000)), Ok(true));
        assert_eq!(access(&map, 0x1000), [Access::all(); 2]);
        assert_eq!(map.execute(GuestPhysAddr(0x20_5000)), Ok(true));
        assert_eq!(access(&map, 0x20_5000), [Access::all(), Access::empty()]);
        assert_eq!(map.execute(GuestPhysAddr(RAM)), Ok(false));
    }

    #[test]
    fn what_is_no_ram_cannot_be_guarded_and_nothing_is_then() {
        let map = map(1);
        assert!(guard(&map, &[0x5000]));
        let list = |wanted: &mut Vec<GuestPhysAddr>| {
            wanted.extend([GuestPhysAddr(0x6000), GuestPhysAddr(RAM)]);
            Ok(())
        };
        assert_eq!(map.guard(list), Err(EptError::NotMapped));
        assert!(!map.is_guarding());
        for page in [0x5000, 0x6000] {
            assert_eq!(access(&map, page), [Access::all(); 2]);
        }
    }

    #[test]
    fn a_rom_that_was_guarded_cannot_be_written_after_it() {
        let rom = 0xffff_e000;
        let rights = Access::READ | Access::EXECUTE;
        let map = map(1);
        for ept in map.tables.lock().all() {
            // SAFETY: no CPU uses these tables.
            unsafe {
                ept.map(GuestPhysAddr(rom), HostPhysAddr(2 << 30), PAGE_SIZE, rights)
                    .unwrap();
            }
        }
        assert_eq!(access(&map, rom), [rights, rights]);
        assert!(guard(&map, &[0x1000, rom]));
        assert_eq!(access(&map, rom), [rights, Access::empty()]);
        assert!(guard(&map, &[]));
        assert_eq!(access(&map, rom), [rights, rights]);
        assert_eq!(access(&map, 0x1000), [Access::all(), Access::all()]);
    }

    #[test]
    fn the_apic_access_page_is_there_while_all_vcpus_want_it() {
        let map = map(2);
        for (index, wanted, mapped) in [
            (0, true, false),
            (0, true, false),
            (1, true, true),
            (1, true, true),
            (0, false, false),
            (1, false, false),
            (0, true, false),
            (1, true, true),
        ] {
            let (before, generation) = (is_mapped(&map), map.generation());
            let changed = map.want_apic_access_page(index, wanted).unwrap();
            assert_eq!(is_mapped(&map), mapped);
            assert_eq!(changed, mapped != before);
            assert_eq!(map.generation() != generation, changed);
        }
    }

    #[test]
    fn one_vcpu_decides_for_itself_and_so_do_thirty_two() {
        assert_eq!(map(1).want_apic_access_page(0, true), Ok(true));
        let all = map(32);
        let changes: std::vec::Vec<_> = (0..32)
            .map(|index| all.want_apic_access_page(index, true).unwrap())
            .collect();
        assert!(changes[31] && !changes[..31].contains(&true));
    }
}
