//! Sees a target being switched in, without an exit at anybody else's switches.
//!
//! # How
//! The roots of targets are guarded pages of the VM's memory map ([`crate::vm::memory_map`]). A VCPU
//! that runs others has the guarded view of the map, and its loads of CR3 do not exit: the processor
//! does not touch a root when CR3 is loaded (but for PAE paging, whose roots are not guarded). The
//! first page walk through a target's root exits, with an EPT violation that says that it was a walk:
//! the target is in. From there on the VCPU has the whole view, and loads of CR3 exit, until one
//! brings somebody else: then it has the guarded view again.
//!
//! # Why no switch to a target is missed
//! To execute an instruction of a target, or to read its memory, the processor needs a translation of
//! a linear address in its address space. It has to be made by a walk, through the root, or cached.
//! - A walk with the guarded view exits.
//! - Translations and paging-structure entries that were cached while the target ran were made with
//!   the whole view, and belong to that (SDM vol. 3C, 29.4.1 and 29.4.2), whatever PCID they have and
//!   global or not: they are not used with the guarded view.
//! - Those made with the guarded view by others, under the same PCID, are what the guest would have to
//!   drop without us as well: it has loaded CR3 with bit 63 set and another root under a PCID that is
//!   in use.
//! - Global translations made with the guarded view are the same in each address space: the kernel's.
//!   Kernel code may run for a moment before the first walk. It is the guest's scheduler on its way to
//!   the target.
//! - Those made with the guarded view before the root was guarded are dropped by each VCPU before it
//!   enters again ([`Vm::guard_roots`](crate::vm::Vm::guard_roots)).
//! - A VCPU that comes to another CPU drops what that one has cached for it.
//!
//! # The guest's own accesses
//! The guest's kernel reads and writes root pages, of processes that run and that do not. Such an
//! access exits as an EPT violation, too. It is let through: the VCPU has the whole view for a moment,
//! in which loads of CR3 exit, so that nothing is missed. The moment is that for which a guest is left
//! alone at least ([`crate::suppression::pace`]); an access that does not come to be done in it is let through once more. The same
//! is done for walks through a target's root that belong to no target, where a root is somebody's page
//! table as well. (The monitor trap flag would end the moment after one instruction. Not all processors
//! have it, and a kernel that clears or copies such a page would exit at each element.)
//!
//! Such an access may be the first sign that the process is gone and its page in use for something
//! else: whether it is, is looked at after each.
#![forbid(unsafe_code)]

use devices::time::HostTicks;
use vmx::addr::GuestPhysAddr;

use super::Vcpu;
use super::backend::exit::NestedPageFault;
use super::backend::{GuestCpu, Interruptibility};
use crate::machine::host_time::host_now;
use crate::vm::memory_map::View;

/// The access that a VCPU has to the roots of targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Full access.
    #[default]
    Open,
    /// No access: the next walk through one exits.
    Guarded,
    /// Full access until then, for an access to this address.
    LetThrough(GuestPhysAddr, HostTicks),
}

/// A VCPU's guard of the roots of targets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RootGuard {
    state: State,
    /// The address in a guarded page at which a page walk has ended the guest's stay.
    pub(super) walked: Option<GuestPhysAddr>,
}

impl RootGuard {
    /// Returns whether the next walk through a target's root exits, so that who runs is no target.
    pub(super) fn is_up(&self) -> bool {
        self.state != State::Open
    }
}

impl<C: GuestCpu> Vcpu<C> {
    /// Puts the guard up, or takes it down.
    pub(super) fn set_root_guard(&mut self, up: bool) {
        if up == self.root_guard.is_up() {
            return;
        }
        self.root_guard.state = if up { State::Guarded } else { State::Open };
        let view = if up { View::Guarded } else { View::Whole };
        self.cpu.set_memory_view(view);
    }

    /// Answers an access to the root of a target. False if it is something else.
    pub(super) fn handle_guarded_root(&mut self, fault: NestedPageFault) -> bool {
        if self.root_guard.state != State::Guarded || !self.vm.memory_map.is_guarded(fault.address)
        {
            return false;
        }
        // SDM vol. 3C, 28.2.3: an IRET that will be executed again has unblocked NMIs already.
        if fault.nmi_unblocked && self.events.interrupted.is_none() {
            let state = self.cpu.interruptibility();
            self.cpu
                .set_interruptibility(state | Interruptibility::BLOCKED_BY_NMI);
        }
        if fault.final_access {
            self.let_through_root_guard(fault.address);
        } else {
            self.root_guard.walked = Some(fault.address);
        }
        true
    }

    /// Lets the guest's access to `address` through, if the guard is up.
    pub(super) fn let_through_root_guard(&mut self, address: GuestPhysAddr) {
        if self.root_guard.state == State::Guarded {
            let until = host_now().saturating_add(self.pace.least_run());
            self.root_guard.state = State::LetThrough(address, until);
            self.cpu.set_memory_view(View::Whole);
        }
    }

    /// Returns until when an access is let through, if one is.
    #[inline]
    pub(super) const fn let_through_until(&self) -> Option<HostTicks> {
        match self.root_guard.state {
            State::LetThrough(_, until) => Some(until),
            State::Open | State::Guarded => None,
        }
    }

    /// Puts the guard up again at `now` if an access was let through for long enough. Returns whether it
    /// did.
    pub(super) fn restore_root_guard(&mut self, now: HostTicks) -> bool {
        let State::LetThrough(address, until) = self.root_guard.state else {
            return false;
        };
        if now < until {
            return false;
        }
        self.root_guard.state = State::Guarded;
        self.cpu.set_memory_view(View::Guarded);
        let changed = {
            let mut suppression = self.vm.suppression.lock();
            suppression.root_accessed(&self.vm.ram, address, now);
            if suppression.has_notices() {
                self.vm.note_notices(&mut suppression, Some(self.index));
            }
            self.vm.roots_changed(suppression.targets())
        };
        if changed {
            self.vm.suppression_changed();
        }
        true
    }
}

#[cfg(test)]
mod tests;
