//! The network device (5.1), at a port of a [switch](crate::switch).
//!
//! A device may have a limit to what it sends. What is beyond that waits in the driver's own queue,
//! and nothing of it is lost; the device goes on when its time has come.
//!
//! It has a queue for each direction, and leaves checksums to whoever does not need them on the
//! way: a frame that stays within the machine has its sum made only for a driver that wants it. Nor
//! are large frames of TCP cut into segments, but for a driver that does not take them whole.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use super::chain::{BufferError, Chain};
use super::device::{Budget, DeviceError, Progress, VirtioDevice};
use super::queue::{MAX_SIZE, Queue};
use crate::bandwidth::TokenBucket;
use crate::guest_memory::GuestMemory;
use crate::switch::{Frame, MAX_FRAME, MissingChecksum, NoMemory, Port, Protocol, Segmentation};
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
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
}
/// The largest payload of a frame.
const MTU: u16 = 1500;
/// The configuration's status: the link is up.
const LINK_UP: u16 = 1;

/// The length of the header of a packet, which every version after the first has in full.
const HEADER: u32 = 12;
/// Flag: there is no checksum yet.
const NEEDS_CSUM: u8 = 1 << 0;
/// Types of segmentation; zero is none.
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// The header of a packet (5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    flags: u8,
    segmentation: u8,
    /// The length of headers, which is a hint only; and the payload of a segment.
    headers: u16,
    size: u16,
    checksum_start: u16,
    checksum_offset: u16,
    /// The number of buffers that the packet is in: of those that the device writes only.
    buffers: u16,
}

impl Header {
    const fn from_bytes(bytes: [u8; HEADER as usize]) -> Self {
        let [flags, segmentation, h0, h1, z0, z1, s0, s1, o0, o1, b0, b1] = bytes;
        Self {
            flags,
            segmentation,
            headers: u16::from_le_bytes([h0, h1]),
            size: u16::from_le_bytes([z0, z1]),
            checksum_start: u16::from_le_bytes([s0, s1]),
            checksum_offset: u16::from_le_bytes([o0, o1]),
            buffers: u16::from_le_bytes([b0, b1]),
        }
    }

    fn bytes(self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes[..2].copy_from_slice(&[self.flags, self.segmentation]);
        let words = [
            self.headers,
            self.size,
            self.checksum_start,
            self.checksum_offset,
            self.buffers,
        ];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Returns the header of a frame that is in so many buffers.
    fn of(frame: &Frame, buffers: u16) -> Self {
        let mut header = Self {
            buffers,
            ..Self::default()
        };
        if let Some(missing) = frame.missing {
            header.flags = NEEDS_CSUM;
            header.checksum_start = missing.start;
            header.checksum_offset = missing.offset;
        }
        if let Some(segmentation) = frame.segmentation() {
            header.segmentation = match segmentation.protocol() {
                Protocol::Tcp4 => GSO_TCPV4,
                Protocol::Tcp6 => GSO_TCPV6,
            };
            header.headers = segmentation.headers();
            header.size = segmentation.size();
        }
        header
    }
}

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
    /// The first chain of buffers for a frame, or the only one; and another.
    chain: Chain,
    more: Chain,
    /// The chains of buffers that a frame is in, each with how many bytes are in there.
    filled: Vec<(u16, u32)>,
    /// The memory for frames to be sent: one that is not large, and one that is.
    frame: Frame,
    large: Frame,
    /// The memory for segments.
    segment: Frame,
    /// The frame that waits for buffers of the driver's.
    waiting: Option<Frame>,
    /// The features that the driver has chosen.
    features: u64,
    /// Whether frames wait for buffers of the driver's.
    starved: bool,
}

impl Net {
    /// Makes a device at this port, with a limit to what it sends or without one.
    ///
    /// # Errors
    /// If there is no memory for frames.
    pub fn new(port: Port, limit: Option<Limit>) -> Result<Self, NoMemory> {
        Ok(Self {
            port,
            limit,
            chain: Chain::new(),
            more: Chain::new(),
            filled: Vec::with_capacity(MAX_SIZE.into()),
            frame: Frame::try_new(false)?,
            large: Frame::try_new(true)?,
            segment: Frame::try_new(false)?,
            waiting: None,
            features: 0,
            starved: false,
        })
    }

    const fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn receive(
        &mut self,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError> {
        self.starved = false;
        let mut budget = Budget::new();
        let mut is_first = true;
        while !budget.is_spent() {
            let Some(mut frame) = self.waiting.take().or_else(|| self.port.receive()) else {
                return Ok(Progress::Idle);
            };
            // It may have been sent to a driver that took such frames.
            let protocol = frame.segmentation().map(Segmentation::protocol);
            let mut is_lost = protocol.is_some_and(|it| !self.port.takes_large(it));
            if !is_lost {
                if !self.has(feature::GUEST_CSUM) {
                    frame.complete();
                }
                let placed = match self.put_into_buffers(&frame, queue, memory, &mut budget) {
                    Err(error) => {
                        self.lose(frame);
                        return Err(error);
                    }
                    Ok(placed) => placed,
                };
                match placed {
                    Placed::Whole => {}
                    // Buffers so small that it takes more of them than are worked on at a time.
                    Placed::Spent if is_first => is_lost = true,
                    Placed::Spent => {
                        self.waiting = Some(frame);
                        return Ok(Progress::Busy);
                    }
                    Placed::Starved => {
                        self.waiting = Some(frame);
                        self.starved = true;
                        return Ok(Progress::Idle);
                    }
                }
            }
            budget.spend(frame.bytes().len() as u64);
            if is_lost {
                self.lose(frame);
            } else {
                self.port.give_back(frame);
            }
            is_first = false;
        }
        Ok(Progress::Busy)
    }

    /// Puts a frame into buffers of the driver's: into one chain of them, or as many as it takes where
    /// the driver lets the device do so.
    fn put_into_buffers(
        &mut self,
        frame: &Frame,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
        budget: &mut Budget,
    ) -> Result<Placed, DeviceError> {
        let mut rest = frame.bytes();
        self.filled.clear();
        while self.filled.is_empty() || !rest.is_empty() {
            let is_first = self.filled.is_empty();
            let chain = if is_first {
                &mut self.chain
            } else {
                &mut self.more
            };
            let is_spent = !is_first && budget.is_spent();
            if is_spent || !queue.take(memory, chain)? {
                queue.untake(self.filled.len() as u16);
                return Ok(if is_spent {
                    Placed::Spent
                } else {
                    Placed::Starved
                });
            }
            budget.spend_on_request(chain);
            let header = if is_first { HEADER } else { 0 };
            let room = chain.writable().len().saturating_sub(header) as usize;
            let merges = self.features & feature::MRG_RXBUF != 0;
            let (piece, behind) = rest.split_at(rest.len().min(room));
            if piece.is_empty() || !(merges || behind.is_empty()) {
                return Err(BufferError::TooShort.into());
            }
            chain.writable().write(memory, header, piece)?;
            self.filled
                .push((chain.head(), header + piece.len() as u32));
            rest = behind;
        }
        // The driver looks at nothing of this before it is given back.
        let header = Header::of(frame, self.filled.len() as u16);
        let buffers = self.chain.writable();
        buffers.write(memory, 0, &header.bytes())?;
        queue.give_back_together(memory, &self.filled)?;
        Ok(Placed::Whole)
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
            if let Some(is_large) = self.load(memory)? {
                let frame = if is_large {
                    &mut self.large
                } else {
                    &mut self.frame
                };
                if let Some(limit) = &mut self.limit {
                    limit.bucket.spend(frame.wire_length());
                }
                budget.spend(frame.bytes().len() as u64);
                budget.spend(self.port.send(frame, &mut self.segment));
            } else {
                self.port.traffic().count_refused();
            }
            queue.give_back(memory, self.chain.head(), 0)?;
        }
        Ok(Progress::Busy)
    }

    /// Copies a frame out of the chain, and returns whether it is in the memory for large ones. `None` if
    /// it is none that can be sent.
    fn load(&mut self, memory: &dyn GuestMemory) -> Result<Option<bool>, DeviceError> {
        let buffers = self.chain.readable();
        let mut header = [0; HEADER as usize];
        buffers.read(memory, 0, &mut header)?;
        let header = Header::from_bytes(header);
        let protocol = match header.segmentation {
            0 => None,
            GSO_TCPV4 if self.has(feature::HOST_TSO4) => Some(Protocol::Tcp4),
            GSO_TCPV6 if self.has(feature::HOST_TSO6) => Some(Protocol::Tcp6),
            _ => return Ok(None),
        };
        let length = (buffers.len() - HEADER) as usize;
        let is_large = length > MAX_FRAME && protocol.is_some();
        let frame = if is_large {
            &mut self.large
        } else {
            &mut self.frame
        };
        let Some(bytes) = frame.resize(length) else {
            return Ok(None);
        };
        buffers.read(memory, HEADER, bytes)?;
        if header.flags & NEEDS_CSUM != 0 {
            let missing = MissingChecksum {
                start: header.checksum_start,
                offset: header.checksum_offset,
            };
            if missing.place(length).is_none() {
                return Ok(None);
            }
            frame.missing = Some(missing);
        }
        if let Some(protocol) = protocol
            && !frame.set_segmentation(protocol, header.size)
        {
            return Ok(None);
        }
        Ok(Some(is_large))
    }

    /// Forgets what waits for buffers.
    fn forget(&mut self) {
        self.starved = false;
        if let Some(frame) = self.waiting.take() {
            self.lose(frame);
        }
    }

    /// Gives up a frame that was received.
    fn lose(&self, frame: Frame) {
        self.port.traffic().count_dropped(&frame);
        self.port.give_back(frame);
    }
}

/// The outcome of putting a frame into buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// All of it is in there.
    Whole,
    /// A lack of buffers.
    Starved,
    /// The end of the time before others come in.
    Spent,
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
        feature::CSUM
            | feature::GUEST_CSUM
            | feature::MTU
            | feature::MAC
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::MRG_RXBUF
            | feature::STATUS
    }

    /// Refuses segmentation without checksums: who has something cut leaves its checksum, too (5.1.3.1).
    fn accepts(&self, features: u64) -> bool {
        const SENT: u64 = feature::HOST_TSO4 | feature::HOST_TSO6;
        const RECEIVED: u64 = feature::GUEST_TSO4 | feature::GUEST_TSO6;
        let needs = |some: u64, other: u64| features & some == 0 || features & other != 0;
        needs(SENT, feature::CSUM) && needs(RECEIVED, feature::GUEST_CSUM)
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
        self.forget();
        self.features = features;
        for (protocol, feature) in [
            (Protocol::Tcp4, feature::GUEST_TSO4),
            (Protocol::Tcp6, feature::GUEST_TSO6),
        ] {
            self.port.set_takes_large(protocol, self.has(feature));
        }
        // What has come before there was a driver is not for it.
        self.port.discard();
    }

    fn has_input(&self, index: usize) -> bool {
        index == RECEIVE && !self.starved && (self.waiting.is_some() || self.port.has_frame())
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
        self.forget();
        self.features = 0;
        for protocol in [Protocol::Tcp4, Protocol::Tcp6] {
            self.port.set_takes_large(protocol, false);
        }
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
    use crate::switch::tests::tcp_frame;
    use crate::switch::{Mac, Switch};
    use crate::time::Hertz;
    use crate::virtio::driver::{BUFFERS, Driver, Layout, Ram};
    use crate::virtio::hostile::{self, Random};
    use crate::virtio::queue::QueueFeatures;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const C: Mac = Mac([2, 0, 0, 0, 0, 3]);

    fn device(switch: &Arc<Switch>, mac: Mac) -> Net {
        Net::new(switch.plug_in(mac, Box::new(|| {})).unwrap(), None).unwrap()
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
        header[1] = random.pick(&[0, 0, GSO_TCPV4, GSO_TCPV6, 0x81, 0xff]);
        header[4] = random.pick(&[0, 1, 200]);
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
            hostile::torment(&mut a, seed, some_header, &mut || {
                let mut packet = packet(NEEDS_CSUM, [14, 2], b"to all");
                packet[12..24].copy_from_slice(&[[0xff; 6], B.0].concat());
                for _ in 0..3 {
                    send(&mut b, &packet);
                }
                while let Some(mut frame) = witness.receive() {
                    let from = frame.source();
                    frame.complete();
                    assert!([A, B].contains(&from) && frame.source() == from);
                    witness.give_back(frame);
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
        let mut a = Net::new(port, Some(limit)).unwrap();
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
        assert_eq!(b.port.traffic().counts().dropped, 1);
        let packet = packet(0, [0, 0], b"");
        ram.put(BUFFERS, &packet);
        driver.add(&[(BUFFERS, 11, false)], Layout::Direct).unwrap();
        assert!(b.work(TRANSMIT, &mut queue, &ram).is_err());
    }

    /// A packet of TCP to be cut into segments of `size` bytes, and its frame.
    fn large_packet(variant: u8, size: u16, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut frame, tcp) = tcp_frame(variant, payload);
        frame[..12].copy_from_slice(&[B.0, A.0].concat());
        let header = Header {
            flags: NEEDS_CSUM,
            segmentation: if variant & 2 == 0 {
                GSO_TCPV4
            } else {
                GSO_TCPV6
            },
            headers: 0,
            size,
            checksum_start: tcp as u16,
            checksum_offset: 16,
            buffers: 0,
        };
        ([&header.bytes()[..], &frame].concat(), frame)
    }

    /// Receives with buffers of `size` bytes, `count` of them. Returns the packet, and how many buffers
    /// it took.
    fn receive_in(net: &mut Net, size: u32, count: u64) -> (Vec<u8>, usize) {
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 64, true);
        let mut queue = queue(&driver);
        for n in 0..count {
            let buffer = (BUFFERS + n * u64::from(size), size, true);
            driver.add(&[buffer], Layout::Direct).unwrap();
        }
        net.work(RECEIVE, &mut queue, &ram).unwrap();
        let (mut bytes, mut taken) = (Vec::new(), 0);
        while let Some((_, length)) = driver.take_back() {
            bytes.extend(ram.bytes(BUFFERS + taken * u64::from(size), length as usize));
            taken += 1;
        }
        (bytes, taken as usize)
    }

    const TSO: u64 = feature::CSUM
        | feature::GUEST_CSUM
        | feature::GUEST_TSO4
        | feature::GUEST_TSO6
        | feature::HOST_TSO4
        | feature::HOST_TSO6;

    #[test]
    fn a_large_frame_goes_whole_between_drivers_that_take_it() {
        for variant in 0..8 {
            let switch = Arc::new(Switch::default());
            let (mut a, mut b) = (device(&switch, A), device(&switch, B));
            let payload: Vec<u8> = (0..60_000).map(|n| n as u8).collect();
            let (packet, frame) = large_packet(variant, 1400, &payload);
            send(&mut a, &packet);
            assert!(!b.has_input(RECEIVE), "not agreed on");
            a.set_features(TSO);
            // In one buffer, and in several.
            for (features, size, count) in [(TSO, 65_562, 1), (TSO | feature::MRG_RXBUF, 4096, 15)]
            {
                b.set_features(features);
                send(&mut a, &packet);
                let (received, taken) = receive_in(&mut b, size, 20);
                assert_eq!(taken, count);
                assert_eq!(received[12..], frame);
                let header = Header::from_bytes(received[..12].try_into().unwrap());
                assert_eq!(usize::from(header.buffers), count);
                assert_eq!(header.headers as usize, frame.len() - payload.len());
                assert_eq!((header.size, header.flags), (1400, NEEDS_CSUM));
                assert_eq!(header.bytes()[6..10], packet[6..10]);
            }
            // Segments, with and without their sums.
            for (features, flags) in [(0, 0), (feature::GUEST_CSUM, NEEDS_CSUM)] {
                b.set_features(features);
                send(&mut a, &packet);
                let first = receive(&mut b).unwrap();
                assert_eq!((first[0], first[1]), (flags, 0));
                assert_eq!(first.len(), 12 + frame.len() - payload.len() + 1400);
                let rest = core::iter::from_fn(|| receive(&mut b)).count();
                assert_eq!(rest, 42);
            }
        }
    }

    #[test]
    fn a_frame_waits_for_as_many_buffers_as_it_takes() {
        let switch = Arc::new(Switch::default());
        let (mut a, mut b) = (device(&switch, A), device(&switch, B));
        a.set_features(TSO);
        b.set_features(TSO | feature::MRG_RXBUF);
        let (packet, frame) = large_packet(0, 1000, &[9; 20_000]);
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 16, true);
        let mut queue = queue(&driver);
        send(&mut a, &packet);
        let add = |driver: &mut Driver<'_>| {
            driver
                .add(&[(BUFFERS, 4096, true)], Layout::Direct)
                .unwrap()
                .1
        };
        for _ in 0..4 {
            add(&mut driver);
        }
        assert_eq!(b.work(RECEIVE, &mut queue, &ram), Ok(Progress::Idle));
        assert_eq!((driver.take_back(), b.has_input(RECEIVE)), (None, false));
        assert!(add(&mut driver), "the device wants to be told");
        assert_eq!(b.work(RECEIVE, &mut queue, &ram), Ok(Progress::Idle));
        let lengths: Vec<u32> = core::iter::from_fn(|| driver.take_back())
            .map(|(_, length)| length)
            .collect();
        assert_eq!(lengths.len(), 5);
        assert_eq!(lengths.iter().sum::<u32>() as usize, 12 + frame.len());
        // In buffers that are too small it is lost, and what comes next is not.
        send(&mut a, &packet);
        send(&mut a, &self::packet(0, [0, 0], b"next"));
        let ram = Ram::new(1 << 20);
        let mut driver = Driver::new(&ram, 256, true);
        let mut queue = self::queue(&driver);
        for _ in 0..100 {
            driver.add(&[(BUFFERS, 64, true)], Layout::Direct).unwrap();
        }
        while b.has_input(RECEIVE) {
            b.work(RECEIVE, &mut queue, &ram).unwrap();
        }
        assert_eq!(driver.take_back().map(|(_, length)| length), Some(12 + 18));
        assert_eq!(b.port.traffic().counts().dropped, 20);
        // A driver that comes anew is not given what waited for another.
        send(&mut a, &packet);
        assert_eq!(receive_in(&mut b, 4096, 1).1, 0);
        assert!(b.waiting.is_some());
        b.set_features(0);
        assert_eq!(receive(&mut b), None);
    }

    #[test]
    fn a_large_frame_is_taken_by_its_features_when_it_comes() {
        let switch = Arc::new(Switch::default());
        let (mut a, mut b) = (device(&switch, A), device(&switch, B));
        a.set_features(TSO);
        b.set_features(TSO);
        send(&mut a, &large_packet(0, 1000, &[9; 20_000]).0);
        // As if the driver had changed while the sender was about to deliver.
        b.port.set_takes_large(Protocol::Tcp4, false);
        assert_eq!(receive(&mut b), None);
        assert_eq!(b.port.traffic().counts().dropped, 20);
    }

    #[test]
    fn segmentation_needs_checksums() {
        let net = device(&Arc::new(Switch::default()), A);
        assert!(net.accepts(0) && net.accepts(TSO) && net.accepts(feature::CSUM));
        assert!(!net.accepts(TSO & !feature::CSUM));
        assert!(!net.accepts(TSO & !feature::GUEST_CSUM));
    }

    mod fuzz {
        use super::*;

        /// Headers and frames of any kind go to a driver that takes all, and to one that takes little: each
        /// frame that comes is one, from who sent it, and what follows comes through whole.
        #[test]
        fn headers_and_frames() {
            fuzzing::check!()
                .with_type::<([u8; 10], Vec<u8>, u8, u16, bool)>()
                .for_each(|(header, bytes, variant, size, is_tcp)| {
                    let switch = Arc::new(Switch::default());
                    let (mut a, mut b) = (device(&switch, A), device(&switch, B));
                    let mut sent = if *is_tcp {
                        large_packet(*variant, *size, bytes).0
                    } else {
                        [&header[..], &[0, 0], &B.0, &A.0, bytes].concat()
                    };
                    // One that is nearly right, too.
                    if let Some(at) = bytes.first().filter(|_| variant & 8 != 0) {
                        let at = usize::from(*at) % sent.len();
                        sent[at] ^= header[0];
                    }
                    a.set_features(TSO);
                    for features in [0, feature::GUEST_CSUM, TSO | feature::MRG_RXBUF] {
                        b.set_features(features);
                        send(&mut a, &sent);
                        while b.has_input(RECEIVE) {
                            let (packet, taken) = receive_in(&mut b, 8192, 60);
                            assert!(taken > 0 && packet.len() >= 12 + 14);
                            if features & feature::MRG_RXBUF == 0 {
                                assert_eq!(packet[1], 0);
                            }
                        }
                        send(&mut a, &packet(0, [0, 0], b"as ever"));
                        assert!(receive(&mut b).unwrap().ends_with(b"as ever"));
                    }
                });
        }

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
