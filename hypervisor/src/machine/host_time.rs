//! The host's time-stamp counter.

use devices::time::HostTicks;

/// The host TSC now.
#[inline]
#[must_use]
pub fn host_now() -> HostTicks {
    // SAFETY: every 64-bit CPU has RDTSC, and CR4.TSD is clear.
    HostTicks(unsafe { core::arch::x86_64::_rdtsc() })
}
