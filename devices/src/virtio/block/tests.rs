extern crate std;

use alloc::sync::Arc;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;
use spin::Mutex;

use super::*;
use crate::virtio::disk::image::DiskImage;
use crate::virtio::disk::test_image::{entry, put, qcow2, raw, recognized};
use crate::virtio::driver::{BUFFERS, Buffer, Driver, Layout, Ram};
use crate::virtio::hostile::{self, Random};
use crate::virtio::queue::QueueFeatures;

const FEATURES: QueueFeatures = QueueFeatures {
    indirect: true,
    event_index: true,
};
/// The places of the header, the status and the data of a request.
const AT_HEADER: u64 = BUFFERS;
const AT_STATUS: u64 = BUFFERS + 16;
const AT_DATA: u64 = BUFFERS + 0x1000;

fn block(disk: SharedDisk) -> Block {
    Block::new(disk, "the disk's name".into())
}

/// A disk of these many bytes, with a driver.
struct Machine<'a> {
    block: Block,
    queue: Queue,
    driver: Driver<'a>,
    ram: &'a Ram,
}

impl<'a> Machine<'a> {
    fn new(ram: &'a Ram, length: usize, read_only: bool) -> Self {
        let base: Vec<u8> = (0..length).map(|n| (n / 512) as u8).collect();
        Self::with_image(ram, raw(base), read_only)
    }

    fn with_image(ram: &'a Ram, image: DiskImage<'static>, read_only: bool) -> Self {
        let disk = Disk::new(image, read_only, || true).unwrap();
        let driver = Driver::new(ram, 128, true);
        Self {
            block: block(Arc::new(Mutex::new(disk))),
            queue: Queue::new(driver.at, FEATURES).unwrap(),
            driver,
            ram,
        }
    }

    /// Makes a request with these buffers between its header and its status.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.ram.put(AT_HEADER, &header);
        self.ram.put(AT_STATUS, &[0xee]);
        let mut buffers = vec![(AT_HEADER, 16, false)];
        buffers.extend(data);
        buffers.push((AT_STATUS, 1, true));
        self.driver.add(&buffers, Layout::Indirect).unwrap().0
    }

    /// Lets the device work until it is idle; how often it had to be called.
    fn work(&mut self) -> Result<u32, DeviceError> {
        for call in 1.. {
            if self.block.work(0, &mut self.queue, self.ram)? == Progress::Idle {
                return Ok(call);
            }
        }
        unreachable!()
    }

    /// Makes a request and returns its status, and how many bytes were written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let head = self.ask(kind, sector, data);
        self.work().unwrap();
        let (answered, length) = self.driver.take_back().expect("an answer");
        assert_eq!(answered, head);
        (self.ram.bytes(AT_STATUS, 1)[0], length)
    }
}

#[test]
fn sectors_are_read_and_written() {
    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 64 * 512, false);
    let read = &[(AT_DATA, 300, true), (AT_DATA + 0x1000, 724, true)];
    assert_eq!(machine.request(request::IN, 62, read), (0, 1025));
    assert_eq!(ram.bytes(AT_DATA, 300), [62; 300]);
    assert_eq!(ram.bytes(AT_DATA + 0x1000, 212), [62; 212]);
    assert_eq!(ram.bytes(AT_DATA + 0x1000 + 212, 512), [63; 512]);
    ram.put(AT_DATA, &[0xaa; 1024]);
    let write = &[(AT_DATA, 1, false), (AT_DATA, 1023, false)];
    assert_eq!(machine.request(request::OUT, 7, write), (0, 1));
    assert_eq!(machine.request(request::FLUSH, 0, &[]), (0, 1));
    let read = &[(AT_DATA, 2048, true)];
    assert_eq!(machine.request(request::IN, 6, read).0, 0);
    let expected = [[6; 512], [0xaa; 512], [0xaa; 512], [9; 512]].concat();
    assert_eq!(ram.bytes(AT_DATA, 2048), expected);
}

#[test]
fn what_is_not_there_is_an_error_for_the_request_alone() {
    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 64 * 512, false);
    let read = &[(AT_DATA, 512, true)];
    for (kind, sector, data, status) in [
        (request::IN, 64, &[(AT_DATA, 512, true)][..], 1),
        (request::IN, u64::MAX, read, 1),
        (request::IN, 63, &[(AT_DATA, 1024, true)], 1),
        (request::IN, 0, &[(AT_DATA, 511, true)], 1),
        (request::OUT, 63, &[(AT_DATA, 1024, false)], 1),
        (request::OUT, 0, &[(AT_DATA, 1, false)], 1),
        (2, 0, read, 2),
        (99, 0, &[], 2),
        (request::GET_ID, 0, &[(AT_DATA, 19, true)], 1),
        (request::DISCARD, 0, &[(AT_DATA, 15, false)], 1),
    ] {
        assert_eq!(
            machine.request(kind, sector, data).0,
            status,
            "{kind} {sector}"
        );
    }
    assert_eq!(machine.request(request::IN, 63, read).0, 0);
}

#[test]
fn a_read_only_disk_says_so_and_is_not_written() {
    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 64 * 512, true);
    assert_eq!(machine.block.features() & feature::RO, feature::RO);
    assert_eq!(machine.block.features() & feature::DISCARD, 0);
    let write = &[(AT_DATA, 512, false)];
    assert_eq!(machine.request(request::OUT, 0, write).0, 1);
    assert_eq!(
        machine.request(request::IN, 0, &[(AT_DATA, 512, true)]).0,
        0
    );
}

#[test]
fn the_disk_tells_its_name_and_its_size() {
    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 1000 * 512 + 1, false);
    let size: [u8; 8] = core::array::from_fn(|n| machine.block.config(n));
    assert_eq!(u64::from_le_bytes(size), 1001);
    let block_size: [u8; 4] = core::array::from_fn(|n| machine.block.config(20 + n));
    assert_eq!(u32::from_le_bytes(block_size), 512);
    assert_eq!(machine.block.config(0xfff), 0);
    assert_eq!(
        machine
            .request(request::GET_ID, 0, &[(AT_DATA, 20, true)])
            .0,
        0
    );
    assert_eq!(ram.bytes(AT_DATA, 20), b"the disk's name\0\0\0\0\0");
}

#[test]
fn a_discard_gives_memory_back_and_leaves_zeros() {
    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 64 * 512, false);
    ram.put(AT_DATA, &[0xaa; 8192]);
    assert_eq!(
        machine
            .request(request::OUT, 8, &[(AT_DATA, 8192, false)])
            .0,
        0
    );
    assert_eq!(machine.block.disk.lock().own_pages(), 2);
    let segment = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        ram.put(AT_DATA, &bytes);
        [(AT_DATA, 16, false)]
    };
    let data = segment(8, 8, 0);
    assert_eq!(machine.request(request::DISCARD, 0, &data), (0, 1));
    assert_eq!(machine.block.disk.lock().own_pages(), 1);
    let data = segment(16, 1, UNMAP);
    assert_eq!(machine.request(request::WRITE_ZEROES, 0, &data), (0, 1));
    assert_eq!(
        machine.request(request::IN, 15, &[(AT_DATA, 1536, true)]).0,
        0
    );
    let expected = [[0; 512], [0; 512], [0xaa; 512]].concat();
    assert_eq!(ram.bytes(AT_DATA, 1536), expected);
    for (sector, count, flags, status) in [
        (64, 1, 0, 1),
        (u64::MAX, u32::MAX, 0, 1),
        (0, DISCARD_SECTORS + 1, 0, 1),
        (0, 1, UNMAP, 2),
    ] {
        let data = segment(sector, count, flags);
        assert_eq!(machine.request(request::DISCARD, 0, &data).0, status);
    }
}

#[test]
fn a_long_transfer_is_made_in_pieces() {
    const LENGTH: u32 = 700 << 10;
    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 1 << 20, false);
    machine.ask(request::IN, 3, &[(AT_DATA, LENGTH, true)]);
    assert_eq!(machine.work(), Ok(3));
    assert_eq!(machine.driver.take_back().unwrap().1, LENGTH + 1);
    let expected: Vec<u8> = (0..LENGTH).map(|n| (3 + n / 512) as u8).collect();
    assert!(ram.bytes(AT_DATA, LENGTH as usize) == expected);
    // A reset in the middle of one is the end of it.
    machine.ask(request::IN, 3, &[(AT_DATA, LENGTH, true)]);
    let progress = machine.block.work(0, &mut machine.queue, &ram);
    assert_eq!(progress, Ok(Progress::Busy));
    machine.block.reset();
    let progress = machine.block.work(0, &mut machine.queue, &ram);
    assert_eq!(progress, Ok(Progress::Idle));
    assert_eq!(machine.driver.take_back(), None);
}

/// As after a power cut: the part of a request that was not worked on is lost, and nothing else is.
#[test]
fn a_disk_outlives_its_device_with_all_that_was_answered() {
    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 4096 * 512, false);
    ram.put(AT_DATA, &[0xaa; 512]);
    assert_eq!(
        machine.request(request::OUT, 5, &[(AT_DATA, 512, false)]).0,
        0
    );
    const LENGTH: u32 = 1 << 20;
    ram.put(AT_DATA, &vec![0xbb; LENGTH as usize]);
    machine.ask(request::OUT, 8, &[(AT_DATA, LENGTH, false)]);
    let progress = machine.block.work(0, &mut machine.queue, &ram);
    assert_eq!(progress, Ok(Progress::Busy));
    let disk = machine.block.disk.clone();

    let ram = Ram::new(2 << 20);
    let mut machine = Machine::new(&ram, 512, false);
    machine.block = block(disk);
    let read = &[(AT_DATA, LENGTH, true)];
    assert_eq!(machine.request(request::IN, 0, read), (0, LENGTH + 1));
    let now = ram.bytes(AT_DATA, LENGTH as usize);
    let sector = |n: usize| now[n * 512];
    assert_eq!([4, 5, 6].map(sector), [4, 0xaa, 6]);
    let written = (8..2048).take_while(|&n| sector(n) == 0xbb).count();
    assert!((1..2040).contains(&written), "{written} sectors");
    let old = |n: usize| now[n * 512..][..512].iter().all(|&byte| byte == n as u8);
    assert!((8 + written..2048).all(old), "whole sectors are old or new");
}

#[test]
fn a_compressed_disk_is_unpacked_in_turns_and_its_damage_is_an_error_for_the_request_alone() {
    const SIZE: usize = 3 << 16;
    let ram = Ram::new(2 << 20);
    let contents: Vec<u8> = (0..SIZE).map(|n| (n / 512 * 7 + n % 251) as u8).collect();
    let mut image = qcow2(&contents, 16, |_| false);
    put(&mut image, entry(16, 1), 1 << 40);
    let mut machine = Machine::with_image(&ram, recognized(image), false);
    machine.ask(request::IN, 1, &[(AT_DATA, 1024, true)]);
    let progress = machine.block.work(0, &mut machine.queue, &ram);
    assert_eq!(progress, Ok(Progress::Busy));
    assert!(machine.work().unwrap() > 1);
    assert_eq!(machine.driver.take_back().unwrap().1, 1025);
    assert_eq!(ram.bytes(AT_DATA, 1024), contents[512..1536]);
    // Of it, the second cluster is damaged, and can be written all the same; by pages.
    let read = &[(AT_DATA, SIZE as u32, true)];
    assert_eq!(machine.request(request::IN, 0, read).0, 1);
    let write = &[(AT_DATA, 512, false)];
    assert_eq!(machine.request(request::OUT, 128, write).0, 1);
    let mut expected = contents;
    expected[1 << 16..2 << 16].fill(0xaa);
    ram.put(AT_DATA, &[0xaa; 1 << 16]);
    let write = &[(AT_DATA, 1 << 16, false)];
    assert_eq!(machine.request(request::OUT, 128, write).0, 0);
    // A discard of parts of pages needs what is around them.
    let mut segment = 3_u64.to_le_bytes().to_vec();
    segment.extend(10_u64.to_le_bytes());
    ram.put(AT_DATA, &segment);
    let data = [(AT_DATA, 16, false)];
    assert_eq!(machine.request(request::DISCARD, 0, &data), (0, 1));
    expected[3 * 512..13 * 512].fill(0);
    assert_eq!(machine.request(request::IN, 0, read), (0, SIZE as u32 + 1));
    assert!(ram.bytes(AT_DATA, SIZE) == expected);
}

#[test]
fn requests_that_cannot_be_answered_need_a_reset() {
    for buffers in [
        // No room for a status; a header that is cut off; data that is not RAM.
        &[(AT_HEADER, 16, false)][..],
        &[(AT_HEADER, 15, false), (AT_STATUS, 1, true)],
        &[(AT_STATUS, 1, true)],
        &[(AT_HEADER, 16, false), (AT_STATUS, 0, true)],
        &[
            (AT_HEADER, 16, false),
            (2 << 20, 512, true),
            (AT_STATUS, 1, true),
        ],
        &[(AT_HEADER, 16, false), (2 << 20, 1, true)],
    ] {
        let ram = Ram::new(2 << 20);
        let mut machine = Machine::new(&ram, 64 * 512, false);
        machine.driver.add(buffers, Layout::Indirect).unwrap();
        assert!(machine.work().is_err(), "{buffers:x?}");
    }
}

/// A header like that of a request.
fn some_header(random: &mut Random) -> [u8; 16] {
    let kinds = [
        request::IN,
        request::IN,
        request::OUT,
        request::OUT,
        request::FLUSH,
        request::GET_ID,
        request::DISCARD,
        request::WRITE_ZEROES,
        u32::MAX,
    ];
    let far = random.next();
    let sector = random.below(300);
    let sector = random.pick(&[sector, sector, sector, far]);
    let mut header = [0; 16];
    header[..4].copy_from_slice(&random.pick(&kinds).to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// What a driver may ask for.
fn any_request() -> impl Strategy<Value = (u32, u64, u32, u8)> {
    (
        prop_oneof![Just(request::IN), Just(request::OUT), any::<u32>()],
        0..260u64,
        0..40u32,
        any::<u8>(),
    )
}

proptest! {
    /// The device ends soon each time, writes where it may, and serves a good driver afterwards; a
    /// disk that can only be read is what it was.
    #[test]
    fn a_driver_that_means_harm_gets_answers_or_a_reset(seed: u64, read_only: bool, compressed: bool) {
        const SECTORS: usize = 256;
        let ram = Ram::new(2 << 20);
        let contents: Vec<u8> = (0..SECTORS * 512).map(|n| (n / 512) as u8).collect();
        let image = if compressed { recognized(qcow2(&contents, 14, |_| false)) } else { raw(contents) };
        let mut machine = Machine::with_image(&ram, image, read_only);
        hostile::torment(&mut machine.block, seed, some_header, &mut || {});
        prop_assert!(machine.block.disk.lock().own_pages() <= SECTORS / 8);
        let length = SECTORS as u32 * 512;
        prop_assert_eq!(machine.request(request::IN, 0, &[(AT_DATA, length, true)]), (0, length + 1));
        if read_only {
            let contents = ram.bytes(AT_DATA, length as usize);
            prop_assert!(contents.iter().enumerate().all(|(n, &byte)| byte == (n / 512) as u8));
        }
    }

    /// Against an array of sectors: reads give what was written last, and nothing else changes.
    #[test]
    fn a_disk_keeps_what_is_written(requests in proptest::collection::vec(any_request(), 0..40)) {
        const SECTORS: usize = 256;
        let ram = Ram::new(2 << 20);
        let mut machine = Machine::new(&ram, SECTORS * 512, false);
        let mut model: Vec<u8> = (0..SECTORS).map(|n| n as u8).collect();
        for (kind, sector, count, fill) in requests {
            let fits = sector as usize + count as usize <= SECTORS;
            let length = count * 512;
            match kind {
                request::IN => {
                    let status = machine.request(kind, sector, &[(AT_DATA, length, true)]).0;
                    prop_assert_eq!(status, u8::from(!fits));
                    if fits {
                        let read = ram.bytes(AT_DATA, length as usize);
                        for (n, bytes) in read.chunks(512).enumerate() {
                            let expected = model[sector as usize + n];
                            prop_assert!(bytes.iter().all(|&byte| byte == expected));
                        }
                    }
                }
                request::OUT => {
                    ram.put(AT_DATA, &vec![fill; length as usize]);
                    let status = machine.request(kind, sector, &[(AT_DATA, length, false)]).0;
                    prop_assert_eq!(status, u8::from(!fits));
                    if fits {
                        model[sector as usize..][..count as usize].fill(fill);
                    }
                }
                _ => {
                    let (status, _) = machine.request(kind, sector, &[]);
                    prop_assert!(status <= 2);
                }
            }
        }
    }
}

mod fuzz {
    use super::*;

    #[test]
    fn requests_and_rings_of_a_disk() {
        const SECTORS: usize = 256;
        fuzzing::check!()
            .with_type::<(Vec<u32>, bool)>()
            .for_each(|(numbers, read_only)| {
                let ram = Ram::new(2 << 20);
                let mut machine = Machine::new(&ram, SECTORS * 512, *read_only);
                let random = Random::beginning_with(numbers);
                hostile::torment_by(&mut machine.block, random, some_header, &mut || {});
                assert!(machine.block.disk.lock().own_pages() <= SECTORS / 8);
                let length = SECTORS as u32 * 512;
                let answer = machine.request(request::IN, 0, &[(AT_DATA, length, true)]);
                assert_eq!(answer, (0, length + 1));
                if *read_only {
                    let contents = ram.bytes(AT_DATA, length as usize);
                    let is_old = |(n, &byte): (usize, &u8)| byte == (n / 512) as u8;
                    assert!(contents.iter().enumerate().all(is_old));
                }
            });
    }
}
