//! The entropy device (5.4): a queue of buffers to be filled with random bytes.

use alloc::boxed::Box;
use core::fmt;

use super::chain::Chain;
use super::device::{DeviceError, Progress, VirtioDevice, serve_requests};
use super::queue::Queue;
use crate::guest_memory::GuestMemory;

/// The most bytes that a request gets: a driver that wants more asks again.
const MOST: u32 = 256;
/// The work of making a request's random bytes, as a number of bytes to copy: a source may be slow.
const WORK: u64 = 12 << 10;

/// A source of random bytes.
pub trait EntropySource: Send {
    /// Returns 64 random bits.
    fn next(&mut self) -> u64;
}

impl<F: FnMut() -> u64 + Send> EntropySource for F {
    fn next(&mut self) -> u64 {
        self()
    }
}

/// The entropy device.
pub struct Rng {
    source: Box<dyn EntropySource>,
    chain: Chain,
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What the source will give is nobody's business.
        f.debug_struct("Rng").finish_non_exhaustive()
    }
}

impl Rng {
    /// Makes a device that gives what `source` gives.
    #[must_use]
    pub fn new(source: Box<dyn EntropySource>) -> Self {
        Self {
            source,
            chain: Chain::new(),
        }
    }
}

/// Fills the buffers of `chain` with what `source` gives, up to [`MOST`] bytes. Returns how many.
fn fill(
    source: &mut dyn EntropySource,
    chain: &Chain,
    memory: &dyn GuestMemory,
) -> Result<u32, DeviceError> {
    let buffers = chain.writable();
    let length = buffers.len().min(MOST);
    let mut bytes = [0; MOST as usize];
    let bytes = &mut bytes[..length as usize];
    for piece in bytes.chunks_mut(size_of::<u64>()) {
        piece.copy_from_slice(&source.next().to_le_bytes()[..piece.len()]);
    }
    buffers.write(memory, 0, bytes)?;
    Ok(length)
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn device_type(&self) -> u16 {
        4
    }

    fn pci_class(&self) -> (u8, u8, u8) {
        // Unclassified.
        (0x00, 0xff, 0)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        1
    }

    fn work(
        &mut self,
        _: usize,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        let source = &mut *self.source;
        serve_requests(queue, memory, &mut self.chain, |chain, budget| {
            budget.spend(WORK);
            fill(source, chain, memory)
        })
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::proptest;
    use proptest::prop_assert;

    use super::*;
    use crate::virtio::driver::{BUFFERS, Driver, Layout, Ram};
    use crate::virtio::hostile;
    use crate::virtio::queue::QueueFeatures;

    proptest! {
        #[test]
        fn a_driver_that_means_harm_gets_random_bytes_or_a_reset(seed: u64) {
            let mut rng = Rng::new(Box::new(|| 0x5555_5555_5555_5555));
            let outcome = hostile::torment(&mut rng, seed, |random| [random.next() as u8; 16], &mut || {});
            prop_assert!(outcome.resets + outcome.idle + outcome.busy >= 8);
        }
    }

    #[test]
    fn buffers_are_filled_with_what_the_source_gives() {
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 64, true);
        let features = QueueFeatures {
            indirect: true,
            event_index: true,
        };
        let mut queue = Queue::new(driver.at, features).unwrap();
        let mut next = 0u64;
        let mut rng = Rng::new(Box::new(move || {
            next += 1;
            next
        }));
        let (head, _) = driver
            .add(
                &[(BUFFERS, 5, true), (BUFFERS + 100, 7, true)],
                Layout::Direct,
            )
            .unwrap();
        assert_eq!(rng.work(0, &mut queue, &ram), Ok(Progress::Idle));
        assert_eq!(driver.take_back(), Some((head, 12)));
        assert_eq!(ram.bytes(BUFFERS, 6), [1, 0, 0, 0, 0, 0]);
        assert_eq!(ram.bytes(BUFFERS + 100, 8), [0, 0, 0, 2, 0, 0, 0, 0]);
        // A large one gets a part, and many are not worked on at a time.
        for _ in 0..40 {
            driver
                .add(&[(BUFFERS, 0x1000, true)], Layout::Direct)
                .unwrap();
        }
        assert_eq!(rng.work(0, &mut queue, &ram), Ok(Progress::Busy));
        assert_eq!(rng.work(0, &mut queue, &ram), Ok(Progress::Busy));
        assert_eq!(rng.work(0, &mut queue, &ram), Ok(Progress::Idle));
        for _ in 0..40 {
            assert_eq!(driver.take_back().unwrap().1, MOST);
        }
        // One with no room is answered, too.
        let (head, _) = driver.add(&[(BUFFERS, 9, false)], Layout::Direct).unwrap();
        assert_eq!(rng.work(0, &mut queue, &ram), Ok(Progress::Idle));
        assert_eq!(driver.take_back(), Some((head, 0)));
    }
}
