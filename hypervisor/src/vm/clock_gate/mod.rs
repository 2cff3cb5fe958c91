//! Changing the rates of a VM's clock while its VCPUs run on several CPUs.
//!
//! Each VCPU shows the clock by the TSC offset and multiplier in its own VMCS, so a change
//! must reach all VCPUs before any of them shows the new time, and no VCPU may show the old
//! time after that. So the VM's VCPUs meet: the one that changes the clock closes a gate, calls
//! all others out of the guest, changes the clock when all are out, and opens the gate.
//!
//! # Why no VCPU reads a time earlier than one that another has already read
//! Between two changes, all VCPUs show the same function of the host's TSC, which grows. The
//! TSCs of the CPUs agree as far as any message between them can tell
//! ([`crate::machine::smp::tsc_sync`]): (1) *if a CPU reads its TSC, and what it did after that
//! is seen by another CPU that then reads its own, the second reading is not below the first.*
//! So between changes, nobody who has been told of a time reads an earlier one.
//!
//! Let a change be made by VCPU A at host time T, and B be another VCPU.
//! - The last time that B reads by the old rates is read in the guest, before it leaves it.
//!   Then B acknowledges, or has left its CPU; A sees that and reads T: so by (1) B's reading
//!   was at a TSC of at most T, and what it read at most the old time of T.
//! - The first time that B reads by the new rates is read after it saw the gate open, which
//!   A did after it read T: so by (1) at a TSC of at least T, and shows at least the new
//!   time of T.
//! - A itself is out of the guest all along.
//! - At T, old and new time are the same: the clock is continuous
//!   ([`devices::clock::VirtualClock`]). So all old readings are at most, and all new ones at
//!   least, that time. (RDTSC may be one tick late at rates that are not integers, before and
//!   after, as `VirtualClock` explains; `change` waits for as long as it takes to hide this.)
//! - Times that devices show are those of the last exit, or of T if the exit was before it:
//!   between the beginning and the end of the guest's access either way.
//!
//! # Why a VCPU that enters the guest is always seen
//! A VCPU first says that it is on a CPU, then looks at its requests and the gate, then enters. The
//! one who changes first closes the gate, then looks where the VCPU is. All these
//! are sequentially consistent, so at least one sees the other: either the VCPU finds the gate
//! closed and stays out, or it is found on its CPU, interrupted there, and waited for. The
//! interrupt is pending or comes while it is in the guest, and ends the guest's turn.
//!
//! # Why it always ends
//! Who waits at the gate holds no lock, and says first that it is out. Who closes the gate
//! waits, holding no lock either, for VCPUs on CPUs only; these wait for nobody but at the
//! gate, and for locks that are held for short by CPUs that do not wait. Of two that want to
//! change at once, one closes the gate, and the other, finding it closed, says that it is
//! out like everyone else and tries again when the gate is open.
//!
//! A VCPU in the guest comes out when its CPU is [kicked](crate::machine::smp::kick), whatever its guest does.

use super::requests::VcpuRequests;
use crate::sync;
use crate::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The gate: an even number is open, an odd one closed, and each change adds two.
#[derive(Debug, Default)]
pub(crate) struct ClockGate {
    state: AtomicU64,
}

impl ClockGate {
    /// Returns what the VCPU of these `requests`, out of the guest, has to wait for before it
    /// applies the clock. Returns the state that it then has.
    pub(crate) fn pass(&self, requests: &VcpuRequests) -> u64 {
        loop {
            let state = self.state.load(SeqCst);
            requests.acknowledge(state);
            if state & 1 == 0 {
                return state;
            }
            sync::spin_loop();
        }
    }

    /// Returns the state, to be compared with the one at which a VCPU has last applied the clock.
    #[inline]
    #[must_use]
    pub(crate) fn state(&self) -> u64 {
        self.state.load(SeqCst)
    }

    /// Calls `change` while no VCPU of `vcpus` is in the guest. `own` is the number of the
    /// VCPU that runs this code, if one does, which is out of the guest. `request` makes a request of another one, so
    /// that it leaves the guest and looks at the clock.
    ///
    /// The caller holds no lock.
    pub(crate) fn change<R>(
        &self,
        vcpus: &[VcpuRequests],
        own: Option<u32>,
        request: impl Fn(u32),
        change: impl FnOnce() -> R,
    ) -> R {
        let own = own.map(|index| index as usize);
        let closed = loop {
            let open = match own.and_then(|own| vcpus.get(own)) {
                Some(requests) => self.pass(requests),
                None => self.state.load(SeqCst) & !1,
            };
            let closed = open.wrapping_add(1);
            if self
                .state
                .compare_exchange(open, closed, SeqCst, SeqCst)
                .is_ok()
            {
                break closed;
            }
            sync::spin_loop();
        };
        let others = || {
            let others = vcpus.iter().enumerate();
            others.filter(move |&(index, _)| Some(index) != own)
        };
        // First all are called, then each is waited for. One that runs nowhere looks at the clock when it does: a request
        // that nobody sees to would be taken for one that has woken it.
        for (index, _) in others().filter(|(_, vcpu)| vcpu.running_on().is_some()) {
            request(index as u32);
        }
        for (_, vcpu) in others() {
            while vcpu.running_on().is_some() && vcpu.acknowledged() != closed {
                sync::spin_loop();
            }
        }
        // SAFETY: the fence keeps the reading of the TSC in `change` behind the loads above.
        unsafe { core::arch::x86_64::_mm_lfence() };
        let result = change();
        self.state.store(closed.wrapping_add(1), SeqCst);
        result
    }
}

#[cfg(all(test, feature = "model"))]
mod model;
#[cfg(test)]
mod tests;
