extern crate std;

use std::vec;
use std::vec::Vec;

use miniz_oxide::deflate::compress_to_vec;
use proptest::prelude::*;

use super::test_image::{compressed, entry, put, qcow2, raw, recognized};
use super::*;

/// Bytes of which no two pages are the same; some are zeros.
fn contents(length: usize) -> Vec<u8> {
    let byte = |n: usize| {
        if n / PAGE % 5 == 3 {
            0
        } else {
            n / 7 + n / PAGE
        }
    };
    (0..length).map(|n| byte(n) as u8).collect()
}

fn disk(bytes: Vec<u8>, read_only: bool) -> Disk {
    Disk::new(raw(bytes), read_only, || true).unwrap()
}

/// Gives `access` new budgets until it is done; and how many it took.
fn with_patience<T>(
    mut access: impl FnMut(&mut Budget) -> Result<Option<T>, DiskError>,
) -> (Result<T, DiskError>, u32) {
    for turn in 1..100_000 {
        let mut budget = Budget::new();
        match access(&mut budget) {
            Ok(None) => assert!(budget.is_spent(), "given up too early"),
            Ok(Some(done)) => return (Ok(done), turn),
            Err(error) => return (Err(error), turn),
        }
    }
    panic!("it does not end")
}

impl Disk {
    fn bytes(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        with_patience(|budget| Ok(self.read(offset, length, budget)?.map(<[u8]>::to_vec))).0
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let length = bytes.len();
        with_patience(|budget| {
            let piece = self.write(offset, length, budget)?;
            Ok(piece.map(|piece| piece.copy_from_slice(bytes)))
        })
        .0
    }

    fn forget(&mut self, offset: u64, length: usize) -> Result<(), DiskError> {
        with_patience(|budget| self.discard(offset, length, budget)).0
    }

    /// All of it.
    fn everything(&mut self) -> Vec<u8> {
        let size = self.sectors() * SECTOR;
        let mut all = Vec::new();
        while (all.len() as u64) < size {
            let at = all.len() as u64;
            let piece = Disk::piece(at, size - at);
            all.extend(self.bytes(at, piece).unwrap());
        }
        all
    }
}

#[test]
fn only_what_is_written_takes_memory() {
    let original = contents(16 * PAGE);
    let mut disk = disk(original.clone(), false);
    assert_eq!((disk.sectors(), disk.own_pages()), (128, 0));
    disk.put(5 * PAGE as u64 + 7, &[0xaa]).unwrap();
    assert_eq!(disk.own_pages(), 1);
    let page = disk.bytes(5 * PAGE as u64, PAGE).unwrap();
    let original = &original[5 * PAGE..6 * PAGE];
    assert_eq!(
        (&page[..7], page[7], &page[8..]),
        (&original[..7], 0xaa, &original[8..])
    );
    disk.forget(5 * PAGE as u64, PAGE).unwrap();
    assert_eq!(disk.own_pages(), 0);
    assert_eq!(disk.bytes(5 * PAGE as u64, PAGE).unwrap(), [0; PAGE]);
}

#[test]
fn an_image_is_rounded_up_to_whole_sectors() {
    let original = contents(PAGE + 600);
    let mut rounded = original.clone();
    rounded.resize(10 * SECTOR as usize, 0);
    for image in [
        raw(original.clone()),
        recognized(qcow2(&original, 12, |_| true)),
        recognized(qcow2(&original, 12, |_| false)),
    ] {
        let mut disk = Disk::new(image, false, || true).unwrap();
        assert_eq!(disk.sectors(), 10);
        assert_eq!(disk.offset(9, 1), Ok(9 * SECTOR));
        assert_eq!(disk.offset(9, 2), Err(DiskError::OutOfRange));
        assert_eq!(disk.offset(u64::MAX, 2), Err(DiskError::OutOfRange));
        assert!(disk.everything() == rounded);
    }
    for empty in [raw(Vec::new()), recognized(qcow2(&[], 12, |_| true))] {
        let mut empty = Disk::new(empty, false, || true).unwrap();
        assert_eq!(empty.sectors(), 0);
        assert_eq!(empty.bytes(0, 1), Err(DiskError::OutOfRange));
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut disk = disk(contents(PAGE), true);
    assert_eq!(disk.put(0, &[1]), Err(DiskError::ReadOnly));
    assert_eq!(disk.forget(0, 512), Err(DiskError::ReadOnly));
    assert!(disk.bytes(0, PAGE).is_ok());
}

#[test]
fn a_disk_takes_no_memory_that_others_need() {
    let mut disk = disk(contents(3 * PAGE), false);
    disk.put(0, &[1]).unwrap();
    disk.has_room = || false;
    assert_eq!(disk.put(PAGE as u64, &[1]), Err(DiskError::OutOfMemory));
    disk.put(1, &[2]).unwrap();
    // What it has can be given back.
    disk.forget(0, PAGE).unwrap();
    assert_eq!(disk.put(0, &[1]), Err(DiskError::OutOfMemory));
    assert_eq!(disk.bytes(0, PAGE).unwrap(), [0; PAGE]);
    assert_eq!(disk.forget(9, 3), Err(DiskError::OutOfMemory));
    let mut untouched = super::tests::disk(contents(PAGE), false);
    untouched.has_room = || false;
    assert_eq!(untouched.forget(0, PAGE), Err(DiskError::OutOfMemory));
}

#[test]
fn much_is_discarded_at_once_and_can_be_written_again() {
    const BEYOND: usize = 3 * PAGE;
    let original = contents(2 * REGION + BEYOND);
    let mut disk = disk(original.clone(), false);
    disk.put(REGION as u64 + 5, &[0xaa]).unwrap();
    let piece = |offset: usize, length| Disk::discarded_piece(offset as u64, length as u64);
    assert_eq!(piece(REGION, REGION + 1), REGION);
    assert_eq!(piece(REGION, REGION - 1), PAGE);
    assert_eq!(piece(REGION + 512, REGION), PAGE - 512);
    disk.forget(REGION as u64, REGION).unwrap();
    assert_eq!(disk.own_pages(), 0);
    disk.put(REGION as u64 + 9, &[0xbb]).unwrap();
    disk.forget(REGION as u64 + PAGE as u64, PAGE).unwrap();
    let mut expected = original;
    expected[REGION..2 * REGION].fill(0);
    expected[REGION + 9] = 0xbb;
    assert!(disk.everything() == expected);
    let behind = 4 * REGION as u64;
    assert_eq!(disk.forget(behind, REGION), Err(DiskError::OutOfRange));
}

#[test]
fn what_nobody_writes_takes_next_to_nothing() {
    // A table of the largest disk, and one where a page was written.
    assert_eq!((256_usize << 30) / REGION * Pages::REGION_TABLE, 3 << 20);
    assert_eq!(size_of::<Page>() * REGION / PAGE, 8 << 10);
}

#[test]
fn a_disk_is_much_larger_than_its_image() {
    const SIZE: u64 = 200 << 30;
    let mut image = qcow2(&[7; PAGE], 16, |_| false);
    put(&mut image, 24, SIZE);
    // Tables of the first level for all of it, of which all but one say that there is nothing.
    let tables = SIZE.div_ceil(512 << 20) as u32;
    image[36..40].copy_from_slice(&tables.to_be_bytes());
    let mut disk = Disk::new(recognized(image), false, || true).unwrap();
    assert_eq!(disk.sectors(), SIZE / SECTOR);
    assert_eq!(disk.bytes(0, PAGE).unwrap(), [7; PAGE]);
    assert_eq!(disk.bytes(SIZE - 512, 512).unwrap(), [0; 512]);
    disk.put(SIZE - 512, &[8; 512]).unwrap();
    assert_eq!(disk.bytes(SIZE - 512, 512).unwrap(), [8; 512]);
    assert_eq!(disk.bytes(SIZE, 1), Err(DiskError::OutOfRange));
}

/// What does not compress well.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        (state >> 24) as u8 & 0x3f
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn a_cluster_is_unpacked_once_for_all_its_pages_and_a_bit_at_a_time() {
    let original = noise(3 << 16);
    let image = qcow2(&original, 16, |_| false);
    let mut disk = Disk::new(recognized(image), true, || true).unwrap();
    let mut read =
        |offset: u64| with_patience(|budget| Ok(disk.read(offset, 1, budget)?.map(|_| ()))).1;
    let first = read(0);
    assert!((8..20).contains(&first), "{first}");
    for page in 1..16 {
        assert_eq!(read(page * PAGE as u64), 1);
    }
    // Back and forth between clusters that fit into the memory there is for them.
    let second = read(1 << 16);
    assert!((8..20).contains(&second), "{second}");
    assert_eq!((read(0), read((2 << 16) - 1)), (1, 1));
}

#[test]
fn what_is_given_up_half_way_is_begun_again() {
    let original = noise(2 << 16);
    let image = qcow2(&original, 16, |_| false);
    let mut disk = Disk::new(recognized(image), true, || true).unwrap();
    for offset in [0, 1 << 16, 0] {
        let mut budget = Budget::new();
        assert_eq!(disk.read(offset, 512, &mut budget), Ok(None));
    }
    assert!(disk.everything() == original);
}

#[test]
fn clusters_come_and_go_in_the_memory_that_there_is_for_them() {
    // More than fit, and the largest that there are.
    for (bits, count) in [(12, 40), (21, 4)] {
        let original = contents(count << bits);
        let image = qcow2(&original, bits, |_| false);
        let mut disk = Disk::new(recognized(image), true, || true).unwrap();
        for index in [0, count - 1, 1, 0, count - 2, 0, count - 1, 3] {
            let at = (index << bits) + 3 * PAGE * usize::from(bits > 12);
            let page = disk.bytes(at as u64, PAGE).unwrap();
            assert!(page == original[at..at + PAGE], "{bits} {index}");
        }
    }
}

#[test]
fn what_cannot_be_unpacked_is_an_error_for_whoever_reads_it() {
    const BITS: u32 = 12;
    let original = contents(3 * PAGE);
    let good = qcow2(&original, BITS, |_| false);
    let (first, end) = (3 << BITS, good.len());
    let with = |number: u64, bytes: &[u8]| {
        let mut image = good.clone();
        image.extend(bytes);
        put(&mut image, entry(BITS, 1), number);
        image
    };
    let packed = |bytes: &[u8]| {
        let bytes = compress_to_vec(bytes, 6);
        with(compressed(BITS, end, bytes.len()), &bytes)
    };
    let mut cut_off = compress_to_vec(&noise(PAGE), 6);
    cut_off.truncate(cut_off.len() / 2);
    for (what, image) in [
        ("too short", packed(&[1; PAGE - 1])),
        ("nothing", packed(&[])),
        ("cut off", with(compressed(BITS, end, 1), &cut_off)),
        ("garbage", with(compressed(BITS, end, 512), &[0xff; 512])),
        ("behind the end", with(compressed(BITS, end, 1), &[])),
        (
            "far behind the end",
            with(compressed(BITS, 1 << 57, 1), &[]),
        ),
        ("a plain one behind the end", with(1 << 40, &[])),
        (
            "a plain one at the end",
            with((first + (1 << BITS)) as u64, &[]),
        ),
        ("a plain one that begins anywhere", with(512, &[])),
    ] {
        let mut disk = Disk::new(recognized(image), false, || true).unwrap();
        for _ in 0..2 {
            let read = disk.bytes(PAGE as u64, 512);
            assert_eq!(read, Err(DiskError::Damaged), "{what}");
            let written = disk.put(PAGE as u64 + 512, &[1]);
            assert_eq!(written, Err(DiskError::Damaged), "{what}");
        }
        // All else is as ever, and what is written is not damaged.
        assert!(disk.bytes(0, PAGE).unwrap() == original[..PAGE], "{what}");
        disk.put(PAGE as u64, &[1; PAGE]).unwrap();
        assert!(
            disk.bytes(PAGE as u64, PAGE).unwrap() == [1; PAGE],
            "{what}"
        );
    }
    // Whatever follows a whole cluster is not looked at.
    let image = packed(&[1; PAGE + 1]);
    let mut disk = Disk::new(recognized(image), false, || true).unwrap();
    assert!(disk.bytes(PAGE as u64, PAGE).unwrap() == [1; PAGE]);
}

/// Blocks of deflate's that come to nothing, in front of a cluster: as slow as it gets.
#[test]
fn blocks_without_anything_in_them_are_paid_for_and_not_borne_for_ever() {
    const BITS: u32 = 12;
    let mut image = qcow2(&[1; PAGE], BITS, |_| false);
    let end = image.len();
    // With fixed codes, and not the last; an end of the block at once: ten bits, 0 in all but the second.
    let mut bits = vec![];
    for _ in 0..4000 {
        bits.extend([0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let bytes = bits.chunks(8);
    image.extend(bytes.map(|bits| bits.iter().rev().fold(0_u8, |byte, bit| byte << 1 | bit)));
    let number = compressed(BITS, end, image.len() - end);
    put(&mut image, entry(BITS, 0), number);
    let mut disk = Disk::new(recognized(image), true, || true).unwrap();
    let (read, turns) = with_patience(|budget| Ok(disk.read(0, 1, budget)?.map(|_| ())));
    assert_eq!(read, Err(DiskError::Damaged));
    assert!((20..100).contains(&turns), "{turns}");
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Discard(u64, u64),
}

fn any_step(length: u64) -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..length, proptest::collection::vec(any::<u8>(), 1..9000))
            .prop_map(|(offset, data)| Step::Write(offset, data)),
        (0..length, 0..20_000u64).prop_map(|(offset, count)| Step::Discard(offset, count)),
    ]
}

/// Changes `disk`, and `model` as it should be then.
fn change(disk: &mut Disk, model: &mut [u8], step: &Step) -> Result<(), DiskError> {
    let size = model.len();
    match step {
        Step::Write(offset, data) => {
            let start = (*offset as usize).min(size);
            let data = &data[..data.len().min(size - start)];
            let mut done = 0;
            while done < data.len() {
                let at = (start + done) as u64;
                let piece = Disk::piece(at, (data.len() - done) as u64);
                disk.put(at, &data[done..done + piece])?;
                done += piece;
            }
            model[start..start + data.len()].copy_from_slice(data);
        }
        Step::Discard(offset, count) => {
            let start = (*offset as usize).min(size);
            let end = start + (*count as usize).min(size - start);
            let mut at = start;
            while at < end {
                let piece = Disk::discarded_piece(at as u64, (end - at) as u64);
                disk.forget(at as u64, piece)?;
                at += piece;
            }
            model[start..end].fill(0);
        }
    }
    Ok(())
}

proptest! {
    /// Whatever the format of its image, and whatever that has of a cluster.
    #[test]
    fn a_disk_is_an_array_of_bytes(
        length in 1..20 * PAGE,
        format in proptest::option::of((12..16_u32, any::<u32>())),
        steps in proptest::collection::vec(any_step(20 * PAGE as u64), 0..30),
    ) {
        let original = contents(length);
        let file: &'static [u8] = match format {
            None => original.clone(),
            Some((bits, plain)) => qcow2(&original, bits, |index| plain >> (index % 32) & 1 != 0),
        }.leak();
        let before = file.to_vec();
        let mut disk = Disk::new(DiskImage::recognize(file).unwrap(), false, || true).unwrap();
        let mut model = original;
        model.resize((disk.sectors() * SECTOR) as usize, 0);
        for step in &steps {
            prop_assert_eq!(change(&mut disk, &mut model, step), Ok(()));
        }
        prop_assert!(disk.everything() == model);
        prop_assert_eq!(file, before, "the image stays");
        let count = model.len().div_ceil(PAGE);
        let own = (0..count).filter(|&index| matches!(disk.pages.get(index), Some(Page::Own(_))));
        prop_assert_eq!(disk.own_pages(), own.count());
    }
}

mod fuzz {
    use super::*;

    /// The most turns of work that a page may take: of the largest cluster, or of all its blocks.
    const MOST_TURNS: u32 = 20_000;

    /// Each page of any image is read in bounded time, or it is told that there is none.
    fn read(file: &[u8], pages: &[u64]) {
        let Ok(image) = DiskImage::recognize(file) else {
            return;
        };
        let mut base = Base::new(image).unwrap();
        let count = image.size().div_ceil(PAGE as u64);
        for page in pages {
            let Some(page) = page.checked_rem(count) else {
                break;
            };
            let mut read = || {
                with_patience(|budget| Ok(base.page(page as usize, budget)?.map(<[u8]>::to_vec)))
            };
            let (first, turns) = read();
            assert!(turns < MOST_TURNS, "{turns}");
            assert!(
                first.as_ref().is_ok_and(|page| page.len() == PAGE)
                    || first == Err(DiskError::Damaged)
            );
            assert!(read().0 == first, "twice the same");
        }
    }

    #[test]
    fn images_of_disks() {
        fuzzing::check!()
            .with_type::<(Vec<u8>, u8, u32, Vec<(u16, u8)>, Vec<u64>)>()
            .for_each(|(bytes, bits, plain, patches, pages)| {
                read(bytes, pages);
                let header = [b"QFI\xfb\0\0\0\x03", &bytes[..]].concat();
                read(&header, pages);
                // What is right but for some bytes.
                let bits = 12 + u32::from(*bits) % 4;
                let contents = bytes.repeat(1 + 3 * (PAGE << 2) / bytes.len().max(1));
                let contents = &contents[..contents.len().min(5 * PAGE + 7)];
                let mut file = qcow2(contents, bits, |index| plain >> (index % 32) & 1 != 0);
                for &(at, byte) in patches {
                    // The header, the entries of the tables, or what follows.
                    let (place, at) = (at % 4, usize::from(at) / 4);
                    let at = match place {
                        0 => at % 112,
                        1 => (1 << bits) + at % 8,
                        2 => entry(bits, 0) + at % 64,
                        _ => (3 << bits) + at,
                    };
                    if let Some(place) = file.get_mut(at) {
                        *place = byte;
                    }
                }
                read(&file, pages);
            });
    }
}
