//! Interrupts posted by other CPUs: the posted-interrupt descriptor.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A posted-interrupt descriptor (SDM vol. 3C, 30.6): 256 request bits, one for each vector,
/// and a control word. Any CPU may post at any time; the target's CPU takes the requests,
/// or its hardware does where posted-interrupt processing is in use.
///
/// Only edge-triggered vectors go in here, since the hardware knows no trigger modes.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct PostedInterrupts {
    requests: [AtomicU64; 4],
    control: AtomicU64,
    reserved: [u64; 3],
}

impl PostedInterrupts {
    /// Outstanding notification.
    const OUTSTANDING: u64 = 1;
    const NOTIFICATION: u64 = 0xffff_ffff_00ff_0000;

    /// Makes a descriptor without requests.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; 4],
            control: AtomicU64::new(0),
            reserved: [0; 3],
        }
    }

    /// Sets where the hardware is to be notified of posts: the host's interrupt `vector` and
    /// the physical CPU's APIC ID, `destination`, in the host's own format. Software posting
    /// needs neither.
    pub fn set_notification(&self, vector: u8, destination: u32) {
        let fields = u64::from(vector) << 16 | u64::from(destination) << 32;
        // Never fails: the closure always gives a value.
        let _ = self.control.fetch_update(SeqCst, SeqCst, |control| {
            Some(control & !Self::NOTIFICATION | fields)
        });
    }

    /// Posts `vector`. True if the target must be notified; false if a notification of an
    /// earlier post is still under way.
    pub fn post(&self, vector: u8) -> bool {
        self.requests[usize::from(vector >> 6)].fetch_or(1 << (vector & 63), SeqCst);
        self.control.fetch_or(Self::OUTSTANDING, SeqCst) & Self::OUTSTANDING == 0
    }

    /// Returns whether there is anything to take.
    #[must_use]
    #[inline]
    pub fn is_outstanding(&self) -> bool {
        self.control.load(SeqCst) & Self::OUTSTANDING != 0
    }

    /// Takes all requests: bit `n % 64` of word `n / 64` for vector `n`.
    #[must_use]
    pub fn take(&self) -> [u64; 4] {
        // First the flag: a post in between sets it again, and is found now or then.
        self.control.fetch_and(!Self::OUTSTANDING, SeqCst);
        core::array::from_fn(|word| self.requests[word].swap(0, SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_is_one_cache_line() {
        assert_eq!(size_of::<PostedInterrupts>(), 64);
        assert_eq!(align_of::<PostedInterrupts>(), 64);
        assert_eq!(core::mem::offset_of!(PostedInterrupts, control), 32);
    }

    #[test]
    fn only_the_first_post_notifies_until_the_requests_are_taken() {
        let posted = PostedInterrupts::new();
        assert!(posted.post(0x31));
        assert!(!posted.post(0xff));
        assert!(posted.is_outstanding());
        assert_eq!(posted.take(), [1 << 0x31, 0, 0, 1 << 63]);
        assert!(!posted.is_outstanding());
        assert_eq!(posted.take(), [0; 4]);
        assert!(posted.post(0x31));
    }

    #[test]
    fn notification_fields_survive_posts() {
        let posted = PostedInterrupts::new();
        posted.set_notification(0xf2, 0x12);
        let _ = posted.post(0x40);
        assert_eq!(
            posted.control.load(SeqCst),
            0x12_00f2_0001,
            "NDST at bit 32, NV at 16, ON at 0"
        );
        posted.set_notification(0xf3, 1);
        assert_eq!(posted.control.load(SeqCst), 0x1_00f3_0001);
    }
}
