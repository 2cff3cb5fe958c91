//! Memory that devices are told of: rings, tables and buffers, with anything in them.
//!
//! Each address that a device is told is in this memory, or beyond all RAM. But what devices write may be taken for
//! an address later, so that the kernel can be hit, if seldom.

use kernels::dice::Dice;

use kernels::virtio::device::{BLOCK, Placement};

/// The bytes of it.
const SIZE: usize = 0x2_0000;
/// The distance between the rings of two queues, and the places of their parts in that.
const QUEUE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1800;
/// The place of buffers and indirect tables: behind the rings of four queues.
const BUFFERS: u64 = 4 * QUEUE;

/// Flags of descriptors (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The end of RAM, for a kernel that has 16 MiB.
const RAM_END: u64 = 1 << 24;
/// The start of the memory: at the end of RAM, so that what goes on behind it hits nothing.
const START: u64 = RAM_END - SIZE as u64;

/// Writes a number at an offset; what does not fit is left out.
fn put<T>(offset: u64, value: T) {
    if offset as usize <= SIZE - size_of::<T>() {
        // SAFETY: within the memory, which nothing else is in.
        unsafe { ((START + offset) as *mut T).write_unaligned(value) }
    }
}

fn get_u16(offset: u64) -> u16 {
    // SAFETY: all callers' offsets are those of rings.
    unsafe { ((START + offset) as *const u16).read_volatile() }
}

/// An address that a device may be told: mostly of a buffer.
fn address(dice: &mut Dice) -> u64 {
    match dice.below(24) {
        0 => u64::MAX - dice.below(64),
        1 => RAM_END - dice.below(2) + dice.any() % (1 << 46),
        2 => START + SIZE as u64 - dice.below(64),
        3 => START + dice.below(BUFFERS),
        4 => 0xfee0_0000 + dice.below(0x1000),
        _ => START + BUFFERS + 16 * dice.below(0x700),
    }
}

/// Lengths that some device may take, and absurd ones.
const LENGTHS: [u32; 14] = [
    0,
    1,
    11,
    12,
    16,
    17,
    32,
    512,
    513,
    1024,
    1530,
    4096,
    0x8000,
    u32::MAX,
];

fn put_descriptor(dice: &mut Dice, offset: u64, flags: u16, next: u16) {
    let flags = match dice.below(24) {
        0 => dice.any() as u16,
        1 => flags ^ NEXT,
        2 => flags ^ WRITE,
        3 => flags | INDIRECT,
        _ => flags,
    };
    put(offset, address(dice));
    put(offset + 8, dice.of(&LENGTHS));
    put(offset + 12, flags);
    put(offset + 14, next);
}

/// Returns where the queue `index` is to be: at its place, of a size that it can have, most of the time.
pub(crate) fn placement(dice: &mut Dice, index: u16) -> Placement {
    let base = START + QUEUE * u64::from(index % 4);
    let elsewhere = |dice: &mut Dice| match dice.below(3) {
        0 => RAM_END + dice.any() % (1 << 46),
        1 => u64::MAX - dice.below(64),
        _ => START + BUFFERS + dice.below(0x1000),
    };
    let mut at = Placement {
        size: dice.of(&[1, 2, 8, 64, 128]),
        descriptors: base,
        available: base + AVAILABLE,
        used: base + USED,
    };
    match dice.below(24) {
        0 => at.descriptors = elsewhere(dice),
        1 => at.available = elsewhere(dice),
        2 => at.used = elsewhere(dice),
        3 => at.size = dice.of(&[0, 3, 255]),
        4 => at.size = dice.any() as u16 | 0x400,
        _ => {}
    }
    // A new queue is empty, as far as the driver knows.
    put(QUEUE * u64::from(index % 4) + AVAILABLE, 0_u32);
    at
}

/// Makes a request of the queue `index` available: a header, data and a status, of which none need be so.
pub(crate) fn add(dice: &mut Dice, kind: u16, index: u16, size: u16) {
    let base = QUEUE * u64::from(index % 4);
    let size = u64::from(size.clamp(1, 128));
    let first = dice.below(size);
    let (place, last) = ((first + 1) % size, (first + 2) % size);
    let data = dice.of(&[NEXT, NEXT, NEXT | WRITE, NEXT | WRITE, INDIRECT]);
    for (n, next, flags) in [
        (first, place, NEXT),
        (place, last, data),
        (last, first, WRITE),
    ] {
        put_descriptor(dice, base + 16 * n, flags, next as u16);
    }
    if dice.once_in(4) {
        // A table of its own, whose entries may lead to themselves.
        let table = BUFFERS + 16 * dice.below(0x700);
        for n in 0..4 {
            let next = dice.below(6) as u16;
            let flags = dice.of(&[0, NEXT, NEXT | WRITE, WRITE]);
            put_descriptor(dice, table + 16 * n, flags, next);
        }
        put(base + 16 * first, START + table);
        put(base + 16 * first + 8, dice.of(&[64_u32, 16, 48, 63, 0]));
        put(base + 16 * first + 12, INDIRECT);
    } else if kind == BLOCK && !dice.once_in(4) {
        // A header as a disk has it (5.2.6): what to do, and the sector.
        let header = BUFFERS + 16 * dice.below(0x700);
        put(header, dice.of(&[0_u32, 1, 4, 8, 11, 13, 99]));
        put(header + 8, dice.of(&[0, 1, 7, 1 << 20, u64::MAX]));
        put(base + 16 * first, START + header);
        put(base + 16 * first + 8, 16_u32);
    }
    let index = get_u16(base + AVAILABLE + 2);
    let slot = u64::from(index) % size;
    put(base + AVAILABLE + 4 + 2 * slot, first as u16);
    let step = if dice.once_in(16) {
        dice.any() as u16
    } else {
        1
    };
    put(base + AVAILABLE + 2, index.wrapping_add(step));
    if dice.once_in(8) {
        // Something else in the rings, for no reason.
        put(base + dice.below(0x2000), dice.value() as u16);
    }
}

/// A queue with one buffer for the device to write, as a good driver has it.
pub(crate) fn good_queue() -> Placement {
    for offset in (0..BUFFERS + 16).step_by(8) {
        put(offset, 0_u64);
    }
    put(0, START + BUFFERS);
    put(8, 8_u32);
    put(12, WRITE);
    put(AVAILABLE + 2, 1_u16);
    Placement {
        size: 8,
        descriptors: START,
        available: START + AVAILABLE,
        used: START + USED,
    }
}

/// Returns whether the device has given the buffer of [`good_queue`] back, full.
pub(crate) fn is_served() -> bool {
    // SAFETY: within the memory.
    let length = unsafe { ((START + USED + 8) as *const u32).read_volatile() };
    get_u16(USED + 2) == 1 && length == 8
}
