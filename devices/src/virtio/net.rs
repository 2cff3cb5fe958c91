//! The network device (5.1), at a port of a [switch](crate::switch).
//!
//! A device may have a limit to what it sends. What is beyond that waits in the driver's own queue,
//! and nothing of it is lost; the device goes on when its time has come.
//!
//! It has a queue for each direction, and leaves checksums to whoever does not need them on the
//! way: a frame that stays within the machine has its sum made only for a driver that wants it.

use alloc::boxed::Box;
use core::fmt;

use super::chain::Chain;
use super::device::{Budget, DeviceError, Progress, VirtioDevice};
use super::queue::Queue;
use crate::bandwidth::TokenBucket;
use crate::guest_memory::GuestMemory;
use crate::switch::{Frame, MissingChecksum, Port};
use crate::time::HostTicks;

/// The queues.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Feature bits (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const STATUS: u64 = 1 << 16;
}
/// The work of giving a frame to one more of those in the network, in bytes of a [`Budget`].
const COPY: u64 = 2 << 10;
/// The largest payload of a frame.
const MTU: u16 = 1500;
/// The configuration's status: the link is up.
const LINK_UP: u16 = 1;

/// The header of a packet (5.1.6), which every version after the first has in full: flags, type of
/// segmentation, length of headers and segments, start and offset of the checksum, and the number
/// of buffers.
const HEADER: u32 = 12;
/// Flag: there is no checksum yet.
const NEEDS_CSUM: u8 = 1 << 0;

/// A limit to what a device sends.
pub struct Limit {
    /// The bytes that it may send, as a wire would carry them.
    pub bucket: TokenBucket,
    /// The clock of the host.
    pub clock: Box<dyn Fn() -> HostTicks + Send>,
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bucket.fmt(f)
    }
}

/// The network device.
#[derive(Debug)]
pub struct Net {
    port: Port,
    limit: Option<Limit>,
    chain: Chain,
    frame: Frame,
    /// Whether the driver takes frames without a checksum.
    takes_without_checksum: bool,
    /// Whether frames wait for buffers of the driver's.
    starved: bool,
}

impl Net {
    /// Makes a device at this port, with a limit to what it sends or without one.
    #[must_use]
    pub fn new(port: Port, limit: Option<Limit>) -> Self {
        Self {
            port,
            limit,
            chain: Chain::new(),
            frame: Frame::default(),
            takes_without_checksum: false,
            starved: false,
        }
    }

    fn receive(
        &mut self,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        self.starved = false;
        let mut budget = Budget::new();
        while !budget.is_spent() {
            if !self.port.has_frame() {
                return Ok(Progress::Idle);
            }
            if !queue.take(memory, &mut self.chain)? {
                self.starved = true;
                return Ok(Progress::Idle);
            }
            budget.spend_on_request(&self.chain);
            // Nobody else takes frames from this port.
            self.port.receive(&mut self.frame);
            let mut header = [0; HEADER as usize];
            if !self.takes_without_checksum {
                self.frame.complete();
            } else if let Some(missing) = self.frame.missing {
                header[0] = NEEDS_CSUM;
                header[6..8].copy_from_slice(&missing.start.to_le_bytes());
                header[8..10].copy_from_slice(&missing.offset.to_le_bytes());
            }
            // One buffer.
            header[10..].copy_from_slice(&1_u16.to_le_bytes());
            let buffers = self.chain.writable();
            buffers.write(memory, 0, &header)?;
            buffers.write(memory, HEADER, self.frame.bytes())?;
            let length = HEADER + self.frame.bytes().len() as u32;
            queue.give_back(memory, self.chain.head(), length)?;
        }
        Ok(Progress::Busy)
    }

    fn transmit(
        &mut self,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        let mut budget = Budget::new();
        while !budget.is_spent() {
            if let Some(limit) = &mut self.limit
                && let Some(at) = limit.bucket.wait((limit.clock)())
            {
                if !queue.has_next(memory)? {
                    return Ok(Progress::Idle);
                }
                self.port.traffic().count_held();
                return Ok(Progress::Until(at));
            }
            if !queue.take(memory, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            budget.spend_on_request(&self.chain);
            if load(&mut self.frame, &self.chain, memory)? {
                if let Some(limit) = &mut self.limit {
                    limit.bucket.spend(self.frame.wire_length());
                }
                let copies = self.port.send(&self.frame);
                // The request has paid for one.
                budget.spend(copies.saturating_sub(1) as u64 * COPY);
            } else {
                self.port.traffic().count_refused();
            }
            queue.give_back(memory, self.chain.head(), 0)?;
        }
        Ok(Progress::Busy)
    }
}

/// Copies `frame` out of `chain`. Returns whether it is one that can be sent.
fn load(frame: &mut Frame, chain: &Chain, memory: &dyn GuestMemory) -> Result<bool, DeviceError> {
    let buffers = chain.readable();
    let mut header = [0; HEADER as usize];
    buffers.read(memory, 0, &mut header)?;
    let length = (buffers.len() - HEADER) as usize;
    let Some(bytes) = frame.resize(length) else {
        return Ok(false);
    };
    buffers.read(memory, HEADER, bytes)?;
    let [flags, segmentation, _, _, _, _, s0, s1, o0, o1, _, _] = header;
    if flags & NEEDS_CSUM != 0 {
        let missing = MissingChecksum {
            start: u16::from_le_bytes([s0, s1]),
            offset: u16::from_le_bytes([o0, o1]),
        };
        if missing.place(length).is_none() {
            return Ok(false);
        }
        frame.missing = Some(missing);
    }
    // Segmentation is not offered.
    Ok(segmentation == 0)
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn device_type(&self) -> u16 {
        1
    }

    fn pci_class(&self) -> (u8, u8, u8) {
        // A network controller, Ethernet.
        (0x02, 0x00, 0)
    }

    fn features(&self) -> u64 {
        feature::CSUM | feature::GUEST_CSUM | feature::MTU | feature::MAC | feature::STATUS
    }

    fn queues(&self) -> usize {
        2
    }

    fn config(&self, offset: usize) -> u8 {
        match offset {
            0..6 => self.port.mac().0[offset],
            6..8 => LINK_UP.to_le_bytes()[offset - 6],
            // One pair of queues.
            8..10 => 1_u16.to_le_bytes()[offset - 8],
            10..12 => MTU.to_le_bytes()[offset - 10],
            _ => 0,
        }
    }

    fn set_features(&mut self, features: u64) {
        // What has come before there was a driver is not for it.
        self.port.discard();
        self.takes_without_checksum = features & feature::GUEST_CSUM != 0;
    }

    fn has_input(&self, index: usize) -> bool {
        index == RECEIVE && !self.starved && self.port.has_frame()
    }

    fn work(
        &mut self,
        index: usize,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        match index {
            TRANSMIT => self.transmit(queue, memory),
            _ => self.receive(queue, memory),
        }
    }

    fn reset(&mut self) {
        self.takes_without_checksum = false;
        self.starved = false;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::boxed::Box;
    use alloc::sync::Arc;
    use core::sync::atomic::{AtomicU64, Ordering};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::bandwidth::Bandwidth;
    use crate::switch::{Mac, Switch};
    use crate::time::Hertz;
    use crate::virtio::driver::{BUFFERS, Driver, Layout, Ram};
    use crate::virtio::hostile::{self, Random};
    use crate::virtio::queue::QueueFeatures;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const C: Mac = Mac([2, 0, 0, 0, 0, 3]);

    fn device(switch: &Arc<Switch>, mac: Mac) -> Net {
        Net::new(switch.plug_in(mac, Box::new(|| {})).unwrap(), None)
    }

    fn queue(driver: &Driver<'_>) -> Queue {
        let features = QueueFeatures {
            indirect: true,
            event_index: true,
        };
        Queue::new(driver.at, features).unwrap()
    }

    /// A packet: its header with `flags` and a checksum at `start` and `offset`, and its frame.
    fn packet(flags: u8, [start, offset]: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let mut packet = std::vec![flags, 0, 0, 0, 0, 0];
        packet.extend(start.to_le_bytes());
        packet.extend(offset.to_le_bytes());
        packet.extend([0, 0]);
        packet.extend([&B.0[..], &A.0, &[8, 0], payload].concat());
        packet
    }

    /// Sends a packet, which is in two buffers.
    fn send(net: &mut Net, packet: &[u8]) {
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        ram.put(BUFFERS, packet);
        let length = packet.len() as u32;
        let buffers = &[(BUFFERS, 12, false), (BUFFERS + 12, length - 12, false)];
        driver.add(buffers, Layout::Direct).unwrap();
        assert_eq!(net.work(TRANSMIT, &mut queue, &ram), Ok(Progress::Idle));
        assert!(driver.take_back().is_some());
    }

    /// The next packet, with its header.
    fn receive(net: &mut Net) -> Option<Vec<u8>> {
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        driver
            .add(&[(BUFFERS, 1530, true)], Layout::Direct)
            .unwrap();
        net.work(RECEIVE, &mut queue, &ram).unwrap();
        let (_, length) = driver.take_back()?;
        Some(ram.bytes(BUFFERS, length as usize))
    }

    /// The header of a packet, and how its frame may begin.
    fn some_header(random: &mut Random) -> [u8; 16] {
        let mut header = [0; 16];
        header[0] = random.pick(&[0, NEEDS_CSUM, 0xff]);
        header[6] = random.pick(&[0, 6, 14, 34]);
        header[8] = random.pick(&[0, 2, 16, 255]);
        header[12..].copy_from_slice(&random.pick(&[B, Mac([0xff; 6])]).0[..4]);
        header
    }

    proptest! {
        /// The device ends soon each time, writes where it may, and serves a good driver afterwards;
        /// nobody is sent a frame from another address.
        #[test]
        fn a_driver_that_means_harm_gets_frames_or_a_reset(seed: u64) {
            let switch = Arc::new(Switch::default());
            let (mut a, mut b) = (device(&switch, A), device(&switch, B));
            let witness = switch.plug_in(Mac([2, 0, 0, 0, 0, 3]), Box::new(|| {})).unwrap();
            let mut frame = Frame::default();
            hostile::torment(&mut a, seed, some_header, &mut || {
                let mut packet = packet(NEEDS_CSUM, [14, 2], b"to all");
                packet[12..24].copy_from_slice(&[[0xff; 6], B.0].concat());
                for _ in 0..3 {
                    send(&mut b, &packet);
                }
                while witness.receive(&mut frame) {
                    let from = frame.source();
                    frame.complete();
                    assert!([A, B].contains(&from) && frame.source() == from);
                }
            });
            a.set_features(0);
            while receive(&mut b).is_some() {}
            send(&mut a, &packet(0, [0, 0], b"as ever"));
            prop_assert!(receive(&mut b).unwrap().ends_with(b"as ever"));
        }
    }

    #[test]
    fn a_frame_comes_out_as_it_went_in() {
        let switch = Arc::new(Switch::default());
        let (mut a, mut b) = (device(&switch, A), device(&switch, B));
        assert!(!b.has_input(RECEIVE));
        for length in [0, 1, 46, 1504] {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            send(&mut a, &packet(0, [0, 0], &payload));
            assert!(b.has_input(RECEIVE) && !b.has_input(TRANSMIT));
            let received = receive(&mut b).unwrap();
            assert_eq!(received[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(received[12..], packet(0, [0, 0], &payload)[12..]);
        }
        assert_eq!(receive(&mut b), None);
    }

    #[test]
    fn what_is_more_than_may_be_sent_waits_in_the_drivers_queue() {
        const TSC: Hertz = Hertz::new(1_000_000_000);
        let switch = Arc::new(Switch::default());
        let now = Arc::new(AtomicU64::new(0));
        let clock = now.clone();
        let limit = Limit {
            bucket: TokenBucket::new(Bandwidth::from_megabits(8).unwrap(), TSC),
            clock: Box::new(move || HostTicks(clock.load(Ordering::Relaxed))),
        };
        let port = switch.plug_in(A, Box::new(|| {})).unwrap();
        let traffic = port.traffic().clone();
        let mut a = Net::new(port, Some(limit));
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 256, true);
        let mut queue = queue(&driver);
        ram.put(BUFFERS, &packet(0, [0, 0], &[7; 1000]));
        let add = |driver: &mut Driver<'_>| {
            let added = driver.add(&[(BUFFERS, 1026, false)], Layout::Direct);
            assert!(added.is_some());
        };
        // A burst goes at once: of a megabyte a second, 128 KiB.
        let mut sent = 0;
        let waits_until = loop {
            add(&mut driver);
            match a.work(TRANSMIT, &mut queue, &ram).unwrap() {
                Progress::Until(at) => break at,
                Progress::Idle => assert!(driver.take_back().is_some()),
                Progress::Busy => panic!("busy with one frame"),
            }
            sent += 1;
            assert!(sent < 200);
        };
        let wire = 1014 + 24;
        assert_eq!(sent, (128 << 10) / wire + 1);
        assert_eq!(waits_until, HostTicks((sent * wire - (128 << 10)) * 1000));
        assert_eq!(driver.take_back(), None, "nothing is lost");
        // Too early, nothing happens, whatever is notified.
        now.store(waits_until.0 - 1, Ordering::Relaxed);
        let waits = Ok(Progress::Until(waits_until));
        assert_eq!(a.work(TRANSMIT, &mut queue, &ram), waits);
        // A driver that resets the device has no more by that.
        a.reset();
        a.set_features(0);
        assert_eq!(a.work(TRANSMIT, &mut queue, &ram), waits);
        now.store(waits_until.0, Ordering::Relaxed);
        // The frame that waited goes, and with nothing to send there is no time to wait for.
        assert_eq!(a.work(TRANSMIT, &mut queue, &ram), Ok(Progress::Idle));
        assert!(driver.take_back().is_some());
        let counts = traffic.counts();
        assert_eq!((counts.sent, counts.held), (sent + 1, 3));
        // What is refused is not counted as sent.
        now.store(10_000_000_000, Ordering::Relaxed);
        ram.put(BUFFERS + 18, &C.0);
        add(&mut driver);
        assert_eq!(a.work(TRANSMIT, &mut queue, &ram), Ok(Progress::Idle));
        let counts = traffic.counts();
        assert_eq!((counts.sent, counts.refused), (sent + 1, 1));
    }

    #[test]
    fn what_is_no_frame_is_not_sent() {
        let switch = Arc::new(Switch::default());
        let (mut a, mut b) = (device(&switch, A), device(&switch, B));
        let long = std::vec![0; 1505];
        let mut segmented = packet(0, [0, 0], b"?");
        segmented[1] = 1;
        let short = &packet(0, [0, 0], b"")[..25];
        for packet in [
            &packet(0, [0, 0], &long),
            &packet(NEEDS_CSUM, [14, 0], b"?"),
            &packet(NEEDS_CSUM, [0xffff, 0xffff], b"?"),
            // The sum would go where the sender's address is.
            &packet(NEEDS_CSUM, [6, 4], b"????"),
            &segmented,
            short,
        ] {
            send(&mut a, packet);
        }
        assert_eq!(receive(&mut b), None);
    }

    #[test]
    fn a_checksum_is_made_for_a_driver_that_wants_it() {
        let switch = Arc::new(Switch::default());
        let (mut a, mut b) = (device(&switch, A), device(&switch, B));
        let sent = packet(NEEDS_CSUM, [14, 2], &[0x12, 0x34, 0, 0]);
        send(&mut a, &sent);
        let received = receive(&mut b).unwrap();
        assert_eq!(received[0], 0);
        assert_eq!(received[26..], [0x12, 0x34, 0xed, 0xcb]);
        b.set_features(feature::GUEST_CSUM);
        send(&mut a, &sent);
        let received = receive(&mut b).unwrap();
        assert_eq!(received[..10], sent[..10]);
        assert_eq!(received[12..], sent[12..]);
    }

    #[test]
    fn frames_wait_for_buffers() {
        let switch = Arc::new(Switch::default());
        let (mut a, mut b) = (device(&switch, A), device(&switch, B));
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        send(&mut a, &packet(0, [0, 0], b"first"));
        assert_eq!(b.work(RECEIVE, &mut queue, &ram), Ok(Progress::Idle));
        assert!(!b.has_input(RECEIVE), "no buffers");
        let (_, notify) = driver
            .add(&[(BUFFERS, 1530, true)], Layout::Direct)
            .unwrap();
        assert!(notify, "the device wants to be told of buffers");
        assert_eq!(b.work(RECEIVE, &mut queue, &ram), Ok(Progress::Idle));
        assert!(driver.take_back().is_some());
    }

    #[test]
    fn a_buffer_that_is_too_short_for_a_frame_breaks_the_rules() {
        let switch = Arc::new(Switch::default());
        let (mut a, mut b) = (device(&switch, A), device(&switch, B));
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        driver.add(&[(BUFFERS, 20, true)], Layout::Direct).unwrap();
        send(&mut a, &packet(0, [0, 0], b"does not fit"));
        assert!(b.work(RECEIVE, &mut queue, &ram).is_err());
        let packet = packet(0, [0, 0], b"");
        ram.put(BUFFERS, &packet);
        driver.add(&[(BUFFERS, 11, false)], Layout::Direct).unwrap();
        assert!(b.work(TRANSMIT, &mut queue, &ram).is_err());
    }

    mod fuzz {
        use super::*;

        #[test]
        fn packets_and_rings_of_a_network_device() {
            fuzzing::check!()
                .with_type::<(Vec<u32>, Vec<u8>, [u16; 2])>()
                .for_each(|(numbers, payload, checksum)| {
                    let switch = Arc::new(Switch::default());
                    let (mut a, mut b) = (device(&switch, A), device(&switch, B));
                    let random = Random::beginning_with(numbers);
                    hostile::torment_by(&mut a, random, some_header, &mut || {});
                    // Whatever came before, and wherever a sum is to be put, a frame comes through whole.
                    while receive(&mut b).is_some() {}
                    send(&mut a, &packet(NEEDS_CSUM, *checksum, payload));
                    while receive(&mut b).is_some() {}
                    send(&mut a, &packet(0, [0, 0], payload));
                    let came = receive(&mut b).unwrap();
                    assert_eq!(came[12..], packet(0, [0, 0], payload)[12..]);
                });
        }
    }
}
