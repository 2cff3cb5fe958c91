extern crate std;

use std::string::ToString;
use std::vec::Vec;

use super::super::test_image::{put, qcow2};
use super::*;

const BITS: u32 = 12;

/// An image of 16 KiB, of which these bytes are otherwise.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = qcow2(&[1; 16 << 10], BITS, |_| true);
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

fn error(image: &[u8]) -> Qcow2Error {
    Qcow2::new(image).expect_err("an error")
}

#[test]
fn each_kind_of_image_that_is_not_read_is_told_with_its_remedy() {
    use Qcow2Error as E;
    for (at, bytes, expected) in [
        (4, &[0, 0, 0, 1][..], E::Version(1)),
        (4, &[0, 0, 0, 4], E::Version(4)),
        (14, &[1], E::BackingFile),
        (20, &[0, 0, 0, 9], E::ClusterSize(9)),
        (20, &[0, 0, 0, 22], E::ClusterSize(22)),
        (20, &[0xff; 4], E::ClusterSize(u32::MAX)),
        (35, &[1], E::Encrypted),
        (35, &[2], E::Encrypted),
        (79, &[1 << 1], E::Corrupt),
        (79, &[1 << 2], E::ExternalData),
        (79, &[1 << 3], E::CompressionType),
        (79, &[1 << 4], E::ExtendedL2),
        (79, &[1 << 5], E::UnknownFeatures(1 << 5)),
        (
            72,
            &[1 << 7, 0, 0, 0, 0, 0, 0, 1],
            E::UnknownFeatures(1 << 63),
        ),
        (24, &[0xff; 8], E::TooLarge(u64::MAX)),
        (
            24,
            &[0, 0, 0, 0x40, 0, 0, 0, 1],
            E::TooLarge((256 << 30) + 1),
        ),
        // More than the table has entries for; where no table is.
        (24, &[0, 0, 0, 0, 0, 0x20, 0, 1], E::BadTable),
        (36, &[0; 4], E::BadTable),
        (46, &[1], E::BadTable),
        (
            40,
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0, 0],
            E::Truncated {
                length: 28 << 10,
                needed: 0xffff_ffff_ffff_f008,
            },
        ),
        (
            40,
            &[0, 0, 1],
            E::Truncated {
                length: 28 << 10,
                needed: (1 << 40) + (1 << BITS) + 8,
            },
        ),
    ] {
        assert_eq!(error(&with(at, bytes)), expected);
        let message = expected.to_string();
        let remedies = ["qemu-img", "copy it again"];
        assert!(
            remedies.iter().any(|remedy| message.contains(remedy)),
            "{message}"
        );
    }
}

#[test]
fn a_file_that_ends_before_its_header_or_its_table_does_is_cut_off() {
    let image = qcow2(&[1; 16 << 10], BITS, |_| true);
    for (length, needed) in [
        (4, 72),
        (7, 72),
        (8, 104),
        (103, 104),
        (104, 4104),
        (4103, 4104),
    ] {
        assert_eq!(
            error(&image[..length]),
            Qcow2Error::Truncated { length, needed }
        );
    }
    assert!(Qcow2::new(&image[..4104]).is_ok());
    assert!(Qcow2::is_one(&image) && !Qcow2::is_one(&image[..3]) && !Qcow2::is_one(b"QFI\xfc"));
}

#[test]
fn what_does_not_matter_for_reading_is_not_looked_at() {
    for (at, bytes) in [
        // Features that need not be known, and the dirty bit.
        (80, &[0xff; 16][..]),
        (79, &[1]),
        // Reference counts, and snapshots.
        (48, &[0xff; 24]),
        (96, &[0xff; 4]),
    ] {
        let image = with(at, bytes);
        let image = Qcow2::new(&image).unwrap();
        assert_eq!(image.cluster(3), Ok(Cluster::At(6 << BITS)), "{at}");
    }
    // Version 2 ends before all that.
    let mut old = with(72, &[0xff; 32]);
    old[7] = 2;
    assert_eq!(Qcow2::new(&old).unwrap().size(), 16 << 10);
}

#[test]
fn entries_of_the_tables_say_where_a_cluster_is() {
    let mut image = qcow2(&[1; 16 << 10], BITS, |_| true);
    let entry = super::super::test_image::entry(BITS, 2);
    let length = image.len();
    let mut see = |version: u8, number: u64| -> Result<Option<(usize, usize)>, Damaged> {
        image[7] = version;
        put(&mut image, entry, number);
        Ok(match Qcow2::new(&image).unwrap().cluster(2)? {
            Cluster::Zeros => None,
            Cluster::At(at) => Some((at, 0)),
            Cluster::Compressed(bytes) => Some((
                bytes.as_ptr() as usize - image.as_ptr() as usize,
                bytes.len(),
            )),
        })
    };
    assert_eq!(see(3, 0), Ok(None));
    assert_eq!(see(3, 1), Ok(None));
    assert_eq!(see(3, 1 << 63 | 0x3001), Ok(None));
    assert_eq!(see(2, 0x3001), Err(Damaged));
    assert_eq!(see(2, 1 << 63 | 0x3000), Ok(Some((0x3000, 0))));
    assert_eq!(see(3, 0x3200), Err(Damaged));
    assert_eq!(see(3, length as u64), Err(Damaged));
    // 58 bits of offset, and 4 of how many more sectors there are.
    let packed = |at: u64, more: u64| 1 << 62 | more << 58 | at;
    assert_eq!(see(3, packed(0x3001, 0)), Ok(Some((0x3001, 511))));
    assert_eq!(see(3, packed(0x31ff, 2)), Ok(Some((0x31ff, 1025))));
    assert_eq!(see(3, packed(0x3000, 15)), Ok(Some((0x3000, 8192))));
    let at = length - 3;
    assert_eq!(see(3, packed(at as u64, 15)), Ok(Some((at, 3))));
    assert_eq!(see(3, packed(length as u64 + 1, 0)), Err(Damaged));
    assert_eq!(see(3, packed((1 << 58) - 1, 15)), Err(Damaged));
}

#[test]
fn a_table_that_is_not_there_has_no_clusters() {
    for (number, expected) in [
        (0, Ok(Cluster::Zeros)),
        (1 << 63, Ok(Cluster::Zeros)),
        (512, Err(Damaged)),
        (0x00ff_ffff_ffff_f000, Err(Damaged)),
        // What is no table, and behind the end.
        (6 << BITS, Err(Damaged)),
        (7 << BITS, Err(Damaged)),
    ] {
        let mut image = qcow2(&[2; 16 << 10], BITS, |_| true);
        put(&mut image, 1 << BITS, number);
        assert_eq!(
            Qcow2::new(&image).unwrap().cluster(0),
            expected,
            "{number:#x}"
        );
    }
    let image = qcow2(&[2; 16 << 10], BITS, |_| true);
    assert_eq!(Qcow2::new(&image).unwrap().cluster(512), Err(Damaged));
}
