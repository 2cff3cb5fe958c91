//! Which VM's traces a CPU bears: its branch predictors those of the last guest, its caches and buffers
//! those of whatever has been handled on it since.
#![forbid(unsafe_code)]

use crate::ids::VmId;

/// The record of the VMs whose data a CPU has handled since a guest last ran on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tenants {
    /// The VM whose guest has run last.
    last: Option<VmId>,
    /// Whether data of other VMs have been handled since.
    mixed: bool,
}

impl Tenants {
    /// Notes that a VCPU of `vm` comes onto the CPU. Returns whether it is another VM than before.
    pub(super) fn turn_to(&mut self, vm: VmId) -> bool {
        let other = self.last.replace(vm) != Some(vm);
        self.mixed |= other;
        other
    }

    /// Notes that data of any VM have been handled, the console's for instance.
    pub(super) const fn mix(&mut self) {
        self.mixed = true;
    }

    /// Returns whether the guest that is about to be entered could find others' data; not so again
    /// until there are new ones.
    pub(super) const fn take_mixed(&mut self) -> bool {
        core::mem::replace(&mut self.mixed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_comes_back_finds_nobody_elses_traces() {
        let mut tenants = Tenants::default();
        assert!(tenants.turn_to(VmId(0)));
        assert!(tenants.take_mixed());
        assert!(!tenants.turn_to(VmId(0)));
        assert!(!tenants.take_mixed());
        assert!(tenants.turn_to(VmId(1)));
        assert!(tenants.take_mixed());
        assert!(tenants.turn_to(VmId(0)));
        assert!(tenants.take_mixed());
    }

    #[test]
    fn what_the_console_handles_is_removed_before_the_same_guest_goes_on() {
        let mut tenants = Tenants::default();
        tenants.turn_to(VmId(0));
        tenants.take_mixed();
        tenants.mix();
        assert!(!tenants.turn_to(VmId(0)), "its branches are its own");
        assert!(tenants.take_mixed());
        assert!(!tenants.take_mixed());
    }
}
