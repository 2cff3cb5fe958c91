//! A target for fuzzing: files that may be initial RAM disks.

use alloc::vec::Vec;

use super::tests::{archive, gzipped, zstd_frame};
use super::*;

/// The beginnings of the formats that there are.
const MAGICS: [&[u8]; 7] = [
    b"070701",
    b"070702",
    b"\x1F\x8B\x08",
    b"\x28\xB5\x2F\xFD",
    b"\xFD7zXZ\0",
    b"\x02\x21\x4C\x18",
    b"",
];

/// Checks what is said of a file, by what is said of it with zeros behind it.
fn check(file: &[u8]) {
    let found = unpacked_size(file);
    match found {
        Ok(size) => {
            let padded = [file, &[0; 5]].concat();
            assert_eq!(unpacked_size(&padded), Ok(size), "archives may be padded");
        }
        Err(InitrdError::Empty) => assert!(file.is_empty()),
        Err(InitrdError::Truncated { length, .. }) => assert_eq!(length, file.len()),
        Err(InitrdError::Damaged { offset, .. }) => assert!(offset < file.len()),
    }
}

#[test]
fn files_of_any_format() {
    fuzzing::check!()
        .with_type::<(u8, Vec<u8>, Vec<(u8, Vec<u8>)>, Vec<(u16, u8)>)>()
        .for_each(|(magic, rest, parts, patches)| {
            let magic = MAGICS[usize::from(*magic) % MAGICS.len()];
            check(&[magic, rest].concat());

            // Parts that are right, of which the sizes are known.
            let mut file = Vec::new();
            let mut expected = Some(0_u64);
            for (kind, content) in parts {
                let plain = archive("init", content);
                let (part, size) = match kind % 4 {
                    0 => (gzipped(content), Some(content.len() as u64)),
                    1 => (gzipped(&plain), Some(plain.len() as u64)),
                    2 => (zstd_frame(), Some(1004)),
                    _ => (plain, Some(content.len() as u64)),
                };
                file.resize(file.len().next_multiple_of(4), 0);
                file.extend(part);
                expected = expected.zip(size).map(|(a, b)| a + b);
            }
            if !file.is_empty() {
                assert_eq!(unpacked_size(&file), Ok(expected));
            }
            for &(at, byte) in patches {
                if let Some(place) = file.get_mut(usize::from(at)) {
                    *place = byte;
                }
            }
            check(&file);
        });
}
