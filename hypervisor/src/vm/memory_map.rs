//! What a guest finds at which guest-physical address: its RAM and the APIC-access page.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::apic::DEFAULT_ADDRESS;
use spin::Mutex;
use vmx::addr::{GuestPhysAddr, HostPhysAddr, PAGE_SIZE};
use vmx::ept::{Access, Ept, EptError};
use vmx::page::Page;

/// The memory map of a VM, which all its VCPUs run with.
pub(crate) struct MemoryMap {
    ept: Mutex<Ept>,
    pointer: u64,
    /// Changes whenever the map becomes such that cached translations are wrong.
    generation: AtomicU64,
    /// A page of nothing.
    apic_access_page: Box<Page>,
    /// One bit a VCPU: those that want the APIC-access page mapped.
    apic_page_users: AtomicU32,
    /// The bits of all VCPUs.
    vcpus: u32,
}

impl MemoryMap {
    /// Makes the map of a VM of `vcpus` VCPUs, at least one and at most 32, from `ept`, which maps
    /// its RAM. `apic_access_page` is a page of nothing, for
    /// [`vmx::vmcs::Vmcs::set_apic_access_page`].
    #[must_use]
    pub(crate) fn new(ept: Ept, apic_access_page: Box<Page>, vcpus: u32) -> Self {
        debug_assert!((1..=32).contains(&vcpus));
        Self {
            pointer: ept.pointer(),
            ept: Mutex::new(ept),
            generation: AtomicU64::new(0),
            apic_access_page,
            apic_page_users: AtomicU32::new(0),
            vcpus: u32::MAX >> (32 - vcpus.clamp(1, 32)),
        }
    }

    /// Returns the EPT pointer for the VMCS.
    #[must_use]
    pub(crate) const fn ept_pointer(&self) -> u64 {
        self.pointer
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
        let mut ept = self.ept.lock();
        let before = self.apic_page_users.load(Ordering::Relaxed);
        let after = if wanted { before | bit } else { before & !bit };
        self.apic_page_users.store(after, Ordering::Relaxed);
        if (before == self.vcpus) == (after == self.vcpus) {
            return Ok(false);
        }
        let page = GuestPhysAddr(DEFAULT_ADDRESS);
        if after == self.vcpus {
            let access = Access::READ | Access::WRITE;
            // SAFETY: the APIC-access page holds nothing; all guests may do with it what they
            // like.
            unsafe { ept.map(page, self.apic_access_page.address(), PAGE_SIZE, access)? };
        } else {
            ept.unmap_page(page)?;
        }
        drop(ept);
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use vmx::capabilities::Translation;

    use super::*;

    fn map(vcpus: u32) -> MemoryMap {
        let translation = Translation {
            pages_2m: true,
            pages_1g: true,
            accessed_dirty: true,
            execute_only: true,
            invept_single: true,
            invvpid_address: true,
            invvpid_single: true,
            invvpid_single_non_global: true,
        };
        let ept = Ept::new(&translation).unwrap();
        MemoryMap::new(ept, Page::try_new().unwrap(), vcpus)
    }

    fn is_mapped(map: &MemoryMap) -> bool {
        let at = map.ept.lock().translate(GuestPhysAddr(DEFAULT_ADDRESS));
        assert!(at.is_none_or(|page| page == map.apic_access_page()));
        at.is_some()
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
