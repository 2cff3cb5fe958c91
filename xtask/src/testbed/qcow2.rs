//! Compressed disk images, in the qcow2 format (QEMU, docs/interop/qcow2.rst), made of raw ones.
//!
//! Behind the header there are the clusters that compress badly, as they are, then what the others compress
//! to, one right behind the other, then the tables and the counts of references. Clusters of zeros are
//! nowhere. The same input makes the same image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::DeflateEncoder};

use crate::testbed::paths;
use crate::testbed::progress::Step;

const MAGIC: &[u8; 4] = b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
/// The size of a cluster, in bytes.
const CLUSTER: usize = 1 << CLUSTER_BITS;
/// The number of bytes of a cluster that is compressed. To read one that is not costs nothing: it is to save
/// an eighth.
const WORTH_IT: usize = CLUSTER / 8 * 7;
/// The unit of the size of a disk and of lengths of what is compressed, in bytes.
const SECTOR: u64 = 512;
/// The length of a header of version 3, in bytes.
const HEADER: u32 = 104;
/// The log2 of the bits of a reference count.
const REFCOUNT_ORDER: u32 = 4;
/// The entries in a table of one cluster: places in the file, and counts of references.
const ENTRIES: usize = CLUSTER / 8;
const COUNTS: usize = CLUSTER / 2;
/// Bits of entries: what is there is compressed, and nothing else refers to it.
const COMPRESSED: u64 = 1 << 62;
const ALONE: u64 = 1 << 63;

/// The sizes of an image, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The size of the disk.
    pub disk: u64,
    /// The size of the compressed image.
    pub image: u64,
}

/// The place of a cluster in the image.
#[derive(Clone, Copy)]
enum Place {
    Nowhere,
    /// The number of the cluster in the file.
    Plain(usize),
    /// The first byte behind all plain clusters, and the number of bytes.
    Compressed(u64, u64),
}

/// Makes `to` a compressed image of the raw one `from`, and shows how far it is.
///
/// # Errors
/// When `from` cannot be read or is no raw image, or `to` cannot be written.
pub fn compress(from: &Path, to: &Path) -> Result<Sizes> {
    let cannot_read = || format!("cannot read the disk image {}", from.display());
    let mut input = File::open(from).with_context(cannot_read)?;
    let metadata = input.metadata().with_context(cannot_read)?;
    ensure!(metadata.is_file(), "{} is not a file", from.display());
    ensure!(metadata.len() > 0, "{} is empty", from.display());
    let mut magic = [0; MAGIC.len()];
    ensure!(
        input.read_exact(&mut magic).is_err() || magic != *MAGIC,
        "{} is a qcow2 image already: compress it by `qemu-img convert -O qcow2 -c`, or make it raw by \
         `qemu-img convert -O raw`",
        from.display()
    );
    input.rewind()?;

    let step = Step::begin(format!("Compressing {}", paths::shown(from)));
    let directory = match to.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let cannot_write = || format!("cannot write the compressed image {}", to.display());
    // Nobody is to take half an image for one.
    let mut output = tempfile::Builder::new()
        .permissions(PermissionsExt::from_mode(0o666))
        .tempfile_in(directory)
        .with_context(cannot_write)?;
    let length = metadata.len();
    let sizes = write_image(&mut input, length, output.as_file_mut(), &mut |done| {
        step.detail(format!("{} %", done * 100 / length));
    });
    let sizes = sizes.with_context(|| format!("cannot make {} of it", to.display()))?;
    output.persist(to).with_context(cannot_write)?;
    Ok(sizes)
}

/// Writes the compressed image of a disk of `length` bytes, and tells how many of them are done.
fn write_image(
    input: &mut impl Read,
    length: u64,
    output: &mut (impl Write + Seek),
    progress: &mut impl FnMut(u64),
) -> Result<Sizes> {
    let disk = length.next_multiple_of(SECTOR);
    // What is compressed, until all that is not is there.
    let mut compressed = tempfile::tempfile()?;
    let (mut plain_end, mut compressed_end) = (1, 0);
    let mut places = Vec::new();
    output.seek(SeekFrom::Start(CLUSTER as u64))?;
    for index in 0..length.div_ceil(CLUSTER as u64) {
        let begin = index * CLUSTER as u64;
        progress(begin);
        let mut cluster = [0; CLUSTER];
        let there = (length - begin).min(CLUSTER as u64) as usize;
        input.read_exact(&mut cluster[..there])?;
        if cluster.iter().all(|&byte| byte == 0) {
            places.push(Place::Nowhere);
            continue;
        }
        let packed = deflate(&cluster)?;
        places.push(if packed.len() > WORTH_IT {
            output.write_all(&cluster)?;
            plain_end += 1;
            Place::Plain(plain_end - 1)
        } else {
            compressed.write_all(&packed)?;
            let begin = compressed_end;
            compressed_end += packed.len() as u64;
            Place::Compressed(begin, packed.len() as u64)
        });
    }
    let compressed_begin = (plain_end * CLUSTER) as u64;
    compressed.rewind()?;
    io::copy(&mut compressed, output)?;
    let mut counts = vec![1_u16; plain_end];
    let clusters = compressed_end.div_ceil(CLUSTER as u64) as usize;
    counts.resize(plain_end + clusters, 0);
    let fill = clusters * CLUSTER - compressed_end as usize;
    output.write_all(&vec![0; fill])?;

    let mut first_level = Vec::new();
    for places in places.chunks(ENTRIES) {
        if places.iter().all(|place| matches!(place, Place::Nowhere)) {
            first_level.push(0);
            continue;
        }
        first_level.push((counts.len() * CLUSTER) as u64 | ALONE);
        counts.push(1);
        let entries = places.iter().map(|place| match *place {
            Place::Nowhere => 0,
            Place::Plain(cluster) => (cluster * CLUSTER) as u64 | ALONE,
            Place::Compressed(begin, length) => {
                let (first, last) = (
                    compressed_begin + begin,
                    compressed_begin + begin + length - 1,
                );
                for cluster in first / CLUSTER as u64..=last / CLUSTER as u64 {
                    counts[cluster as usize] += 1;
                }
                let more_sectors = last / SECTOR - first / SECTOR;
                first | more_sectors << (62 - (CLUSTER_BITS - 8)) | COMPRESSED
            }
        });
        let entries: Vec<u64> = entries.collect();
        write_table(output, &entries)?;
    }
    let first_level_begin = counts.len() * CLUSTER;
    counts.resize(counts.len() + write_table(output, &first_level)?, 1);

    let (refcounts_begin, refcounts_clusters) = write_refcounts(output, counts)?;
    let image = output.stream_position()?;
    output.rewind()?;
    output.write_all(&header(&Header {
        disk,
        first_level_begin,
        first_level_entries: first_level.len(),
        refcounts_begin,
        refcounts_clusters,
    })?)?;
    output.flush()?;
    Ok(Sizes { disk, image })
}

fn deflate(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Writes numbers, with zeros up to the end of a cluster. Returns how many clusters that are.
fn write_table(output: &mut impl Write, numbers: &[u64]) -> io::Result<usize> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    let clusters = bytes.len().div_ceil(CLUSTER);
    bytes.resize(clusters * CLUSTER, 0);
    output.write_all(&bytes)?;
    Ok(clusters)
}

/// Writes how often there are references to each cluster of the file, of which these counts are in front, and
/// the table of those counts. Returns where that begins, and how many clusters it has.
fn write_refcounts(output: &mut impl Write, mut counts: Vec<u16>) -> Result<(usize, usize)> {
    // There are counts of the clusters of the counts, too.
    let (mut blocks, mut table) = (0, 0);
    loop {
        let all = counts.len() + blocks + table;
        let needed = all.div_ceil(COUNTS);
        if needed == blocks {
            break;
        }
        (blocks, table) = (needed, needed.div_ceil(ENTRIES));
    }
    let begin = counts.len();
    counts.resize(begin + blocks + table, 1);
    let mut bytes: Vec<u8> = counts.iter().flat_map(|n| n.to_be_bytes()).collect();
    bytes.resize(blocks * CLUSTER, 0);
    output.write_all(&bytes)?;
    let places = begin..begin + blocks;
    let places: Vec<u64> = places.map(|block| (block * CLUSTER) as u64).collect();
    write_table(output, &places)?;
    Ok(((begin + blocks) * CLUSTER, table))
}

/// The part of a header that is not the same in all images.
struct Header {
    disk: u64,
    first_level_begin: usize,
    first_level_entries: usize,
    refcounts_begin: usize,
    refcounts_clusters: usize,
}

/// Returns the header, without any features.
fn header(of: &Header) -> Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    let short = |bytes: &mut Vec<u8>, number: u32| bytes.extend(number.to_be_bytes());
    short(&mut bytes, 3);
    // No backing file.
    bytes.extend([0; 12]);
    short(&mut bytes, CLUSTER_BITS);
    bytes.extend(of.disk.to_be_bytes());
    // No encryption.
    short(&mut bytes, 0);
    short(&mut bytes, u32::try_from(of.first_level_entries)?);
    bytes.extend((of.first_level_begin as u64).to_be_bytes());
    bytes.extend((of.refcounts_begin as u64).to_be_bytes());
    short(&mut bytes, u32::try_from(of.refcounts_clusters)?);
    // No snapshots; no features of three kinds.
    bytes.extend([0; 12 + 24]);
    short(&mut bytes, REFCOUNT_ORDER);
    short(&mut bytes, HEADER);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use devices::virtio::device::Budget;
    use devices::virtio::disk::Disk;
    use devices::virtio::disk::image::DiskImage;
    use proptest::prelude::*;

    use super::*;

    fn image_of(raw: &[u8]) -> Result<Vec<u8>> {
        let mut image = Cursor::new(Vec::new());
        let sizes = write_image(&mut &*raw, raw.len() as u64, &mut image, &mut |_| ())?;
        let image = image.into_inner();
        assert_eq!(sizes.image, image.len() as u64);
        assert_eq!(sizes.disk, raw.len().next_multiple_of(512) as u64);
        Ok(image)
    }

    /// What tarpit sees of an image.
    fn seen(image: Vec<u8>) -> Result<Vec<u8>> {
        let image = DiskImage::recognize(image.leak())?;
        assert!(matches!(image, DiskImage::Qcow2(_)));
        let disk = Disk::new(image, true, || true);
        let mut disk = disk.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut all = Vec::new();
        while (all.len() as u64) < disk.sectors() * 512 {
            let at = all.len() as u64;
            match disk.read(at, 512, &mut Budget::new()) {
                Ok(bytes) => all.extend(bytes.unwrap_or_default()),
                Err(error) => anyhow::bail!("{error:?} at {at:#x}"),
            }
        }
        Ok(all)
    }

    /// Bytes that do not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn zeros_take_nothing_and_noise_no_more_than_it_is() -> Result<()> {
        let clusters = |raw: &[u8]| -> Result<usize> {
            let image = image_of(raw)?;
            assert!(image.len().is_multiple_of(CLUSTER));
            Ok(image.len() / CLUSTER)
        };
        // The header, the table of the first level, and two for the counts of references.
        assert_eq!(clusters(&vec![0; 30 * CLUSTER])?, 4);
        // And a table of the second level, with one cluster or with two.
        assert_eq!(clusters(&vec![1; 30 * CLUSTER])?, 6);
        assert_eq!(clusters(&noise(2 * CLUSTER))?, 7);
        Ok(())
    }

    #[test]
    fn an_image_is_made_of_a_raw_one_only_and_replaces_what_was_there() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let (raw, image) = (path("raw"), path("image"));
        let error = |from: &str| {
            let error = compress(&path(from), &image).expect_err("an error");
            format!("{error:#}")
        };
        assert!(error("missing").contains("cannot read"));
        std::fs::write(path("empty"), [])?;
        assert!(error("empty").contains("is empty"));
        assert!(!image.exists());
        std::fs::write(&raw, [7; 1000])?;
        std::fs::write(&image, "old")?;
        let sizes = compress(&raw, &image)?;
        assert_eq!(
            (sizes.disk, sizes.image),
            (1024, std::fs::metadata(&image)?.len())
        );
        assert_eq!(
            seen(std::fs::read(&image)?)?,
            [&[7; 1000][..], &[0; 24]].concat()
        );
        assert!(error("image").contains("qemu-img convert"));
        // A file shorter than the magic is raw.
        std::fs::write(&raw, "QFI")?;
        assert_eq!(compress(&raw, &image)?.disk, 512);
        let nowhere = compress(&raw, &path("nowhere/image")).expect_err("an error");
        assert!(format!("{nowhere:#}").contains("cannot write"));
        Ok(())
    }

    /// The count of references to cluster `index` of an image, by its own tables.
    fn refcount(image: &[u8], index: usize) -> u16 {
        let number = |at: usize| {
            let bytes = image[at..at + 8].try_into().expect("eight bytes");
            u64::from_be_bytes(bytes) as usize
        };
        let block = number(number(48) + index / COUNTS * 8);
        let at = block + index % COUNTS * 2;
        u16::from_be_bytes([image[at], image[at + 1]])
    }

    #[test]
    fn each_cluster_of_an_image_is_referred_to() -> Result<()> {
        let raw = [noise(CLUSTER), vec![1; 3 * CLUSTER], vec![0; CLUSTER]].concat();
        let image = image_of(&raw)?;
        let counts = (0..image.len() / CLUSTER).map(|index| refcount(&image, index));
        // The header, the noise, three in one, and four tables.
        assert_eq!(counts.collect::<Vec<_>>(), [1, 1, 3, 1, 1, 1, 1]);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// What is read of it is what it was made of; and it is made in one way.
        #[test]
        fn an_image_is_read_as_what_it_was_made_of(
            kinds in proptest::collection::vec(0..4_u8, 1..12),
            cut in 0..CLUSTER,
        ) {
            let mut raw = Vec::new();
            for (index, kind) in kinds.iter().enumerate() {
                let cluster = match kind {
                    0 => vec![0; CLUSTER],
                    1 => noise(CLUSTER),
                    2 => (0..CLUSTER).map(|n| (n / 7 * index + n % 251) as u8).collect(),
                    _ => [noise(CLUSTER / 2), vec![index as u8; CLUSTER / 2]].concat(),
                };
                raw.extend(cluster);
            }
            raw.truncate(raw.len() - cut);
            let image = image_of(&raw).unwrap();
            prop_assert!(image_of(&raw).unwrap() == image);
            raw.resize(raw.len().next_multiple_of(512), 0);
            prop_assert!(seen(image).unwrap() == raw);
        }
    }
}
