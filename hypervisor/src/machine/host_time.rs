//! The host's time-stamp counter.

use devices::time::HostTicks;

/// Returns the host TSC now.
#[inline]
#[must_use]
pub(crate) fn host_now() -> HostTicks {
    #[cfg(test)]
    if let Some(now) = fake::now() {
        return now;
    }
    // SAFETY: every 64-bit CPU has RDTSC, and CR4.TSD is clear.
    HostTicks(unsafe { core::arch::x86_64::_rdtsc() })
}

/// A host's TSC that stands still until the test that runs on this thread moves it.
#[cfg(test)]
pub(crate) mod fake {
    use core::cell::Cell;

    use super::HostTicks;

    std::thread_local! {
        static NOW: Cell<Option<HostTicks>> = const { Cell::new(None) };
        static COST: Cell<u64> = const { Cell::new(0) };
    }

    /// What the fake TSC shows; none before the thread's first [`set`].
    pub(super) fn now() -> Option<HostTicks> {
        let now = NOW.get()?;
        NOW.set(Some(now.saturating_add(COST.get())));
        Some(now)
    }

    /// Lets every look at the thread's TSC take `ticks`, as if work were done in between.
    pub(crate) fn let_looks_take(ticks: u64) {
        COST.set(ticks);
    }

    /// Has the thread's TSC show `now`, and looking at it take no time.
    pub(crate) fn set(now: HostTicks) {
        COST.set(0);
        NOW.set(Some(now));
    }

    /// Moves the thread's TSC on.
    pub(crate) fn advance(ticks: u64) {
        let now = NOW.get().unwrap_or(HostTicks::ZERO);
        NOW.set(Some(now.saturating_add(ticks)));
    }
}
