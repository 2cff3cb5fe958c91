//! The count of what decisions cost, for tests: comparisons, looks at what other CPUs say of
//! themselves, and locks. Elsewhere nothing is counted.
#![forbid(unsafe_code)]

/// Counts a step.
#[inline]
pub(super) fn count() {
    #[cfg(test)]
    counter::STEPS.with(|steps| steps.set(steps.get() + 1));
}

/// Returns how many steps this thread has taken.
#[cfg(test)]
pub(super) fn counted() -> u64 {
    counter::STEPS.with(core::cell::Cell::get)
}

#[cfg(test)]
mod counter {
    use core::cell::Cell;

    std::thread_local! {
        pub(super) static STEPS: Cell<u64> = const { Cell::new(0) };
    }
}
