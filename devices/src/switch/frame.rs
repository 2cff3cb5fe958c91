//! Ethernet frames on their way through a switch, with what their senders have left to do to those
//! who come later: to put in a checksum, and to cut a large one of TCP into segments.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use super::NoMemory;

/// The longest frame, without its check sequence: 1500 bytes of payload behind a header with a
/// VLAN's tag.
pub const MAX_FRAME: usize = 1518;
/// The longest frame that is to be cut into segments (virtio 1.2, 5.1.6.3.1).
pub const MAX_LARGE_FRAME: usize = 65_550;
/// The shortest: its header.
pub const MIN_FRAME: usize = 14;
/// The most segments of a frame. A driver that asks for more, of a few bytes each, makes others work
/// more than itself.
const MAX_SEGMENTS: usize = 1024;
/// The bytes that a frame takes on a wire besides its own: preamble, check sequence and gap (IEEE 802.3).
const ON_WIRE: usize = 8 + 4 + 12;
/// The least bytes of a frame on a wire, without its check sequence.
const LEAST_ON_WIRE: usize = 60;

/// Types of what is in a frame (IEEE 802.3).
const VLAN_TAG: u16 = 0x8100;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// The length of a VLAN's tag, and of the headers of IP and TCP without options.
const TAG: usize = 4;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// The protocol number of TCP, and those of the headers of IPv6 that may come before it: options for
/// each hop and for the destination.
const TCP: u8 = 6;
const HOP_OPTIONS: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
/// The most such headers: each may be there once, and the latter twice (RFC 8200, 4.1).
const MAX_OPTION_HEADERS: usize = 3;
/// The offset of the checksum in the header of TCP.
const TCP_CHECKSUM: usize = 16;
/// Flags of TCP: of those, the last segment alone has the first two, and the first alone the third.
const FIN: u8 = 1 << 0;
const PSH: u8 = 1 << 3;
const CWR: u8 = 1 << 7;

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

/// The protocol of what is to be cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// The way in which a frame is to be cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    protocol: Protocol,
    /// The payload of each segment but the last, in bytes: not zero.
    size: u16,
    /// The place of the header of IP.
    ip: u16,
    /// The place of the header of TCP.
    tcp: u16,
    /// The length of all headers.
    headers: u16,
    /// The number of segments: at least one.
    count: u16,
}

impl Segmentation {
    /// Finds out how `bytes`, whose checksum is `missing`, are to be cut into segments with a payload
    /// of `size` bytes. `None` if they are not what is cut so.
    fn of(bytes: &[u8], protocol: Protocol, size: u16, missing: MissingChecksum) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let mut ip = MIN_FRAME;
        if u16_at(ip - 2)? == VLAN_TAG {
            ip += TAG;
        }
        let (kind, version, shortest) = match protocol {
            Protocol::Tcp4 => (IPV4, 4, IPV4_HEADER),
            Protocol::Tcp6 => (IPV6, 6, IPV6_HEADER),
        };
        let first = *bytes.get(ip)?;
        if u16_at(ip - 2)? != kind || first >> 4 != version || bytes.len() < ip + shortest {
            return None;
        }
        let tcp = match protocol {
            Protocol::Tcp4 => {
                const FRAGMENT: u16 = 0x3fff;
                let length = 4 * usize::from(first & 0xf);
                let is_whole = u16_at(ip + 6)? & FRAGMENT == 0;
                if length < shortest || !is_whole || bytes[ip + 9] != TCP {
                    return None;
                }
                ip + length
            }
            Protocol::Tcp6 => tcp_behind_options(bytes, ip)?,
        };
        let data_offset = 4 * usize::from(bytes.get(tcp + 12)? >> 4);
        let headers = tcp + data_offset;
        let payload = bytes.len().checked_sub(headers)?;
        let is_sum_of_tcp =
            usize::from(missing.start) == tcp && usize::from(missing.offset) == TCP_CHECKSUM;
        let longest = headers + payload.min(size.into());
        if data_offset < TCP_HEADER
            || payload == 0
            || size == 0
            || !is_sum_of_tcp
            || longest > MAX_FRAME
        {
            return None;
        }
        let count = payload.div_ceil(size.into());
        (count <= MAX_SEGMENTS).then_some(Self {
            protocol,
            size,
            ip: ip as u16,
            tcp: tcp as u16,
            headers: headers as u16,
            count: count as u16,
        })
    }

    /// Returns the protocol.
    #[must_use]
    pub const fn protocol(self) -> Protocol {
        self.protocol
    }

    /// Returns the payload of each segment but the last, in bytes.
    #[must_use]
    pub const fn size(self) -> u16 {
        self.size
    }

    /// Returns the length of the headers of each.
    #[must_use]
    pub const fn headers(self) -> u16 {
        self.headers
    }

    /// Returns how many segments there are.
    #[must_use]
    pub const fn count(self) -> u16 {
        self.count
    }
}

/// Returns where the header of TCP is, behind that of IPv6 at `ip` and options. `None` if it is something
/// else that comes there.
fn tcp_behind_options(bytes: &[u8], ip: usize) -> Option<usize> {
    let mut next = bytes[ip + 6];
    let mut at = ip + IPV6_HEADER;
    for _ in 0..=MAX_OPTION_HEADERS {
        if next == TCP {
            return Some(at);
        }
        if next != HOP_OPTIONS && next != DESTINATION_OPTIONS {
            return None;
        }
        next = *bytes.get(at)?;
        at += 8 * (1 + usize::from(*bytes.get(at + 1)?));
    }
    None
}

/// Returns the sum of the words of `bytes`, as if a zero followed (RFC 1071): not folded.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [high] => u64::from(high) << 8,
            _ => 0,
        })
        .sum()
}

/// Folds a sum to a word.
const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An Ethernet frame, without its check sequence, in room for one of [`MAX_FRAME`] bytes or
/// of [`MAX_LARGE_FRAME`].
pub struct Frame {
    bytes: Box<[u8]>,
    length: usize,
    /// The checksum that the frame does not have yet.
    pub missing: Option<MissingChecksum>,
    segmentation: Option<Segmentation>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("length", &self.length)
            .field("segmentation", &self.segmentation)
            .finish_non_exhaustive()
    }
}

impl Frame {
    /// Makes room for a frame, a large one or another.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn try_new(is_large: bool) -> Result<Self, NoMemory> {
        let room = if is_large { MAX_LARGE_FRAME } else { MAX_FRAME };
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(room).map_err(|_| NoMemory)?;
        bytes.resize(room, 0);
        Ok(Self {
            bytes: bytes.into_boxed_slice(),
            length: 0,
            missing: None,
            segmentation: None,
        })
    }

    /// Tells whether it has room for large frames.
    #[must_use]
    pub const fn is_large(&self) -> bool {
        self.bytes.len() > MAX_FRAME
    }

    /// Makes it a frame of `length` bytes, whose contents are to be written. `None` if it has no room
    /// for it, or no frame is so short.
    pub fn resize(&mut self, length: usize) -> Option<&mut [u8]> {
        if !(MIN_FRAME..=self.bytes.len()).contains(&length) {
            return None;
        }
        self.length = length;
        self.missing = None;
        self.segmentation = None;
        Some(&mut self.bytes[..length])
    }

    /// Returns its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Returns how it is to be cut into segments, if it is.
    #[must_use]
    pub const fn segmentation(&self) -> Option<Segmentation> {
        self.segmentation
    }

    /// Notes that it is to be cut into segments with a payload of `size` bytes. False if it is not what is
    /// cut so: then it is as it was.
    #[must_use]
    pub fn set_segmentation(&mut self, protocol: Protocol, size: u16) -> bool {
        let Some(missing) = self.missing else {
            return false;
        };
        self.segmentation = Segmentation::of(self.bytes(), protocol, size, missing);
        self.segmentation.is_some()
    }

    /// Returns how many frames it is on a wire.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.segmentation.map_or(1, |it| it.count.into())
    }

    /// Returns how many bytes it takes on a wire.
    #[must_use]
    pub fn wire_length(&self) -> u64 {
        let (count, headers) = self
            .segmentation
            .map_or((1, 0), |it| (it.count.into(), it.headers.into()));
        let own = self.length + (count - 1) * headers;
        (own.max(count * LEAST_ON_WIRE) + count * ON_WIRE) as u64
    }

    fn address(&self, at: usize) -> Mac {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.bytes[at..at + 6]);
        Mac(mac)
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

    /// Becomes a copy of a frame for which it has room.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.length = other.length;
        self.missing = other.missing;
        self.segmentation = other.segmentation;
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
        // All zeros would say that there is no sum, in UDP; all ones are the same number.
        let sum = match !fold(sum(&self.bytes[missing.start.into()..self.length])) {
            0 => 0xffff,
            sum => sum,
        };
        self.put_u16(place, sum);
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn add_u16(&mut self, at: usize, more: u16) {
        let value = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.put_u16(at, value.wrapping_add(more));
    }

    /// Makes `segment` the segment with the number `number`, whose checksum is missing. False if there is none.
    #[must_use]
    pub(super) fn cut(&self, number: u16, segment: &mut Self) -> bool {
        let Some(cut) = self.segmentation.filter(|it| number < it.count) else {
            return false;
        };
        let (ip, tcp) = (usize::from(cut.ip), usize::from(cut.tcp));
        let (headers, size) = (usize::from(cut.headers), usize::from(cut.size));
        let skipped = usize::from(number) * size;
        let payload = &self.bytes()[headers + skipped..];
        let payload = &payload[..payload.len().min(size)];
        let length = headers + payload.len();
        let Some(bytes) = segment.resize(length) else {
            return false;
        };
        bytes[..headers].copy_from_slice(&self.bytes[..headers]);
        bytes[headers..].copy_from_slice(payload);

        let flags = &mut bytes[tcp + 13];
        if number + 1 < cut.count {
            *flags &= !(FIN | PSH);
        }
        if number > 0 {
            *flags &= !CWR;
        }
        let sequence = &mut bytes[tcp + 4..tcp + 8];
        let mut from = [0; 4];
        from.copy_from_slice(sequence);
        let from = u32::from_be_bytes(from).wrapping_add(skipped as u32);
        sequence.copy_from_slice(&from.to_be_bytes());

        let addresses = match cut.protocol {
            Protocol::Tcp4 => {
                segment.put_u16(ip + 2, (length - ip) as u16);
                segment.add_u16(ip + 4, number);
                segment.put_u16(ip + 10, 0);
                let sum = !fold(sum(&segment.bytes[ip..tcp]));
                segment.put_u16(ip + 10, sum);
                ip + 12..ip + IPV4_HEADER
            }
            Protocol::Tcp6 => {
                segment.put_u16(ip + 4, (length - ip - IPV6_HEADER) as u16);
                ip + 8..ip + IPV6_HEADER
            }
        };
        let pseudo_header = sum(&segment.bytes[addresses]) + u64::from(TCP) + (length - tcp) as u64;
        segment.put_u16(tcp + TCP_CHECKSUM, fold(pseudo_header));
        segment.missing = self.missing;
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;

    use std::vec;

    use proptest::prelude::*;

    use super::*;

    /// A frame with these bytes.
    pub(crate) fn frame(bytes: &[u8]) -> Frame {
        let mut frame = Frame::try_new(bytes.len() > MAX_FRAME).unwrap();
        frame.resize(bytes.len()).unwrap().copy_from_slice(bytes);
        frame
    }

    /// A large frame of TCP with this payload, and the place of the header of TCP in it. `variant` says what comes
    /// before that: a tag, IPv6, options.
    pub(crate) fn tcp_frame(variant: u8, payload: &[u8]) -> (Vec<u8>, usize) {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if variant & 1 != 0 {
            bytes.extend([0x81, 0, 0, 7]);
        }
        if variant & 2 == 0 {
            let options = if variant & 4 == 0 { 0 } else { 8 };
            let total = (20 + options + 20 + payload.len()) as u16;
            bytes.extend([0x08, 0, 0x45 + options as u8 / 4, 0]);
            bytes.extend(total.to_be_bytes());
            bytes.extend([0xff, 0xfe, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            bytes.resize(bytes.len() + options, 1);
        } else {
            let options: &[u8] = if variant & 4 == 0 {
                &[]
            } else {
                &[TCP, 0, 1, 4, 0, 0, 0, 0]
            };
            let total = (options.len() + 20 + payload.len()) as u16;
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(total.to_be_bytes());
            bytes.extend([
                if options.is_empty() {
                    TCP
                } else {
                    DESTINATION_OPTIONS
                },
                64,
            ]);
            bytes.extend((0..32).map(|n| n * 7));
            bytes.extend(options);
        }
        let tcp = bytes.len();
        bytes.extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1]);
        bytes.extend([0x50, 0x10 | FIN | PSH | CWR, 0x20, 0, 0xab, 0xcd, 0, 0]);
        bytes.extend(payload);
        (bytes, tcp)
    }

    fn missing(tcp: usize) -> MissingChecksum {
        MissingChecksum {
            start: tcp as u16,
            offset: 16,
        }
    }

    /// What comes out in place of such a frame, with whole checksums.
    fn segments(bytes: &[u8], tcp: usize, protocol: Protocol, size: u16) -> Vec<Vec<u8>> {
        let mut large = frame(bytes);
        large.missing = Some(missing(tcp));
        assert!(large.set_segmentation(protocol, size));
        let mut segment = Frame::try_new(false).unwrap();
        let mut all = vec![];
        while large.cut(all.len() as u16, &mut segment) {
            segment.complete();
            all.push(segment.bytes().to_vec());
        }
        all
    }

    #[test]
    fn frames_have_a_length() {
        let mut frame = Frame::try_new(false).unwrap();
        assert!(frame.resize(13).is_none() && frame.resize(1519).is_none());
        assert_eq!(frame.resize(1518).unwrap().len(), 1518);
        assert_eq!(frame.wire_length(), 1542);
        frame.resize(14).unwrap();
        assert_eq!(frame.wire_length(), 84);
        let mut large = Frame::try_new(true).unwrap();
        assert!(large.resize(65_551).is_none() && large.resize(65_550).is_some());
    }

    #[test]
    fn a_missing_checksum_is_put_in() {
        // From RFC 1071, 3: the sum of these is ddf2.
        let words = [0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0];
        let mut frame = frame(&[&[0; 14][..], &words].concat());
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

    #[test]
    fn a_large_frame_is_cut_as_its_sender_would_have_done() {
        let payload: Vec<u8> = (0..2500).map(|n| n as u8).collect();
        let (bytes, tcp) = tcp_frame(0, &payload);
        let all = segments(&bytes, tcp, Protocol::Tcp4, 1000);
        let lengths: Vec<usize> = all.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1054, 1054, 554]);
        for (segment, (id, sequence, flags)) in all.iter().zip([
            ([0xff, 0xfe], 0xffff_ff00u32, 0x10 | CWR),
            ([0xff, 0xff], 0x0000_02e8, 0x10),
            ([0x00, 0x00], 0x0000_06d0, 0x10 | FIN | PSH),
        ]) {
            assert_eq!(segment[18..20], id);
            assert_eq!(segment[38..42], sequence.to_be_bytes());
            assert_eq!(segment[47], flags);
        }
    }

    #[test]
    fn what_is_not_to_be_cut_is_refused() {
        let (bytes, tcp) = tcp_frame(0, &[1; 3000]);
        let tries = |bytes: &[u8], protocol, size, missing| {
            let mut large = frame(bytes);
            large.missing = missing;
            large.set_segmentation(protocol, size)
        };
        let good = Some(missing(tcp));
        assert!(tries(&bytes, Protocol::Tcp4, 1000, good));
        assert!(!tries(&bytes, Protocol::Tcp4, 0, good), "no size");
        assert!(!tries(&bytes, Protocol::Tcp4, 2, good), "too many");
        assert!(!tries(&bytes, Protocol::Tcp4, 1465, good), "too long");
        assert!(!tries(&bytes, Protocol::Tcp6, 1000, good));
        assert!(!tries(&bytes, Protocol::Tcp4, 1000, None), "no checksum");
        assert!(
            !tries(&bytes[..tcp + 20], Protocol::Tcp4, 1000, good),
            "no payload"
        );
        assert!(!tries(&bytes[..20], Protocol::Tcp4, 1000, good));
        for (start, offset) in [(tcp as u16 + 4, 16), (tcp as u16, 6), (0, 0)] {
            let wrong = Some(MissingChecksum { start, offset });
            assert!(!tries(&bytes, Protocol::Tcp4, 1000, wrong));
        }
        // A fragment, another protocol, and headers that are too short or too long.
        for (at, value) in [
            (20, 0x20),
            (21, 1),
            (23, 17),
            (14, 0x44),
            (14, 0x4f),
            (46, 0x40),
            (12, 0),
        ] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(!tries(&wrong, Protocol::Tcp4, 1000, good), "at {at}");
        }
        let (bytes, tcp) = tcp_frame(6, &[1; 3000]);
        let good = Some(missing(tcp));
        assert!(tries(&bytes, Protocol::Tcp6, 1000, good));
        // A routing header, and options without end.
        for (at, value) in [(20, 43), (54, 60), (55, 255)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(!tries(&wrong, Protocol::Tcp6, 1000, good), "at {at}");
        }
    }

    proptest! {
        #[test]
        fn what_has_its_checksum_sums_up_to_ones(
            payload in proptest::collection::vec(any::<u8>(), 2..1500),
            offset in any::<u16>(),
        ) {
            let offset = (offset % (payload.len() as u16 - 1)) & !1;
            let mut frame = frame(&[&[0; 14][..], &payload].concat());
            frame.missing = Some(MissingChecksum { start: 14, offset });
            // A sum of the pseudo-header, which the sum at the end is to take in.
            frame.complete();
            let again = u32::from(fold(sum(&frame.bytes()[14..])));
            let at = usize::from(offset);
            let before = u16::from_be_bytes([payload[at], payload[at + 1]]);
            // The complement of (rest + before) is added to the rest: ones, less what was before.
            prop_assert_eq!(again % 0xffff, u32::from(0xffff - before) % 0xffff);
        }

        /// Segments have the payload one after the other, and sums as they are to be.
        #[test]
        fn segments_are_the_whole_in_order(
            variant in 0..8u8,
            payload in proptest::collection::vec(any::<u8>(), 1..20_000),
            size in 64..1400u16,
        ) {
            let protocol = if variant & 2 == 0 { Protocol::Tcp4 } else { Protocol::Tcp6 };
            let (bytes, tcp) = tcp_frame(variant, &payload);
            let ip = 14 + usize::from(variant & 1) * 4;
            let all = segments(&bytes, tcp, protocol, size);
            prop_assert_eq!(all.len(), payload.len().div_ceil(size.into()));
            let mut together: Vec<u8> = vec![];
            for segment in &all {
                prop_assert_eq!(&segment[..ip], &bytes[..ip]);
                let length = segment.len() - ip;
                let (said, addresses) = if variant & 2 == 0 {
                    prop_assert_eq!(fold(sum(&segment[ip..tcp])), 0xffff);
                    (0, ip + 12..ip + 20)
                } else {
                    (40, ip + 8..ip + 40)
                };
                let place = if said == 0 { ip + 2 } else { ip + 4 };
                prop_assert_eq!(&segment[place..place + 2], &((length - said) as u16).to_be_bytes()[..]);
                let pseudo = sum(&segment[addresses]) + u64::from(TCP) + (segment.len() - tcp) as u64;
                prop_assert_eq!(fold(pseudo + sum(&segment[tcp..])), 0xffff);
                let sequence = u32::from_be_bytes(segment[tcp + 4..tcp + 8].try_into().unwrap());
                prop_assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(together.len() as u32));
                together.extend(&segment[tcp + 20..]);
            }
            prop_assert_eq!(together, payload);
        }
    }
}
