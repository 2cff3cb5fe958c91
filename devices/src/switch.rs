//! Ethernet switches between the network devices of VMs: one for each network.
//!
//! Who is where is known when the machine is made, so that nothing is learned, and nobody can claim
//! to be another: a frame whose source is not its sender's address goes nowhere. A frame is copied
//! to the receiver's inbox by its sender, and to the receiver's memory by the receiver, each in its
//! own time; an inbox that is full takes no more, so that nobody can fill another's memory, and the
//! most that one sender may have there leaves room for others. VMs that share no network share
//! nothing.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::{Mutex, RwLock};

/// The longest frame, without its check sequence: 1500 bytes of payload behind a header with a
/// VLAN's tag.
pub const MAX_FRAME: usize = 1518;
/// The shortest: its header.
pub const MIN_FRAME: usize = 14;
/// The number of frames that an inbox holds.
const INBOX: usize = 128;
/// The number of counts by which senders' shares of an inbox are told apart.
const SENDERS: usize = 32;
/// The frames of one sender's that may wait in an inbox for each frame for which there is room: it
/// has three quarters of the room alone, and beside another, that does as it does, three sevenths.
const SHARE: usize = 3;
/// The bytes that a frame takes on a wire besides its own: preamble, check sequence and gap (IEEE 802.3).
const ON_WIRE: u64 = 8 + 4 + 12;
/// The least bytes of a frame on a wire, without its check sequence.
const LEAST_ON_WIRE: u64 = 60;

/// The address of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Tells whether it is the address of a group: broadcast, or multicast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The place of a checksum that a frame does not have yet, and of what is summed: what is
/// there is the sum of the pseudo-header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingChecksum {
    /// The first byte that is summed.
    pub start: u16,
    /// The distance from there to where the sum goes.
    pub offset: u16,
}

impl MissingChecksum {
    /// Returns where the sum goes in a frame of `length` bytes; `None` if that is not in its payload.
    /// Least of all is it in the addresses, which have been looked at by when it is put in.
    #[must_use]
    pub fn place(self, length: usize) -> Option<usize> {
        let start = usize::from(self.start);
        let place = start + usize::from(self.offset);
        (start >= MIN_FRAME && place + 2 <= length).then_some(place)
    }
}

/// An Ethernet frame, without its check sequence.
#[derive(Clone)]
pub struct Frame {
    bytes: [u8; MAX_FRAME],
    length: usize,
    /// The checksum that the frame does not have yet.
    pub missing: Option<MissingChecksum>,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_FRAME],
            length: 0,
            missing: None,
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Frame {
    /// Makes it a frame of `length` bytes, whose contents are to be written. `None` if no frame is
    /// so short or long.
    pub fn resize(&mut self, length: usize) -> Option<&mut [u8]> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
            return None;
        }
        self.length = length;
        self.missing = None;
        Some(&mut self.bytes[..length])
    }

    /// Returns its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn address(&self, at: usize) -> Mac {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.bytes[at..at + 6]);
        Mac(mac)
    }

    /// Returns how many bytes it takes on a wire, of which it has the others' time.
    #[must_use]
    pub fn wire_length(&self) -> u64 {
        (self.length as u64).max(LEAST_ON_WIRE) + ON_WIRE
    }

    /// Returns whom it is for.
    #[must_use]
    pub fn destination(&self) -> Mac {
        self.address(0)
    }

    /// Returns whom it says it is from.
    #[must_use]
    pub fn source(&self) -> Mac {
        self.address(6)
    }

    fn copy_from(&mut self, other: &Self) {
        self.length = other.length;
        self.missing = other.missing;
        self.bytes[..self.length].copy_from_slice(other.bytes());
    }

    /// Puts in the checksum that is missing (RFC 1071).
    pub fn complete(&mut self) {
        let Some(missing) = self.missing.take() else {
            return;
        };
        let Some(place) = missing.place(self.length) else {
            return;
        };
        let summed = &self.bytes[missing.start.into()..self.length];
        let mut sum: u64 = summed
            .chunks(2)
            .map(|pair| match *pair {
                [high, low] => u64::from(u16::from_be_bytes([high, low])),
                // As if a zero followed.
                [high] => u64::from(high) << 8,
                _ => 0,
            })
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // All zeros would say that there is no sum, in UDP; all ones are the same number.
        let sum = match !(sum as u16) {
            0 => 0xffff,
            sum => sum,
        };
        self.bytes[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Frames on their way to a device: a ring.
#[derive(Debug)]
struct Inbox {
    frames: Box<[Frame]>,
    /// The number of the sender of each, modulo [`SENDERS`].
    senders: [u8; INBOX],
    /// The frames that wait of each sender's.
    waiting: [u8; SENDERS],
    first: usize,
    count: usize,
}

const _: () = assert!(SENDERS <= INBOX && INBOX <= 255);

impl Inbox {
    fn new() -> Result<Self, NoMemory> {
        let mut frames = Vec::new();
        frames.try_reserve_exact(INBOX).map_err(|_| NoMemory)?;
        frames.resize_with(INBOX, Frame::default);
        Ok(Self {
            frames: frames.into_boxed_slice(),
            senders: [0; INBOX],
            waiting: [0; SENDERS],
            first: 0,
            count: 0,
        })
    }

    /// Puts a frame of this sender's in. False if there is no room, or the sender has its share of it.
    fn push(&mut self, frame: &Frame, sender: u32) -> bool {
        let room = self.frames.len() - self.count;
        let sender = sender as usize % SENDERS;
        if usize::from(self.waiting[sender]) >= SHARE * room {
            return false;
        }
        let last = (self.first + self.count) % self.frames.len();
        self.frames[last].copy_from(frame);
        self.senders[last] = sender as u8;
        self.waiting[sender] += 1;
        self.count += 1;
        true
    }

    fn pop(&mut self, to: &mut Frame) -> bool {
        if self.count == 0 {
            return false;
        }
        to.copy_from(&self.frames[self.first]);
        self.waiting[usize::from(self.senders[self.first])] -= 1;
        self.first = (self.first + 1) % self.frames.len();
        self.count -= 1;
        true
    }

    fn clear(&mut self) {
        self.waiting = [0; SENDERS];
        self.count = 0;
    }
}

/// An error: there is no memory for an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for frames on their way to a device")
    }
}

impl core::error::Error for NoMemory {}

/// A function that is called when the first frame comes into an inbox. Whoever sends may hold the locks of its
/// own VM, and nothing else.
pub type Arrival = Box<dyn Fn() + Send + Sync>;

/// The traffic of a device.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    held: AtomicU64,
}

/// A reading of a device's [`Traffic`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCounts {
    /// The frames that it has sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// The frames that it has received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// The frames for it that were lost: too many waited already.
    pub dropped: u64,
    /// The frames of its driver's that went nowhere: from another address, or not as frames are.
    pub refused: u64,
    /// The number of times that frames had to wait as it had sent what it may.
    pub held: u64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

impl Traffic {
    /// Returns the counts up to now.
    #[must_use]
    pub fn counts(&self) -> TrafficCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficCounts {
            sent: read(&self.sent),
            sent_bytes: read(&self.sent_bytes),
            received: read(&self.received),
            received_bytes: read(&self.received_bytes),
            dropped: read(&self.dropped),
            refused: read(&self.refused),
            held: read(&self.held),
        }
    }

    /// Counts that a frame of its driver's is none that can be sent.
    pub fn count_refused(&self) {
        count(&self.refused, 1);
    }

    /// Counts that its frames have to wait.
    pub fn count_held(&self) {
        count(&self.held, 1);
    }
}

/// A socket of a switch.
struct Socket {
    mac: Mac,
    /// The number by which it is known as a sender.
    number: u32,
    inbox: Mutex<Inbox>,
    arrival: Arrival,
    traffic: Arc<Traffic>,
}

impl Socket {
    fn deliver(&self, frame: &Frame, sender: u32) {
        let mut inbox = self.inbox.lock();
        let is_first = inbox.count == 0;
        let taken = inbox.push(frame, sender);
        drop(inbox);
        if !taken {
            count(&self.traffic.dropped, 1);
        } else if is_first {
            (self.arrival)();
        }
    }
}

/// A network: what is plugged in can be reached by all else that is.
#[derive(Default)]
pub struct Switch {
    sockets: RwLock<Vec<Weak<Socket>>>,
    /// The number of sockets that there have been.
    numbers: AtomicU32,
}

impl Switch {
    /// Plugs in a device with the address `mac`, in the place of one that has had it before.
    /// `arrival` is called when frames begin to wait for it.
    ///
    /// # Errors
    /// If there is no memory for the frames that can wait.
    pub fn plug_in(self: &Arc<Self>, mac: Mac, arrival: Arrival) -> Result<Port, NoMemory> {
        let socket = Arc::new(Socket {
            mac,
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            inbox: Mutex::new(Inbox::new()?),
            arrival,
            traffic: Arc::default(),
        });
        // No sender comes in any more while those that are in go out: else senders that never stop
        // would keep others from being plugged in.
        let mut sockets = self.sockets.upgradeable_read().upgrade();
        sockets.retain(|other| other.upgrade().is_some_and(|other| other.mac != mac));
        sockets.push(Arc::downgrade(&socket));
        drop(sockets);
        Ok(Port {
            switch: self.clone(),
            socket,
        })
    }
}

/// A device's end of a cable to a switch.
pub struct Port {
    switch: Arc<Switch>,
    socket: Arc<Socket>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Port").field(&self.socket.mac).finish()
    }
}

impl Port {
    /// Returns the address of the device.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.socket.mac
    }

    /// Returns the device's traffic.
    #[must_use]
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.socket.traffic
    }

    /// Sends a frame to whom it is for. It goes nowhere if nobody has that address, or if it does
    /// not say that it comes from here. Returns how many it was given to.
    pub fn send(&self, frame: &Frame) -> usize {
        let traffic = &self.socket.traffic;
        if frame.source() != self.mac() {
            traffic.count_refused();
            return 0;
        }
        count(&traffic.sent, 1);
        count(&traffic.sent_bytes, frame.length as u64);
        let to = frame.destination();
        let mut given = 0;
        let sockets = self.switch.sockets.read();
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            if !Arc::ptr_eq(&socket, &self.socket) && (to.is_group() || socket.mac == to) {
                socket.deliver(frame, self.socket.number);
                given += 1;
            }
        }
        given
    }

    /// Tells whether a frame waits for the device.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        self.socket.inbox.lock().count != 0
    }

    /// Throws away what waits for the device: it has nobody who takes it.
    pub fn discard(&self) {
        self.socket.inbox.lock().clear();
    }

    /// Takes the next frame. False if there is none.
    pub fn receive(&self, frame: &mut Frame) -> bool {
        let taken = self.socket.inbox.lock().pop(frame);
        if taken {
            let traffic = &self.socket.traffic;
            count(&traffic.received, 1);
            count(&traffic.received_bytes, frame.length as u64);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use proptest::prelude::*;

    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const C: Mac = Mac([2, 0, 0, 0, 0, 3]);
    const ALL: Mac = Mac([0xff; 6]);

    fn frame(to: Mac, from: Mac, payload: &[u8]) -> Frame {
        let mut frame = Frame::default();
        let bytes = [&to.0[..], &from.0, &[0x08, 0x00], payload].concat();
        frame.resize(bytes.len()).unwrap().copy_from_slice(&bytes);
        frame
    }

    fn received(port: &Port) -> Vec<Vec<u8>> {
        let mut frame = Frame::default();
        let mut all = vec![];
        while port.receive(&mut frame) {
            all.push(frame.bytes()[14..].to_vec());
        }
        all
    }

    fn plug(switch: &Arc<Switch>, mac: Mac) -> (Port, Arc<AtomicU64>) {
        let arrivals = Arc::new(AtomicU64::new(0));
        let count = arrivals.clone();
        let arrival = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (switch.plug_in(mac, arrival).unwrap(), arrivals)
    }

    #[test]
    fn a_frame_goes_to_whom_it_is_for() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, arrivals), (c, _)] = [A, B, C].map(|mac| plug(&switch, mac));
        assert_eq!(a.send(&frame(B, A, b"one")), 1);
        assert_eq!(a.send(&frame(B, A, b"two")), 1);
        assert_eq!(arrivals.load(Ordering::Relaxed), 1, "told once");
        assert_eq!(received(&b), [b"one", b"two"]);
        a.send(&frame(ALL, A, b"all"));
        assert_eq!(arrivals.load(Ordering::Relaxed), 2);
        assert_eq!(
            (received(&b), received(&c)),
            (vec![b"all".to_vec()], vec![b"all".to_vec()])
        );
        assert!(received(&a).is_empty(), "not to its sender");
        a.send(&frame(Mac([2; 6]), A, b"nobody"));
        assert!(!b.has_frame() && !c.has_frame());
    }

    #[test]
    fn nobody_claims_to_be_another() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, _)] = [A, B].map(|mac| plug(&switch, mac));
        a.send(&frame(B, C, b"?"));
        a.send(&frame(B, B, b"?"));
        assert!(!b.has_frame());
        let counts = a.traffic().counts();
        assert_eq!((counts.sent, counts.refused), (0, 2));
    }

    #[test]
    fn networks_do_not_touch() {
        let (one, other) = (Arc::new(Switch::default()), Arc::new(Switch::default()));
        let ((a, _), (b, _)) = (plug(&one, A), plug(&other, B));
        a.send(&frame(B, A, b"?"));
        a.send(&frame(ALL, A, b"?"));
        assert!(!b.has_frame());
    }

    #[test]
    fn who_does_not_listen_loses_frames_and_nobody_else_does() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, _), (c, _)] = [A, B, C].map(|mac| plug(&switch, mac));
        for n in 0..INBOX + 3 {
            a.send(&frame(ALL, A, &[n as u8]));
            assert_eq!(received(&c), [[n as u8]]);
        }
        let [to_b, to_c, of_a] = [&b, &c, &a].map(|port| port.traffic().counts());
        let kept = received(&b);
        assert_eq!((kept.len(), &kept[0][..]), (INBOX * 3 / 4, &[0][..]));
        assert_eq!(
            (to_b.dropped, to_c.dropped),
            ((INBOX + 3 - kept.len()) as u64, 0)
        );
        assert_eq!((of_a.sent, of_a.sent_bytes), (131, 131 * 15));
        assert_eq!(b.traffic().counts().received, kept.len() as u64);
    }

    #[test]
    fn who_floods_a_device_leaves_room_for_others() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, _), (c, _)] = [A, B, C].map(|mac| plug(&switch, mac));
        let flood = || {
            for _ in 0..3 * INBOX {
                a.send(&frame(B, A, b"flood"));
            }
        };
        for round in 0..20 {
            flood();
            let before = b.traffic().counts().dropped;
            assert!(before > 0);
            for n in 0..20 {
                c.send(&frame(B, C, &[round, n]));
            }
            let after = b.traffic().counts().dropped;
            assert_eq!(after, before, "none of these is lost");
            flood();
            let all = received(&b);
            assert_eq!(all.iter().filter(|it| it.len() == 2).count(), 20);
            assert!(all.len() <= INBOX);
            b.discard();
        }
    }

    #[test]
    fn a_device_that_is_made_anew_takes_the_place_of_the_old_one() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (old, _)] = [A, B].map(|mac| plug(&switch, mac));
        let (new, _) = plug(&switch, B);
        a.send(&frame(B, A, b"hello"));
        assert!(!old.has_frame());
        assert_eq!(received(&new), [b"hello"]);
        drop(new);
        a.send(&frame(B, A, b"gone"));
    }

    #[test]
    fn what_waits_for_nobody_is_thrown_away() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, arrivals)] = [A, B].map(|mac| plug(&switch, mac));
        a.send(&frame(B, A, b"old"));
        b.discard();
        assert!(!b.has_frame());
        a.send(&frame(B, A, b"new"));
        assert_eq!(arrivals.load(Ordering::Relaxed), 2);
        assert_eq!(received(&b), [b"new"]);
    }

    #[test]
    fn frames_have_a_length() {
        let mut frame = Frame::default();
        assert!(frame.resize(13).is_none() && frame.resize(1519).is_none());
        assert_eq!(frame.resize(1518).unwrap().len(), 1518);
    }

    #[test]
    fn a_missing_checksum_is_put_in() {
        // From RFC 1071, 3: the sum of these is ddf2.
        let mut frame = frame(B, A, &[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0]);
        frame.missing = Some(MissingChecksum {
            start: 14,
            offset: 8,
        });
        frame.complete();
        assert_eq!(frame.bytes()[22..], [0x22, 0x0d]);
        assert_eq!(frame.missing, None);
        // One that would be outside, and one that would change who it is from.
        let whole = frame.bytes().to_vec();
        for (start, offset) in [(14, 9), (6, 0), (13, 1), (0, 14)] {
            frame.missing = Some(MissingChecksum { start, offset });
            frame.complete();
            assert_eq!(frame.bytes(), whole, "at {start} and {offset}");
        }
    }

    proptest! {
        #[test]
        fn what_has_its_checksum_sums_up_to_ones(
            payload in proptest::collection::vec(any::<u8>(), 2..1500),
            offset in any::<u16>(),
        ) {
            let offset = (offset % (payload.len() as u16 - 1)) & !1;
            let mut frame = frame(B, A, &payload);
            frame.missing = Some(MissingChecksum { start: 14, offset });
            // A sum of the pseudo-header, which the sum at the end is to take in.
            frame.complete();
            let again = frame.bytes()[14..].chunks(2).fold(0u32, |sum, pair| {
                let word = u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                let sum = sum + word;
                (sum & 0xffff) + (sum >> 16)
            });
            let at = 14 + usize::from(offset);
            let placed = u16::from_be_bytes([frame.bytes()[at], frame.bytes()[at + 1]]);
            let before = u16::from_be_bytes([payload[usize::from(offset)], payload[usize::from(offset) + 1]]);
            // The complement of (rest + before) is added to the rest: ones, less what was before.
            let expected = (u32::from(0xffff - before)) % 0xffff;
            prop_assert_eq!(again % 0xffff, expected, "placed {:#x}", placed);
        }
    }
}
