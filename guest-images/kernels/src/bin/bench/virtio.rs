//! What a disk and a network cost: a read of 4 KiB, and a packet of 1,500 bytes that another VM sends back. Each
//! alone, where the kernel halts until an interrupt says that it is done, and many at once.
//!
//! The disk's sectors must begin with their own numbers, of 64 bits; the other VM is this kernel with `echo=1`.

use core::arch::asm;

use arch::apic::{Register, delivery_mode};
use arch::paging::PAGE_SIZE;
use kernels::interrupts::{Frame, let_in, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::virtio::device::{BLOCK, NETWORK, VERSION_1, read};
use kernels::virtio::{Buffer, Device, Queue};
use kernels::{Report, memory, println, serial, tsc};

use super::{has_operator, measure, rounds};

const VECTOR: u8 = 0x51;
/// The message of the queues that interrupt.
const MESSAGE: u16 = 0;
/// How many go at once in the batched measurements.
const BATCH: u16 = 16;

/// A sector of a disk, in bytes (5.2), and what a read is of.
const SECTOR: u64 = 512;
const READ: u32 = 4096;
const SECTORS: u64 = READ as u64 / SECTOR;
/// The header of a request, and the result that is good (5.2.6).
const HEADER: u32 = 16;
const OK: u8 = 0;

/// The feature by which a card tells its address (5.1.3).
const MAC: u64 = 1 << 5;
/// The header in front of each frame (5.1.6), and the two addresses, the type and the packet behind it.
const NET_HEADER: u64 = 12;
const ADDRESSES: u64 = 12;
const PACKET: u32 = 1500;
const FRAME: u32 = NET_HEADER as u32 + 14 + PACKET;
/// The type of a frame that is for experiments (IEEE 802, local experimental EtherType 1), as it goes over the wire.
const ETHERTYPE: u16 = 0x88b5_u16.to_be();
const BROADCAST: u64 = 0xffff_ffff_ffff;
/// The place of a buffer for a frame.
const SLOT: u64 = PAGE_SIZE / 2;

/// How long an answer may take, in ticks, before it is lost.
const PATIENCE: u64 = 10_000_000;
/// How often the other VM is asked whether it is there.
const TRIES: u32 = 500;

fn handle(_: &mut Frame) {
    Lapic::current().end();
}

/// Halts until there is something to take from `queue`.
fn wait_for(queue: &Queue) {
    let_in();
    while !queue.has_used() {
        // SAFETY: the handlers keep all registers. Nothing comes in between STI and HLT.
        unsafe { asm!("sti", "hlt", "cli") };
    }
}

/// Finds the device of this type and agrees with it on `features`; its interrupts come in by messages.
fn find(kind: u16, features: u64) -> Option<Device> {
    let device = Device::all().find(|device| device.kind == kind)?;
    if !device.begin(VERSION_1 | features) {
        return None;
    }
    device.use_messages(true);
    device.set_message(MESSAGE, VECTOR);
    Some(device)
}

/// Counts the exits of `operation`, which is `of` operations in one, by the operator; not if there is none.
fn count(name: &str, of: usize, mut operation: impl FnMut()) {
    if !has_operator() {
        return;
    }
    println!("bench: to be counted {name} {}", of * rounds());
    let _ = serial::wait();
    for _ in 0..rounds() {
        operation();
    }
    // Always as long: each byte is an exit or two.
    println!("bench: counted");
    let _ = serial::wait();
}

/// A disk with one queue.
struct Disk {
    queue: Queue,
    capacity: u64,
    /// A page of headers and results, and one of data for each of a batch.
    headers: u64,
    data: [u64; BATCH as usize],
    sector: u64,
}

impl Disk {
    fn find() -> Option<Self> {
        let device = find(BLOCK, 0)?;
        let queue = Queue::new(device, 0, Some(MESSAGE));
        device.go();
        Some(Self {
            queue,
            capacity: read(device.specific, 4).into(),
            headers: memory::allocate() as u64,
            data: core::array::from_fn(|_| memory::allocate() as u64),
            sector: 0,
        })
    }

    /// Returns the place of the header of the request `n` of a batch, and the sector that it is for.
    fn request(&self, n: u16) -> (u64, u64) {
        let n = u64::from(n);
        let sector = (self.sector + SECTORS * n) % self.capacity;
        (self.headers + 32 * n, sector)
    }

    /// Reads the next `count` blocks at once. Returns whether all came, and hold their numbers.
    fn read(&mut self, count: u16) -> bool {
        for n in 0..count {
            let (header, sector) = self.request(n);
            // SAFETY: the header's place, which the device does not use now.
            unsafe {
                (header as *mut [u64; 2]).write_volatile([0, sector]);
                (header as *mut u8).add(HEADER as usize).write_volatile(!OK);
                (self.data[usize::from(n)] as *mut u64).write_volatile(u64::MAX);
            }
            let buffers = [
                Buffer::read(header, HEADER),
                Buffer::written(self.data[usize::from(n)], READ),
                Buffer::written(header + u64::from(HEADER), 1),
            ];
            self.queue.add(3 * n, &buffers);
        }
        self.queue.notify();
        for _ in 0..count {
            wait_for(&self.queue);
            let _ = self.queue.take();
        }
        let is_right = (0..count).all(|n| {
            let (header, sector) = self.request(n);
            // SAFETY: as above.
            unsafe {
                (header as *const u8).add(HEADER as usize).read_volatile() == OK
                    && (self.data[usize::from(n)] as *const u64).read_volatile() == sector
            }
        });
        (_, self.sector) = self.request(count);
        is_right
    }
}

/// A network card with its two queues.
struct Card {
    receive: Queue,
    send: Queue,
    address: u64,
    /// The buffers to receive in, two in a page, and the one frame that is sent.
    pages: [u64; BATCH as usize],
    frame: u64,
}

impl Card {
    fn find() -> Option<Self> {
        let device = find(NETWORK, MAC)?;
        let receive = Queue::new(device, 0, Some(MESSAGE));
        let send = Queue::new(device, 1, None);
        device.go();
        let low = u64::from(read(device.specific, 4));
        let mut card = Self {
            receive,
            send,
            address: low | u64::from(read(device.specific + 4, 2)) << 32,
            pages: core::array::from_fn(|_| memory::allocate() as u64),
            frame: memory::allocate() as u64,
        };
        for slot in 0..2 * BATCH {
            card.offer(slot);
        }
        card.receive.notify();
        Some(card)
    }

    fn slot(&self, slot: u16) -> u64 {
        self.pages[usize::from(slot / 2)] + SLOT * u64::from(slot % 2)
    }

    /// Gives the card a buffer to receive in.
    fn offer(&mut self, slot: u16) {
        let buffer = Buffer::written(self.slot(slot), SLOT as u32);
        self.receive.add(slot, &[buffer]);
    }

    /// Adds the frame at `place`, for somebody, to those that are sent with the next notification.
    fn add(&mut self, descriptor: u16, place: u64, to: u64) {
        let from = self.address;
        // SAFETY: the frame's place, which the device does not use now.
        unsafe {
            (place as *mut [u8; NET_HEADER as usize]).write_volatile([0; NET_HEADER as usize]);
            let addresses = (place + NET_HEADER) as *mut u64;
            addresses.write_unaligned(to | from << 48);
            addresses
                .byte_add(8)
                .cast::<u32>()
                .write_unaligned((from >> 16) as u32);
            let ethertype = (place + NET_HEADER + ADDRESSES) as *mut u16;
            ethertype.write_unaligned(ETHERTYPE);
        }
        self.send.add(descriptor, &[Buffer::read(place, FRAME)]);
    }

    /// Takes back all that has been sent.
    fn reclaim(&mut self) {
        while self.send.take().is_some() {}
    }
}

/// The address that a frame is from.
fn sender(frame: u64) -> u64 {
    // SAFETY: a frame that was received is longer.
    let bytes = unsafe { ((frame + NET_HEADER + 6) as *const u64).read_unaligned() };
    bytes & BROADCAST
}

/// The first and the last bytes of a packet.
fn ends(frame: u64) -> [*mut u64; 2] {
    let end = frame + u64::from(FRAME);
    [(end - u64::from(PACKET)) as *mut u64, (end - 8) as *mut u64]
}

/// Sends `count` packets to `to` and waits until all have come back. Returns from whom, if all that came back is
/// what was sent.
fn exchange(card: &mut Card, to: u64, count: u16, mark: u64) -> Option<u64> {
    for end in ends(card.frame) {
        // SAFETY: within the frame, which is not being sent.
        unsafe { end.write_unaligned(mark) };
    }
    for n in 0..count {
        card.add(n, card.frame, to);
    }
    card.send.notify();
    let mut from = None;
    for _ in 0..count {
        wait_for(&card.receive);
        let (slot, length) = card.receive.take()?;
        let place = card.slot(slot);
        // SAFETY: within the buffer.
        let is_whole = ends(place).map(|end| unsafe { end.read_unaligned() }) == [mark; 2];
        from = (is_whole && length == FRAME).then(|| sender(place));
        card.offer(slot);
        from?;
    }
    card.receive.notify();
    card.reclaim();
    from
}

/// Finds out who answers, or that nobody does.
fn partner(card: &mut Card) -> Option<u64> {
    for _ in 0..TRIES {
        card.add(0, card.frame, BROADCAST);
        card.send.notify();
        let is_answered = tsc::wait_until(PATIENCE, || card.receive.has_used());
        card.reclaim();
        if is_answered {
            let (slot, _) = card.receive.take()?;
            let from = sender(card.slot(slot));
            card.offer(slot);
            forget_late(card);
            return Some(from);
        }
    }
    None
}

/// Takes what else comes until nothing does any more: a network that keeps what nobody receives yet brings all the
/// questions when somebody does, so that there are as many answers.
fn forget_late(card: &mut Card) {
    while tsc::wait_until(PATIENCE, || card.receive.has_used()) {
        while let Some((slot, _)) = card.receive.take() {
            card.offer(slot);
        }
        card.receive.notify();
    }
}

/// Sends back all that comes in.
pub(crate) fn echo() -> ! {
    let _ = Lapic::enable(Mode::XApic);
    set_handler(VECTOR, handle);
    let mut card = Card::find().expect("a network card");
    let mut unsent = 0;
    loop {
        wait_for(&card.receive);
        // All that is there goes back at once, each frame in the buffer that it came in.
        while let Some((slot, _)) = card.receive.take() {
            let place = card.slot(slot);
            card.add(slot, place, sender(place));
            unsent += 1;
        }
        card.send.notify();
        // A buffer is free when its frame has been sent: with the notification, or later, by somebody who may need this
        // CPU for it. So that is waited for only where less than a batch could come in.
        let before = unsent;
        loop {
            while let Some((slot, _)) = card.send.take() {
                card.offer(slot);
                unsent -= 1;
            }
            if unsent <= BATCH {
                break;
            }
        }
        if unsent < before {
            card.receive.notify();
        }
    }
}

/// Measures a disk and a network, each if there is one.
pub(crate) fn measure_all(report: &mut Report) {
    // The operator's answers come in by the 8259.
    Lapic::current().write(Register::LVT_LINT0, delivery_mode::EXT_INT);
    set_handler(VECTOR, handle);
    count("nothing", 1, || {});
    if let Some(mut disk) = Disk::find() {
        let mut is_right = true;
        for (name, blocks) in [("virtio_blk_read", 1), ("virtio_blk_read_batched", BATCH)] {
            measure(report, name, || {
                let start = tsc::now();
                is_right &= disk.read(blocks);
                (tsc::now() - start) / u64::from(blocks)
            });
            count(name, blocks.into(), || is_right &= disk.read(blocks));
        }
        report.holds("what was read is what the disk has", is_right);
    } else {
        report.skip("virtio_blk_read", "no disk");
    }
    let Some(mut card) = Card::find() else {
        return report.skip("virtio_net_packet", "no network card");
    };
    let Some(to) = partner(&mut card) else {
        return report.skip("virtio_net_packet", "nobody answers");
    };
    let mut mark = 0;
    let mut is_right = true;
    for (name, packets) in [
        ("virtio_net_packet", 1),
        ("virtio_net_packet_batched", BATCH),
    ] {
        let mut exchange = || {
            mark += 1;
            is_right &= exchange(&mut card, to, packets, mark) == Some(to);
        };
        // Each is on its way twice.
        measure(report, name, || {
            let start = tsc::now();
            exchange();
            (tsc::now() - start) / (2 * u64::from(packets))
        });
        // And each way is sent by one and received by the other.
        count(name, 4 * usize::from(packets), exchange);
    }
    report.holds("what came back is what was sent", is_right);
}
