//! Ethernet switches between the network devices of VMs: one for each network.
//!
//! Who is where is known when the machine is made, so that nothing is learned, and nobody can claim
//! to be another: a frame whose source is not its sender's address goes nowhere. A frame is copied
//! from its sender's memory by the sender, and to the receiver's memory by the receiver, each in its
//! own time, with no copy between: what goes into an inbox is the memory that the frame was copied
//! to, in exchange for other such memory. (One copy in all would have a VM read another's memory, and
//! the sender wait for the receiver.) An inbox that is full takes no more, so that nobody can fill
//! another's memory, and the most that one sender may have there leaves room for others. VMs that
//! share no network share nothing.
//!
//! A large frame, to be cut into segments, goes as it is to those who take it so. For others the
//! sender cuts it: a receiver that cut it would work for as many frames as a sender likes to make of
//! one. The checksum of a segment is left to the receiver as any other.

mod frame;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::{Mutex, RwLock};

pub use frame::{Frame, MAX_FRAME, MAX_LARGE_FRAME, MIN_FRAME, Mac, MissingChecksum};
pub use frame::{Protocol, Segmentation};

/// The number of frames that an inbox holds.
const INBOX: usize = 128;
/// The number of large frames that it holds besides.
const LARGE_INBOX: usize = 8;
/// The number of counts by which senders' shares of an inbox are told apart.
const SENDERS: usize = 32;
/// The frames of one sender's that may wait in an inbox for each frame for which there is room: it
/// has three quarters of the room alone, and beside another, that does as it does, three sevenths.
const SHARE: usize = 3;
/// Memory for frames of one kind, and how much of it senders have filled.
#[derive(Debug)]
struct Room {
    free: Vec<Frame>,
    /// The frames that wait of each sender's, by its number modulo [`SENDERS`].
    waiting: [u8; SENDERS],
}

const _: () = assert!(SENDERS <= INBOX && INBOX <= 255);

impl Room {
    fn new(is_large: bool, count: usize) -> Result<Self, NoMemory> {
        let mut free = Vec::new();
        free.try_reserve_exact(count).map_err(|_| NoMemory)?;
        for _ in 0..count {
            free.push(Frame::try_new(is_large)?);
        }
        Ok(Self {
            free,
            waiting: [0; SENDERS],
        })
    }

    /// Takes memory for a frame of this sender's. `None` if there is no room, or the sender has its
    /// share of it.
    fn take(&mut self, sender: usize) -> Option<Frame> {
        if usize::from(self.waiting[sender]) >= SHARE * self.free.len() {
            return None;
        }
        let frame = self.free.pop()?;
        self.waiting[sender] += 1;
        Some(frame)
    }
}

/// Frames on their way to a device.
#[derive(Debug)]
struct Inbox {
    rooms: [Room; 2],
    /// The frames, and their senders' numbers modulo [`SENDERS`].
    frames: VecDeque<(Frame, usize)>,
}

impl Inbox {
    fn new() -> Result<Self, NoMemory> {
        let mut frames = VecDeque::new();
        frames
            .try_reserve_exact(INBOX + LARGE_INBOX)
            .map_err(|_| NoMemory)?;
        Ok(Self {
            rooms: [Room::new(false, INBOX)?, Room::new(true, LARGE_INBOX)?],
            frames,
        })
    }

    /// Puts a frame of this sender's in: itself, so that `frame` has other memory afterwards, or a copy.
    /// False if there is no room, or the sender has its share of it.
    fn push(&mut self, frame: &mut Frame, sender: u32, copies: bool) -> bool {
        let sender = sender as usize % SENDERS;
        let room = &mut self.rooms[usize::from(frame.is_large())];
        let Some(mut own) = room.take(sender) else {
            return false;
        };
        if copies {
            own.copy_from(frame);
        } else {
            core::mem::swap(&mut own, frame);
        }
        self.frames.push_back((own, sender));
        true
    }

    fn pop(&mut self) -> Option<Frame> {
        let (frame, sender) = self.frames.pop_front()?;
        self.rooms[usize::from(frame.is_large())].waiting[sender] -= 1;
        Some(frame)
    }

    /// Takes the memory of a frame that was [popped](Inbox::pop) back.
    fn give_back(&mut self, frame: Frame) {
        self.rooms[usize::from(frame.is_large())].free.push(frame);
    }

    fn clear(&mut self) {
        while let Some(frame) = self.pop() {
            self.give_back(frame);
        }
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

    /// Counts a frame that the device has received as lost: its driver does not take it.
    pub fn count_dropped(&self, frame: &Frame) {
        count(&self.dropped, frame.count());
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
    /// Whether it takes large frames of TCP over IPv4, and over IPv6.
    takes_large: [AtomicBool; 2],
}

impl Socket {
    const fn takes_large(&self, protocol: Protocol) -> &AtomicBool {
        match protocol {
            Protocol::Tcp4 => &self.takes_large[0],
            Protocol::Tcp6 => &self.takes_large[1],
        }
    }

    /// Takes a frame, or a copy of it. False if it is lost.
    fn deliver(&self, frame: &mut Frame, sender: u32, copies: bool) -> bool {
        let mut inbox = self.inbox.lock();
        let is_first = inbox.frames.is_empty();
        let count_of_it = frame.count();
        let taken = inbox.push(frame, sender, copies);
        drop(inbox);
        if !taken {
            count(&self.traffic.dropped, count_of_it);
        } else if is_first {
            (self.arrival)();
        }
        taken
    }

    /// Takes the segments of a large frame, until one of them is lost. Returns how many have been cut.
    fn deliver_segments(&self, frame: &Frame, sender: u32, segment: &mut Frame) -> u64 {
        let mut number = 0;
        while frame.cut(number, segment) {
            number += 1;
            if !self.deliver(segment, sender, false) {
                count(&self.traffic.dropped, frame.count() - u64::from(number));
                break;
            }
        }
        number.into()
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
            takes_large: [const { AtomicBool::new(false) }; 2],
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

    /// Says whether the device takes frames of this protocol that are to be cut into segments.
    pub fn set_takes_large(&self, protocol: Protocol, takes: bool) {
        let flag = self.socket.takes_large(protocol);
        flag.store(takes, Ordering::Relaxed);
    }

    /// Tells whether it does.
    #[must_use]
    pub fn takes_large(&self, protocol: Protocol) -> bool {
        self.socket.takes_large(protocol).load(Ordering::Relaxed)
    }

    /// Sends a frame to whom it is for; `frame` is any frame afterwards. It goes nowhere if nobody has
    /// that address, or if it does not say that it comes from here. `segment` is memory for a
    /// segment of it. Returns how many bytes were copied.
    pub fn send(&self, frame: &mut Frame, segment: &mut Frame) -> u64 {
        let traffic = &self.socket.traffic;
        let to = frame.destination();
        // No protocol that is cut into segments is for groups.
        let is_wrong = frame.segmentation().is_some() && to.is_group();
        if frame.source() != self.mac() || is_wrong {
            traffic.count_refused();
            return 0;
        }
        count(&traffic.sent, frame.count());
        count(&traffic.sent_bytes, frame.bytes().len() as u64);
        let number = self.socket.number;
        let mut copied = 0;
        let sockets = self.switch.sockets.read();
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            if Arc::ptr_eq(&socket, &self.socket) || !(to.is_group() || socket.mac == to) {
                continue;
            }
            match frame.segmentation().map(Segmentation::protocol) {
                Some(protocol) if !socket.takes_large(protocol).load(Ordering::Relaxed) => {
                    let count = socket.deliver_segments(frame, number, segment);
                    copied += count * MAX_FRAME as u64;
                    break;
                }
                _ if to.is_group() => {
                    socket.deliver(frame, number, true);
                    copied += MAX_FRAME as u64;
                }
                _ => {
                    socket.deliver(frame, number, false);
                    break;
                }
            }
        }
        copied
    }

    /// Tells whether a frame waits for the device.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        !self.socket.inbox.lock().frames.is_empty()
    }

    /// Throws away what waits for the device: it has nobody who takes it.
    pub fn discard(&self) {
        self.socket.inbox.lock().clear();
    }

    /// Takes the next frame, if there is one. It is to be [given back](Port::give_back).
    #[must_use]
    pub fn receive(&self) -> Option<Frame> {
        let frame = self.socket.inbox.lock().pop()?;
        let traffic = &self.socket.traffic;
        count(&traffic.received, frame.count());
        count(&traffic.received_bytes, frame.bytes().len() as u64);
        Some(frame)
    }

    /// Gives the memory of a frame that was received back.
    pub fn give_back(&self, frame: Frame) {
        self.socket.inbox.lock().give_back(frame);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;

    use std::vec;

    use super::*;

    pub(crate) use super::frame::tests::tcp_frame;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const C: Mac = Mac([2, 0, 0, 0, 0, 3]);
    const ALL: Mac = Mac([0xff; 6]);

    fn frame(to: Mac, from: Mac, payload: &[u8]) -> Frame {
        frame::tests::frame(&[&to.0[..], &from.0, &[0x08, 0x00], payload].concat())
    }

    fn send(port: &Port, mut frame: Frame) -> u64 {
        port.send(&mut frame, &mut Frame::try_new(false).unwrap())
    }

    fn received(port: &Port) -> Vec<Vec<u8>> {
        let mut all = vec![];
        while let Some(frame) = port.receive() {
            all.push(frame.bytes()[14..].to_vec());
            port.give_back(frame);
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
        assert_eq!(send(&a, frame(B, A, b"one")), 0, "no copy");
        send(&a, frame(B, A, b"two"));
        assert_eq!(arrivals.load(Ordering::Relaxed), 1, "told once");
        assert_eq!(received(&b), [b"one", b"two"]);
        send(&a, frame(ALL, A, b"all"));
        assert_eq!(arrivals.load(Ordering::Relaxed), 2);
        assert_eq!(
            (received(&b), received(&c)),
            (vec![b"all".to_vec()], vec![b"all".to_vec()])
        );
        assert!(received(&a).is_empty(), "not to its sender");
        send(&a, frame(Mac([2; 6]), A, b"nobody"));
        assert!(!b.has_frame() && !c.has_frame());
    }

    #[test]
    fn nobody_claims_to_be_another() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, _)] = [A, B].map(|mac| plug(&switch, mac));
        send(&a, frame(B, C, b"?"));
        send(&a, frame(B, B, b"?"));
        assert!(!b.has_frame());
        let counts = a.traffic().counts();
        assert_eq!((counts.sent, counts.refused), (0, 2));
    }

    #[test]
    fn networks_do_not_touch() {
        let (one, other) = (Arc::new(Switch::default()), Arc::new(Switch::default()));
        let ((a, _), (b, _)) = (plug(&one, A), plug(&other, B));
        send(&a, frame(B, A, b"?"));
        send(&a, frame(ALL, A, b"?"));
        assert!(!b.has_frame());
    }

    #[test]
    fn who_does_not_listen_loses_frames_and_nobody_else_does() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, _), (c, _)] = [A, B, C].map(|mac| plug(&switch, mac));
        for n in 0..INBOX + 3 {
            send(&a, frame(ALL, A, &[n as u8]));
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
                send(&a, frame(B, A, b"flood"));
            }
        };
        for round in 0..20 {
            flood();
            let before = b.traffic().counts().dropped;
            assert!(before > 0);
            for n in 0..20 {
                send(&c, frame(B, C, &[round, n]));
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
        send(&a, frame(B, A, b"hello"));
        assert!(!old.has_frame());
        assert_eq!(received(&new), [b"hello"]);
        drop(new);
        send(&a, frame(B, A, b"gone"));
    }

    #[test]
    fn what_waits_for_nobody_is_thrown_away() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, arrivals)] = [A, B].map(|mac| plug(&switch, mac));
        send(&a, frame(B, A, b"old"));
        b.discard();
        assert!(!b.has_frame());
        send(&a, frame(B, A, b"new"));
        assert_eq!(arrivals.load(Ordering::Relaxed), 2);
        assert_eq!(received(&b), [b"new"]);
    }

    #[test]
    fn a_large_frame_goes_whole_to_who_takes_it_and_in_segments_to_others() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, arrivals)] = [A, B].map(|mac| plug(&switch, mac));
        let (bytes, tcp) = tcp_frame(0, &[5; 40_000]);
        let large_of = |bytes: &[u8]| {
            let mut large = frame::tests::frame(bytes);
            large.missing = Some(MissingChecksum {
                start: tcp as u16,
                offset: 16,
            });
            assert!(large.set_segmentation(Protocol::Tcp4, 1000));
            large
        };
        let large = || large_of(&bytes);
        assert!(send(&a, large()) >= 40_000);
        assert_eq!(arrivals.load(Ordering::Relaxed), 1);
        let all = received(&b);
        assert_eq!((all.len(), all[39].len()), (40, 1040));
        b.set_takes_large(Protocol::Tcp6, true);
        send(&a, large());
        assert_eq!(received(&b).len(), 40);
        b.set_takes_large(Protocol::Tcp4, true);
        assert_eq!(send(&a, large()), 0, "no copy");
        let whole = b.receive().unwrap();
        assert_eq!(whole.bytes(), bytes);
        assert_eq!(whole.segmentation().unwrap().count(), 40);
        b.give_back(whole);
        let counts = [&a, &b].map(|port| port.traffic().counts());
        assert_eq!((counts[0].sent, counts[1].received), (120, 120));
        // There is room for some, and what of segments finds none is counted.
        for _ in 0..LARGE_INBOX {
            send(&a, large());
        }
        assert_eq!(received(&b).len(), LARGE_INBOX * 3 / 4);
        assert_eq!(b.traffic().counts().dropped, LARGE_INBOX as u64 / 4 * 40);
        b.set_takes_large(Protocol::Tcp4, false);
        for _ in 0..4 {
            send(&a, large());
        }
        let before = b.traffic().counts().dropped;
        assert_eq!(before, (LARGE_INBOX / 4 * 40 + 160 - INBOX * 3 / 4) as u64);
        assert_eq!(received(&b).len(), INBOX * 3 / 4);
        // None is for a group.
        let mut to_all = bytes.clone();
        to_all[0] |= 1;
        send(&a, large_of(&to_all));
        assert!(!b.has_frame());
        assert_eq!(a.traffic().counts().refused, 1);
    }

    #[test]
    fn memory_goes_round_and_none_is_lost() {
        let switch = Arc::new(Switch::default());
        let [(a, _), (b, _)] = [A, B].map(|mac| plug(&switch, mac));
        for round in 0..500 {
            send(&a, frame(B, A, &[round as u8]));
            send(&a, frame(ALL, A, &[round as u8]));
            if round % 3 == 0 {
                b.discard();
            }
            received(&b);
        }
        let inbox = b.socket.inbox.lock();
        let free = inbox.rooms.each_ref().map(|room| room.free.len());
        assert_eq!(free, [INBOX, LARGE_INBOX]);
        assert!(inbox.rooms.iter().all(|room| room.waiting == [0; SENDERS]));
    }
}
