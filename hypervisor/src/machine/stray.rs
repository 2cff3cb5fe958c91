//! Interrupts that nobody asked for: what firmware or a boot loader has left armed, or a device of its
//! own accord. They are counted and ended, and have no other effect.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::local_apic::LocalApic;

/// The first vector that is not an exception's.
pub(super) const FIRST_INTERRUPT: u64 = 32;

static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// Returns the vectors that have struck without anybody having asked for them, and how often.
pub(crate) fn counts() -> impl Iterator<Item = (u8, u64)> {
    (0..=u8::MAX)
        .zip(&COUNTS)
        .map(|(vector, count)| (vector, count.load(Ordering::Relaxed)))
        .filter(|(_, count)| *count != 0)
}

/// Counts the interrupt `vector`, which has just been delivered to this CPU, and ends it if it came
/// through the local APIC: one of the 8259s is in service nowhere, and another one's end is not to be
/// signaled for it.
pub(super) fn take(vector: u8) {
    count(vector);
    if let Some(apic) = LocalApic::try_current()
        && apic.is_in_service(vector)
    {
        apic.end_interrupt();
    }
}

fn count(vector: u8) {
    COUNTS[usize::from(vector)].fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asked_for_is_counted_by_vector() {
        let counted = |vector| {
            let mut counts = counts();
            counts.find(|(it, _)| *it == vector).map(|(_, count)| count)
        };
        assert_eq!(counted(0x77), None);
        count(0x77);
        count(0x77);
        assert_eq!(counted(0x77), Some(2));
        assert_eq!(counted(0x78), None);
    }
}
