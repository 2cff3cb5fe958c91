use alloc::vec::Vec;

use miniz_oxide::deflate::compress_to_vec;
use proptest::prelude::*;

use super::*;

/// A cpio archive of one file.
pub(super) fn archive(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, contents) in [(name, contents), ("TRAILER!!!", &[][..])] {
        let mut header = Vec::from(b"070701");
        for number in 0..13 {
            let value = match number {
                6 => contents.len(),
                11 => name.len() + 1,
                _ => 0,
            };
            header.extend_from_slice(alloc::format!("{value:08X}").as_bytes());
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        header.resize(header.len().next_multiple_of(4), 0);
        header.extend_from_slice(contents);
        header.resize(header.len().next_multiple_of(4), 0);
        bytes.extend(header);
    }
    bytes
}

pub(super) fn gzipped(data: &[u8]) -> Vec<u8> {
    // Name flag set, as gzip does.
    let mut bytes = Vec::from([0x1F, 0x8B, 8, 1 << 3, 0, 0, 0, 0, 0, 3]);
    bytes.extend_from_slice(b"initrd\0");
    bytes.extend(compress_to_vec(data, 6));
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
    bytes
}

/// A zstd frame with a raw block and a run of 1000 bytes.
pub(super) fn zstd_frame() -> Vec<u8> {
    let mut bytes = Vec::from([0x28, 0xB5, 0x2F, 0xFD, 0b0100_0100, 0, 0xEC, 0x02]);
    bytes.extend_from_slice(&[4 << 3, 0, 0, 1, 2, 3, 4]);
    let run = 1000_u32 << 3 | 1 << 1 | 1;
    bytes.extend_from_slice(&run.to_le_bytes()[..3]);
    bytes.push(0);
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

#[test]
fn whole_files_are_accepted_with_their_unpacked_size() {
    let plain = archive("init", b"#!/bin/sh\n");
    assert_eq!(unpacked_size(&plain), Ok(Some(10)));
    assert_eq!(
        unpacked_size(&gzipped(&plain)),
        Ok(Some(plain.len() as u64))
    );
    assert_eq!(unpacked_size(&zstd_frame()), Ok(Some(1004)));
    assert_eq!(unpacked_size(b"\xFD7zXZ\0....YZ\0\0\0\0"), Ok(None));
    assert_eq!(unpacked_size(b"\x02\x21\x4C\x18\x03\0\0\0abc"), Ok(None));
    assert_eq!(unpacked_size(b"\x68sqsh, or what have you"), Ok(None));
}

#[test]
fn a_number_with_a_sign_is_damage() {
    let mut file = archive("init", b"#!/bin/sh\n");
    file[6 + 8 * 6..][..8].copy_from_slice(b"+000000A");
    assert!(matches!(
        unpacked_size(&file),
        Err(InitrdError::Damaged { offset: 0, .. })
    ));
}

#[test]
fn an_early_archive_may_precede_a_compressed_one() {
    let mut both = archive("kernel/x86/microcode", &[7; 100]);
    both.resize(both.len().next_multiple_of(512), 0);
    both.extend(gzipped(&archive("init", &[1; 50])));
    assert!(matches!(unpacked_size(&both), Ok(Some(size)) if size > 150));
    both.pop();
    assert!(matches!(
        unpacked_size(&both),
        Err(InitrdError::Truncated {
            format: "gzip stream",
            ..
        })
    ));
}

#[test]
fn an_empty_file_is_refused() {
    assert_eq!(unpacked_size(b""), Err(InitrdError::Empty));
}

#[test]
fn a_gzip_stream_with_a_wrong_size_is_damaged() {
    let mut bytes = gzipped(b"some contents");
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    assert!(matches!(
        unpacked_size(&bytes),
        Err(InitrdError::Damaged { .. })
    ));
}

#[test]
fn every_truncation_of_a_compressed_file_is_noticed() {
    let contents: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    let gzip = gzipped(&archive("init", &contents));
    for (file, step) in [(gzip, 997), (zstd_frame(), 1)] {
        for length in (6..file.len()).step_by(step).chain([file.len() - 1]) {
            assert!(
                matches!(
                    unpacked_size(&file[..length]),
                    Err(InitrdError::Truncated { .. })
                ),
                "{length} of {} bytes",
                file.len()
            );
        }
    }
}

proptest! {
    #[test]
    fn a_truncated_archive_is_noticed_unless_it_ends_between_members(cut in 0_usize..1000) {
        let whole = archive("init", &[0xA5; 600]);
        let length = cut % (whole.len() - 10) + 6;
        let first_member = 110 + 6 + 600;
        let noticed = matches!(
            unpacked_size(&whole[..length]),
            Err(InitrdError::Truncated { .. })
        );
        prop_assert!(noticed || length == first_member || length >= whole.len() - 2);
    }

    #[test]
    fn no_file_makes_the_check_panic(
        magic in prop_oneof![
            Just(&b"070701"[..]), Just(&b"\x1F\x8B\x08"[..]), Just(&b"\x28\xB5\x2F\xFD"[..]),
            Just(&b"\xFD7zXZ\0"[..]), Just(&b"\x02\x21\x4C\x18"[..]),
        ],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let file = [magic, &rest].concat();
        let _ = unpacked_size(&file);
    }
}
