//! Something for each VM, found without a lock that VMs share.
#![forbid(unsafe_code)]

use alloc::boxed::Box;

use spin::Once;

use crate::ids::VmId;
use crate::sync::Mutex;

/// The places of the VMs from 2^n - 1 to 2^(n+1) - 2, in the nth part.
type Part<T> = Box<[Mutex<Option<T>>]>;

/// A table by VM. Each place has a lock of its own; the table grows without one.
pub(super) struct Table<T> {
    parts: [Once<Part<T>>; usize::BITS as usize],
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            parts: [const { Once::new() }; usize::BITS as usize],
        }
    }
}

impl<T> Table<T> {
    /// Returns the part that has the place of a VM, and the place there.
    const fn place(id: VmId) -> (usize, usize) {
        let number = id.0 + 1;
        let part = number.ilog2() as usize;
        (part, number - (1 << part))
    }

    /// Puts what belongs to a VM in its place, or nothing. Returns what was there.
    pub(super) fn replace(&self, id: VmId, value: Option<T>) -> Option<T> {
        let (part, place) = Self::place(id);
        let part =
            self.parts[part].call_once(|| (0..1 << part).map(|_| Mutex::new(None)).collect());
        core::mem::replace(&mut part[place].lock(), value)
    }

    /// Looks at what belongs to a VM, with its place locked.
    pub(super) fn look<R>(&self, id: VmId, look: impl FnOnce(&T) -> R) -> Option<R> {
        let (part, place) = Self::place(id);
        self.parts[part].get()?[place].lock().as_ref().map(look)
    }

    /// Returns what belongs to a VM.
    pub(super) fn get(&self, id: VmId) -> Option<T>
    where
        T: Clone,
    {
        self.look(id, T::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_has_its_place() {
        let table = Table::default();
        assert_eq!(table.get(VmId(3)), None);
        for id in 0..100 {
            assert_eq!(table.replace(VmId(id), Some(id)), None);
        }
        for id in 0..100 {
            assert_eq!(table.get(VmId(id)), Some(id));
        }
        assert_eq!(table.replace(VmId(70), None), Some(70));
        assert_eq!(table.get(VmId(70)), None);
        assert_eq!(table.get(VmId(71)), Some(71));
        assert_eq!(table.get(VmId(10_000)), None);
    }
}
