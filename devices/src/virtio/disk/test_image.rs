//! Disk images for tests.

extern crate std;

use std::vec;
use std::vec::Vec;

use miniz_oxide::deflate::compress_to_vec;

use super::image::DiskImage;

/// A bit of an entry: nothing else refers to what is there.
const ALONE: u64 = 1 << 63;

/// Writes a number into an image.
pub(crate) fn put(image: &mut [u8], at: usize, number: u64) {
    image[at..at + 8].copy_from_slice(&number.to_be_bytes());
}

/// Returns the place of the entry for cluster `index` in an image.
pub(crate) const fn entry(cluster_bits: u32, index: usize) -> usize {
    (2 << cluster_bits) + 8 * index
}

/// Returns the image of a disk of these contents in the qcow2 format, with one table of the second level.
/// `is_plain` says of each cluster whether it is there as it is, or else compressed; clusters of zeros are
/// not there. There is little else in it: no reference counts.
pub(crate) fn qcow2(
    contents: &[u8],
    cluster_bits: u32,
    is_plain: impl Fn(usize) -> bool,
) -> Vec<u8> {
    let size = 1 << cluster_bits;
    assert!(contents.len() <= size * size / 8);
    // The header, the table of the first level, and that of the second.
    let mut image = vec![0; 3 * size];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    image[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
    put(&mut image, 24, contents.len() as u64);
    image[36..40].copy_from_slice(&1_u32.to_be_bytes());
    put(&mut image, 40, size as u64);
    image[100..104].copy_from_slice(&104_u32.to_be_bytes());
    put(&mut image, size, (2 * size) as u64 | ALONE);
    for (index, cluster) in contents.chunks(size).enumerate() {
        if cluster.iter().all(|&byte| byte == 0) {
            continue;
        }
        let mut whole = cluster.to_vec();
        whole.resize(size, 0);
        let number = if is_plain(index) {
            image.resize(image.len().next_multiple_of(size), 0);
            let at = image.len();
            // The last one is cut off where the disk ends.
            image.extend(cluster);
            at as u64 | ALONE
        } else {
            let at = image.len();
            image.extend(compress_to_vec(&whole, 6));
            compressed(cluster_bits, at, image.len() - at)
        };
        put(&mut image, entry(cluster_bits, index), number);
    }
    image
}

/// Returns the entry of a compressed cluster of so many bytes from there on.
pub(crate) const fn compressed(cluster_bits: u32, at: usize, length: usize) -> u64 {
    let more_sectors = (at + length - 1) / 512 - at / 512;
    at as u64 | (more_sectors as u64) << (62 - (cluster_bits - 8)) | 1 << 62
}

/// Returns a raw image of these bytes.
pub(crate) fn raw(bytes: Vec<u8>) -> DiskImage<'static> {
    DiskImage::Raw(bytes.leak())
}

/// Returns the image that these bytes are.
pub(crate) fn recognized(bytes: Vec<u8>) -> DiskImage<'static> {
    DiskImage::recognize(bytes.leak()).unwrap()
}
