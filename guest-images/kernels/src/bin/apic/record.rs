//! A record of the interrupts that came in.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use kernels::interrupts::{Frame, clear_handler, let_in, set_handler};
use kernels::lapic::Lapic;

const LENGTH: usize = 8;

static VECTORS: [AtomicU8; LENGTH] = [const { AtomicU8::new(0) }; LENGTH];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Writes `vector` down.
pub(crate) fn note(vector: u8) {
    if let Some(place) = VECTORS.get(COUNT.fetch_add(1, Ordering::Relaxed)) {
        place.store(vector, Ordering::Relaxed);
    }
}

/// Handles an interrupt of the local APIC: writes its vector down, and ends it.
pub(crate) fn note_and_end(frame: &mut Frame) {
    note(frame.vector as u8);
    Lapic::current().end();
}

/// Makes [`note_and_end`] the handler of `vectors`.
pub(crate) fn listen(vectors: &[u8]) {
    for vector in vectors {
        set_handler(*vector, note_and_end);
    }
}

/// Takes the handlers of `vectors` away.
pub(crate) fn ignore(vectors: &[u8]) {
    for vector in vectors {
        clear_handler(*vector);
    }
}

/// The vectors since the last call, zeros after them.
pub(crate) fn take() -> [u8; LENGTH] {
    let count = COUNT.swap(0, Ordering::Relaxed);
    core::array::from_fn(|index| {
        let vector = VECTORS[index].swap(0, Ordering::Relaxed);
        if index < count { vector } else { 0 }
    })
}

/// Lets pending interrupts in and tells which they were.
pub(crate) fn let_in_and_take() -> [u8; LENGTH] {
    let_in();
    take()
}

/// A record of `vectors`, to compare with.
pub(crate) fn of<const N: usize>(vectors: [u8; N]) -> [u8; LENGTH] {
    core::array::from_fn(|index| vectors.get(index).copied().unwrap_or(0))
}
