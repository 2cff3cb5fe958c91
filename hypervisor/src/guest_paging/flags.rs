//! The accessed and dirty flags that a walk sets (SDM vol. 3A, 4.8).

use arch::paging::{ADDRESS, ADDRESS_32};
use vmx::addr::GuestVirtAddr;

use super::{
    ACCESSED, Access, AccessKind, DIRTY, LARGE, Mode, PRESENT, Paging, Walk, WalkError,
    narrow_slot, wide_slot,
};
use crate::guest_memory::GuestMemory;

impl Walk {
    /// Returns the flags that are to be set somewhere on the way.
    pub(super) fn flags_wanted(&self, access: Access) -> u64 {
        let mut wanted = !self.common & ACCESSED;
        if access.kind == AccessKind::Write {
            wanted |= !self.leaf & DIRTY;
        }
        wanted
    }
}

impl Paging {
    /// Sets the flags that a walk found missing. `false`: an entry has changed since.
    #[cold]
    pub(super) fn set_flags(
        &self,
        memory: &impl GuestMemory,
        linear: GuestVirtAddr,
        walk: &Walk,
        wanted: u64,
    ) -> Result<bool, WalkError> {
        let wide = !matches!(self.mode, Mode::ThirtyTwoBit { .. });
        let (mut table, mut shift) = match self.mode {
            Mode::Off => return Ok(true),
            Mode::ThirtyTwoBit { .. } => (self.root & ADDRESS_32, 22),
            Mode::Pae { pdptes } => (pdptes[(linear.0 >> 30 & 3) as usize] & ADDRESS, 21),
            Mode::FourLevel => (self.root & ADDRESS, 39),
            Mode::FiveLevel => (self.root & ADDRESS, 48),
        };
        let large_pages = self.mode != Mode::ThirtyTwoBit { large_pages: false };
        loop {
            let (slot, entry) = if wide {
                let slot = wide_slot(table, linear, shift);
                (slot, memory.read_u64(slot)?)
            } else {
                let slot = narrow_slot(table, linear, shift);
                (slot, u64::from(memory.read_u32(slot)?))
            };
            if entry & PRESENT == 0 {
                return Ok(false);
            }
            let is_leaf = shift == 12 || (entry & LARGE != 0 && shift <= 30 && large_pages);
            if is_leaf && entry != walk.leaf {
                return Ok(false);
            }
            let flags = if is_leaf { wanted | ACCESSED } else { ACCESSED };
            // All flags and the present bit are in the low half: what happens to the high
            // half of an entry meanwhile cannot make these flags wrong.
            let low = entry as u32;
            let new = low | flags as u32;
            if new != low && !memory.compare_exchange_u32(slot, low, new)? {
                return Ok(false);
            }
            if is_leaf {
                return Ok(true);
            }
            table = entry & ADDRESS;
            shift -= if wide { 9 } else { 10 };
        }
    }
}
