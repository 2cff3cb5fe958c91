//! The qcow2 format of disk images, as far as a disk is one file that is read (QEMU,
//! docs/interop/qcow2.rst).
//!
//! A disk is divided into clusters. A table of two levels says of each where it is in the file: as it
//! is, compressed (raw deflate, RFC 1951), or nowhere as it is all zeros. All numbers are big-endian. The
//! header is checked when the file is seen; the tables, which are as large as the disk, as they are used.

use thiserror::Error;

/// The log2 of the sizes of clusters, in bytes: at least a page of a disk, and no more than QEMU takes.
const CLUSTER_BITS: core::ops::RangeInclusive<u32> = 12..=21;
/// The size of the largest disk, in bytes. It has tables of 3 MiB before anything is written.
const LARGEST: u64 = 256 << 30;
/// The first bytes of the format.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The length of a header of version 2, in bytes, and the least of one of version 3.
const HEADER: [usize; 2] = [72, 104];
/// The size of an entry of the tables, in bytes.
const ENTRY: usize = 8;
/// The unit in which the length of a compressed cluster is given, in bytes.
const SECTOR: usize = 512;

/// Incompatible features: whoever does not know one cannot read the image.
mod feature {
    /// Reference counts may be wrong. Nothing here needs them.
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// Bits of the entries of the tables.
mod entry {
    /// The place in the file; of both levels.
    pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    pub(super) const COMPRESSED: u64 = 1 << 62;
    /// A cluster of zeros, if it is not compressed. Only in version 3.
    pub(super) const ZEROS: u64 = 1 << 0;
}

/// The reason why a disk image cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Qcow2Error {
    /// A file that ends before its header or its first table does.
    #[error("is cut off: it has {length} bytes, and needs {needed} at least; copy it again")]
    Truncated {
        /// The length of the file, in bytes.
        length: usize,
        /// The bytes that its header and the table take.
        needed: u64,
    },
    /// A version of the format other than 2 and 3.
    #[error("has version {0} of the format: make it anew, by `qemu-img convert -O qcow2 -c`")]
    Version(u32),
    /// A disk that has its contents from another file.
    #[error(
        "has a backing file, which is not looked for: make one of the two, by `qemu-img convert -O qcow2 -c`"
    )]
    BackingFile,
    /// Clusters that are too small or too large.
    #[error(
        "has clusters of 2^{0} bytes, not of 4 KiB to 2 MiB: make it anew, by \
         `qemu-img convert -O qcow2 -c -o cluster_size=64K`"
    )]
    ClusterSize(u32),
    /// Contents that are encrypted.
    #[error(
        "is encrypted: decrypt it, by `qemu-img convert -O qcow2 -c` with its key, and encrypt in the guest"
    )]
    Encrypted,
    /// An image that was found damaged before.
    #[error("is marked as corrupt: repair it, by `qemu-img check -r all`")]
    Corrupt,
    /// Contents that are in another file.
    #[error("has its data in another file: make one of the two, by `qemu-img convert -O qcow2 -c`")]
    ExternalData,
    /// Clusters that are compressed in another way.
    #[error(
        "is not compressed by deflate (but by zstd?): make it anew, by \
         `qemu-img convert -O qcow2 -c -o compression_type=zlib`"
    )]
    CompressionType,
    /// Tables with parts of clusters.
    #[error(
        "has extended L2 entries: make it anew, by `qemu-img convert -O qcow2 -c -o extended_l2=off`"
    )]
    ExtendedL2,
    /// Features that nobody knew when this was written.
    #[error("has unknown features {0:#x}: make it anew, by `qemu-img convert -O qcow2 -c`")]
    UnknownFeatures(u64),
    /// A disk that is too large.
    #[error(
        "is a disk of {0} bytes, and one has {most} GiB at most: make it smaller, by `qemu-img resize --shrink`",
        most = LARGEST >> 30
    )]
    TooLarge(u64),
    /// A table that does not have all of the disk, or is not where one can be.
    #[error("has a wrong L1 table: see what `qemu-img check` says, or copy it again")]
    BadTable,
}

/// An entry of a table that cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// The place of a cluster's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster<'a> {
    /// All of it is zeros.
    Zeros,
    /// The byte of the file from which on it is there. Behind the end of the file there are zeros.
    At(usize),
    /// The bytes that it unpacks from, perhaps with something behind them.
    Compressed(&'a [u8]),
}

/// A disk image in the qcow2 format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2<'a> {
    file: &'a [u8],
    cluster_bits: u32,
    /// The size of the disk, in bytes.
    size: u64,
    /// The table of the first level.
    table: &'a [u8],
    /// Whether a cluster can say that it is zeros.
    has_zeros: bool,
}

impl<'a> Qcow2<'a> {
    /// Tells whether `file` begins as the format does.
    #[must_use]
    pub fn is_one(file: &[u8]) -> bool {
        file.starts_with(&MAGIC)
    }

    /// Reads the header of `file`, which [is one](Qcow2::is_one).
    ///
    /// # Errors
    /// If it is of another kind than we read, or cannot be right.
    pub fn new(file: &'a [u8]) -> Result<Self, Qcow2Error> {
        let truncated = |needed| Qcow2Error::Truncated {
            length: file.len(),
            needed,
        };
        let version = number32(file, 4).ok_or(truncated(HEADER[0] as u64))?;
        let header = match version {
            2 => HEADER[0],
            3 => HEADER[1],
            _ => return Err(Qcow2Error::Version(version)),
        };
        if file.len() < header {
            return Err(truncated(header as u64));
        }
        // All of these are in the header.
        let short = |at| number32(file, at).unwrap_or_default();
        let long = |at| number64(file, at).unwrap_or_default();
        if version == 3 {
            check_features(long(72))?;
        }
        if long(8) != 0 {
            return Err(Qcow2Error::BackingFile);
        }
        let cluster_bits = short(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Qcow2Error::ClusterSize(cluster_bits));
        }
        if short(32) != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let size = long(24);
        if size > LARGEST {
            return Err(Qcow2Error::TooLarge(size));
        }
        // An entry has a table of one cluster. Snapshots may have left more entries than it takes.
        let covered = 1_u64 << (cluster_bits + cluster_bits - ENTRY.ilog2());
        let needed = size.div_ceil(covered);
        let offset = long(40);
        if needed > short(36).into() || !offset.is_multiple_of(1 << cluster_bits) {
            return Err(Qcow2Error::BadTable);
        }
        let end = offset
            .checked_add(needed * ENTRY as u64)
            .ok_or(Qcow2Error::BadTable)?;
        let table = slice(file, offset, end).ok_or(truncated(end))?;
        Ok(Self {
            file,
            cluster_bits,
            size,
            table,
            has_zeros: version == 3,
        })
    }

    /// Returns the file.
    pub(super) const fn file(&self) -> &'a [u8] {
        self.file
    }

    /// Returns the size of the disk, in bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the size of its clusters, in bytes.
    pub(super) const fn cluster_size(&self) -> usize {
        1 << self.cluster_bits
    }

    /// Returns where cluster `index` of the disk is.
    pub(super) fn cluster(&self, index: u64) -> Result<Cluster<'a>, Damaged> {
        let entries = (self.cluster_size() / ENTRY) as u64;
        let number = |table, index| number64(table, index as usize * ENTRY).ok_or(Damaged);
        let first = number(self.table, index / entries)? & entry::OFFSET;
        if first == 0 {
            return Ok(Cluster::Zeros);
        }
        let table = slice(self.file, first, first + self.cluster_size() as u64);
        let table = table.filter(|_| self.begins_cluster(first));
        let second = number(table.ok_or(Damaged)?, index % entries)?;
        if second & entry::COMPRESSED != 0 {
            return self.compressed(second).map(Cluster::Compressed);
        }
        if second & entry::ZEROS != 0 {
            return if self.has_zeros {
                Ok(Cluster::Zeros)
            } else {
                Err(Damaged)
            };
        }
        match second & entry::OFFSET {
            0 => Ok(Cluster::Zeros),
            offset if self.begins_cluster(offset) && offset < self.file.len() as u64 => {
                Ok(Cluster::At(offset as usize))
            }
            _ => Err(Damaged),
        }
    }

    const fn begins_cluster(&self, offset: u64) -> bool {
        offset.is_multiple_of(self.cluster_size() as u64)
    }

    /// Returns what a cluster unpacks from.
    fn compressed(&self, entry: u64) -> Result<&'a [u8], Damaged> {
        // The more bits the length takes, the fewer the offset has.
        let length_bits = self.cluster_bits - 8;
        let offset_bits = 62 - length_bits;
        let offset = entry & ((1 << offset_bits) - 1);
        let more_sectors = (entry >> offset_bits) as usize & ((1 << length_bits) - 1);
        let rest = slice(self.file, offset, self.file.len() as u64).ok_or(Damaged)?;
        // Up to the end of a sector, of which the file may not have all.
        let length = (1 + more_sectors) * SECTOR - offset as usize % SECTOR;
        Ok(&rest[..rest.len().min(length)])
    }
}

const fn check_features(features: u64) -> Result<(), Qcow2Error> {
    const KNOWN: u64 = feature::DIRTY
        | feature::CORRUPT
        | feature::EXTERNAL_DATA
        | feature::COMPRESSION_TYPE
        | feature::EXTENDED_L2;
    if features & feature::CORRUPT != 0 {
        Err(Qcow2Error::Corrupt)
    } else if features & feature::EXTERNAL_DATA != 0 {
        Err(Qcow2Error::ExternalData)
    } else if features & feature::COMPRESSION_TYPE != 0 {
        Err(Qcow2Error::CompressionType)
    } else if features & feature::EXTENDED_L2 != 0 {
        Err(Qcow2Error::ExtendedL2)
    } else if features & !KNOWN != 0 {
        Err(Qcow2Error::UnknownFeatures(features & !KNOWN))
    } else {
        Ok(())
    }
}

fn slice(file: &[u8], from: u64, to: u64) -> Option<&[u8]> {
    file.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests;
