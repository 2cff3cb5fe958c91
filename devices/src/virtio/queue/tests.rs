extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::virtio::chain::BufferError;
use crate::virtio::driver::{BUFFERS, Buffer, Driver, Layout, Ram};

const RAM_SIZE: usize = 1 << 20;
const ALL: QueueFeatures = QueueFeatures {
    indirect: true,
    event_index: true,
};
const NONE: QueueFeatures = QueueFeatures {
    indirect: false,
    event_index: false,
};

/// A driver and a device in which nothing has happened yet.
fn set_up(ram: &Ram, size: u16, features: QueueFeatures) -> (Driver<'_>, Queue, Chain) {
    let driver = Driver::new(ram, size, features.event_index);
    let queue = Queue::new(driver.at, features).unwrap();
    (driver, queue, Chain::new())
}

#[test]
fn a_request_comes_out_as_it_went_in() {
    for layout in [Layout::Direct, Layout::Indirect, Layout::Mixed] {
        let ram = Ram::new(RAM_SIZE);
        let (mut driver, mut queue, mut chain) = set_up(&ram, 8, ALL);
        assert_eq!(queue.take(&ram, &mut chain), Ok(false));
        ram.put(BUFFERS, b"hello, ");
        ram.put(BUFFERS + 0x1000, b"device");
        let (head, notify) = driver
            .add(
                &[
                    (BUFFERS, 7, false),
                    (BUFFERS + 0x1000, 6, false),
                    (BUFFERS + 0x2000, 2, true),
                    (BUFFERS + 0x3000, 4, true),
                ],
                layout,
            )
            .unwrap();
        assert!(notify, "the queue was empty");
        assert_eq!(queue.take(&ram, &mut chain), Ok(true));
        assert_eq!(chain.head(), head);
        assert_eq!((chain.readable().len(), chain.writable().len()), (13, 6));
        let mut text = [0; 13];
        chain.readable().read(&ram, 0, &mut text).unwrap();
        assert_eq!(&text, b"hello, device");
        let mut part = [0; 4];
        chain.readable().read(&ram, 5, &mut part).unwrap();
        assert_eq!(&part, b", de");
        chain
            .writable()
            .write(&ram, 1, b"answer"[..5].as_ref())
            .unwrap();
        assert_eq!(ram.bytes(BUFFERS + 0x2000, 2), b"\0a");
        assert_eq!(ram.bytes(BUFFERS + 0x3000, 4), b"nswe");
        assert_eq!(
            chain.writable().write(&ram, 2, b"answer"),
            Err(BufferError::TooShort)
        );
        queue.give_back(&ram, chain.head(), 6).unwrap();
        assert_eq!(queue.wants_interrupt(&ram), Ok(true));
        assert_eq!(queue.wants_interrupt(&ram), Ok(false), "once is enough");
        assert_eq!(driver.take_back(), Some((head, 6)));
        assert_eq!(driver.take_back(), None);
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let ram = Ram::new(RAM_SIZE);
    let (mut driver, mut queue, mut chain) = set_up(&ram, 4, NONE);
    for wanted in [true, false, true] {
        driver.set_no_interrupt(!wanted);
        driver.add(&[(BUFFERS, 1, true)], Layout::Direct).unwrap();
        assert_eq!(queue.take(&ram, &mut chain), Ok(true));
        queue.give_back(&ram, chain.head(), 0).unwrap();
        assert_eq!(queue.wants_interrupt(&ram), Ok(wanted));
        driver.take_back().unwrap();
    }
}

#[test]
fn with_the_event_index_a_batch_costs_one_notification_and_one_interrupt() {
    let ram = Ram::new(RAM_SIZE);
    let (mut driver, mut queue, mut chain) = set_up(&ram, 8, ALL);
    for _ in 0..3 {
        assert_eq!(queue.take(&ram, &mut chain), Ok(false));
        let notifications: Vec<bool> = (0..5)
            .map(|_| driver.add(&[(BUFFERS, 1, true)], Layout::Direct).unwrap().1)
            .collect();
        assert_eq!(notifications, [true, false, false, false, false]);
        let mut interrupts = 0;
        while queue.take(&ram, &mut chain).unwrap() {
            queue.give_back(&ram, chain.head(), 0).unwrap();
            interrupts += u32::from(queue.wants_interrupt(&ram).unwrap());
        }
        assert_eq!(interrupts, 1);
        for _ in 0..5 {
            driver.take_back().unwrap();
        }
    }
}

#[test]
fn sizes_that_no_queue_has_are_refused() {
    let at = |size| Placement {
        size,
        descriptors: GuestPhysAddr(0),
        available: GuestPhysAddr(0),
        used: GuestPhysAddr(0),
    };
    for size in [0, 3, 255, 257, 512, u16::MAX] {
        assert!(Queue::new(at(size), ALL).is_none(), "{size}");
    }
    for size in [1, 2, 128, 256] {
        assert!(Queue::new(at(size), ALL).is_some(), "{size}");
    }
}

/// The flags of the specification.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The error that a queue of four entries ends with, whose table is `descriptors` and whose
/// available ring has the entry `head`.
fn error_of(
    descriptors: &[(u64, u32, u16, u16)],
    head: u16,
    features: QueueFeatures,
) -> QueueError {
    let ram = Ram::new(RAM_SIZE);
    let (driver, mut queue, mut chain) = set_up(&ram, 4, features);
    let table = driver.at.descriptors.0;
    for (n, &(address, length, flags, next)) in (0..).zip(descriptors) {
        let at = table + 16 * n;
        ram.put(at, &address.to_le_bytes());
        ram.put(at + 8, &length.to_le_bytes());
        ram.put(at + 12, &flags.to_le_bytes());
        ram.put(at + 14, &next.to_le_bytes());
    }
    ram.put(driver.at.available.0 + 4, &head.to_le_bytes());
    ram.put(driver.at.available.0 + 2, &1u16.to_le_bytes());
    queue.take(&ram, &mut chain).unwrap_err()
}

#[test]
fn what_no_driver_may_do_is_named() {
    use QueueError::*;
    let buffer = |flags, next| (BUFFERS, 16, flags, next);
    for (error, descriptors, head) in [
        (NoSuchDescriptor(4), vec![], 4),
        (NoSuchDescriptor(9), vec![buffer(NEXT, 9)], 0),
        (ChainTooLong, vec![buffer(NEXT, 0)], 0),
        (ChainTooLong, vec![buffer(NEXT, 1), buffer(NEXT, 0)], 1),
        (
            ReadableAfterWritable,
            vec![buffer(NEXT | WRITE, 1), buffer(0, 0)],
            0,
        ),
        (
            TooManyBytes,
            vec![(BUFFERS, u32::MAX, NEXT, 1), (BUFFERS, 1, 0, 0)],
            0,
        ),
        (BadIndirectLength(0), vec![(BUFFERS, 0, INDIRECT, 0)], 0),
        (BadIndirectLength(17), vec![(BUFFERS, 17, INDIRECT, 0)], 0),
        (
            MisplacedIndirectTable,
            vec![(BUFFERS, 16, INDIRECT | NEXT, 1), buffer(0, 0)],
            0,
        ),
        // A table that has itself as its buffer.
        (MisplacedIndirectTable, vec![(0x1000, 64, INDIRECT, 0)], 0),
        (
            NotRam(crate::guest_memory::NotRam {
                address: GuestPhysAddr(u64::MAX - 15),
                length: 16,
            }),
            vec![(u64::MAX - 15, 16, INDIRECT, 0)],
            0,
        ),
    ] {
        assert_eq!(error_of(&descriptors, head, ALL), error, "{descriptors:x?}");
    }
    assert_eq!(
        error_of(&[(BUFFERS, 16, INDIRECT, 0)], 0, NONE),
        MisplacedIndirectTable,
        "not negotiated"
    );
}

#[test]
fn an_index_that_runs_ahead_is_an_error() {
    let ram = Ram::new(RAM_SIZE);
    let (driver, mut queue, mut chain) = set_up(&ram, 4, ALL);
    ram.put(driver.at.available.0 + 2, &5u16.to_le_bytes());
    assert_eq!(
        queue.take(&ram, &mut chain),
        Err(QueueError::IndexAhead { index: 5, taken: 0 })
    );
}

#[test]
fn rings_outside_of_ram_are_an_error() {
    let ram = Ram::new(0x1000);
    for address in [0xfff, 0x1000, u64::MAX] {
        let at = Placement {
            size: 4,
            descriptors: GuestPhysAddr(address),
            available: GuestPhysAddr(address),
            used: GuestPhysAddr(address),
        };
        let mut queue = Queue::new(at, ALL).unwrap();
        let mut chain = Chain::new();
        assert!(queue.take(&ram, &mut chain).is_err());
        assert!(queue.give_back(&ram, 0, 0).is_err());
    }
}

#[test]
fn buffers_outside_of_ram_are_an_error_when_they_are_used() {
    let ram = Ram::new(RAM_SIZE);
    let (mut driver, mut queue, mut chain) = set_up(&ram, 4, ALL);
    for address in [RAM_SIZE as u64 - 1, u64::MAX - 1] {
        driver.add(&[(address, 2, true)], Layout::Direct).unwrap();
        assert_eq!(queue.take(&ram, &mut chain), Ok(true));
        let result = chain.writable().write(&ram, 0, &[1, 2]);
        assert!(matches!(result, Err(BufferError::NotRam(_))), "{result:?}");
    }
}

/// A request that a driver may make: what is read, and how much is written.
fn any_request() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u32>, Layout)> {
    let layout = prop_oneof![
        Just(Layout::Direct),
        Just(Layout::Indirect),
        Just(Layout::Mixed)
    ];
    let readable = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..4);
    let writable = proptest::collection::vec(0..40u32, 0..4);
    (readable, writable, layout)
}

proptest! {
    /// Whatever a driver asks for, in whatever order the device answers: each request comes out
    /// as it went in and goes back once; and neither side sleeps while there is something to do.
    #[test]
    fn requests_pass_whole_and_nobody_sleeps_on_them(
        requests in proptest::collection::vec(any_request(), 1..60),
        order: u64,
        size_log in 2..9u32,
        event_index: bool,
        bursts in proptest::collection::vec(1..6usize, 60),
    ) {
        let ram = Ram::new(RAM_SIZE);
        let features = QueueFeatures { indirect: true, event_index };
        let (mut driver, mut queue, mut chain) = set_up(&ram, 1 << size_log, features);
        let mut next_buffer = BUFFERS;
        let mut place = |length: u32| {
            let address = next_buffer;
            next_buffer += u64::from(length);
            address
        };
        let mut expected = std::collections::BTreeMap::new();
        let mut held: Vec<(u16, u32)> = Vec::new();
        let mut to_add = requests.into_iter();
        let mut waiting = None;
        let mut notified = true;
        let mut seed = order;
        let mut finished = 0;
        for burst in bursts.into_iter().cycle().take(2000) {
            // The driver adds some.
            for _ in 0..burst {
                let Some((readable, writable, layout)) = waiting.take().or_else(|| to_add.next())
                else { break };
                let mut buffers: Vec<Buffer> = Vec::new();
                for data in &readable {
                    let address = place(data.len() as u32);
                    ram.put(address, data);
                    buffers.push((address, data.len() as u32, false));
                }
                for &length in &writable {
                    buffers.push((place(length), length, true));
                }
                if buffers.is_empty() || buffers.len() > usize::from(driver.at.size) {
                    continue;
                }
                match driver.add(&buffers, layout) {
                    Some((head, notify)) => {
                        notified |= notify;
                        let text: Vec<u8> = readable.concat();
                        let room: u32 = writable.iter().sum();
                        expected.insert(head, (text, room, buffers));
                    }
                    None => {
                        waiting = Some((readable, writable, layout));
                        break;
                    }
                }
            }
            // The device takes all that there is, if it was told to look.
            if notified {
                while queue.take(&ram, &mut chain).unwrap() {
                    let (text, room, _) = &expected[&chain.head()];
                    let mut read = vec![0; chain.readable().len() as usize];
                    chain.readable().read(&ram, 0, &mut read).unwrap();
                    prop_assert_eq!(&read, text);
                    prop_assert_eq!(chain.writable().len(), *room);
                    let answer: Vec<u8> = (0..*room).map(|n| (n as u8) ^ chain.head() as u8).collect();
                    chain.writable().write(&ram, 0, &answer).unwrap();
                    held.push((chain.head(), *room));
                }
                notified = false;
            }
            // It answers some, in any order.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let answers = (seed >> 33) as usize % (held.len() + 1);
            for _ in 0..answers {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (head, room) = held.swap_remove((seed >> 33) as usize % held.len());
                queue.give_back(&ram, head, room).unwrap();
            }
            // The driver looks when it is interrupted.
            if queue.wants_interrupt(&ram).unwrap() {
                while let Some((head, length)) = driver.take_back() {
                    let (_, room, buffers) = expected.remove(&head).expect("asked for");
                    prop_assert_eq!(length, room);
                    let written: Vec<u8> = buffers
                        .iter()
                        .filter(|buffer| buffer.2)
                        .flat_map(|&(address, length, _)| ram.bytes(address, length as usize))
                        .collect();
                    let answer: Vec<u8> = (0..room).map(|n| (n as u8) ^ head as u8).collect();
                    prop_assert_eq!(written, answer);
                    finished += 1;
                }
            }
            if to_add.len() == 0 && waiting.is_none() && expected.is_empty() {
                break;
            }
        }
        prop_assert!(expected.is_empty(), "{} requests were forgotten", expected.len());
        prop_assert!(held.is_empty());
        let _ = finished;
    }

    /// Whatever is in memory, a queue ends in a request or an error, and a request has no more
    /// buffers than the queue has entries.
    #[test]
    fn garbage_ends_in_a_request_or_an_error(
        garbage in proptest::collection::vec(any::<u8>(), 4096),
        pointers in any::<[u16; 3]>(),
        size_log in 0..9u32,
        indirect: bool,
        event_index: bool,
        index_ahead in 0..4u16,
    ) {
        let ram = Ram::new(0x8000);
        for start in (0..0x8000).step_by(garbage.len()) {
            ram.put(start, &garbage);
        }
        let [descriptors, available, used] = pointers.map(|p| GuestPhysAddr(u64::from(p) % 0x9000));
        let at = Placement { size: 1 << size_log, descriptors, available, used };
        let mut queue = Queue::new(at, QueueFeatures { indirect, event_index }).unwrap();
        let mut chain = Chain::new();
        for _ in 0..10 {
            // Keep the index near, that not all ends there.
            let index = queue.taken.wrapping_add(index_ahead.min(at.size));
            let _ = ram.write_u16(super::at(at.available, 2), index);
            if let Ok(true) = queue.take(&ram, &mut chain) {
                prop_assert!(chain.len() <= usize::from(at.size) && chain.len() > 0);
                let mut bytes = [0; 64];
                let _ = chain.readable().read(&ram, 0, &mut bytes);
                let _ = chain.writable().write(&ram, 0, &bytes);
                let _ = queue.give_back(&ram, chain.head(), 7);
                let _ = queue.wants_interrupt(&ram);
            }
        }
    }
}
