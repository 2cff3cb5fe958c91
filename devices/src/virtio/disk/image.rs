//! The file that a disk begins as.

use super::qcow2::{Qcow2, Qcow2Error};

/// A disk image, of a format that is told by its first bytes.
///
/// A guest never writes to the file: it cannot have its disk taken for one of another format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskImage<'a> {
    /// The bytes of the disk.
    Raw(&'a [u8]),
    /// An image with tables, which may be compressed.
    Qcow2(Qcow2<'a>),
}

impl<'a> DiskImage<'a> {
    /// Recognizes the format of `file`: whatever is not qcow2 is raw.
    ///
    /// # Errors
    /// If it is qcow2 of a kind that we do not read.
    pub fn recognize(file: &'a [u8]) -> Result<Self, Qcow2Error> {
        if Qcow2::is_one(file) {
            Qcow2::new(file).map(Self::Qcow2)
        } else {
            Ok(Self::Raw(file))
        }
    }

    /// Returns the size of the disk, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::Raw(file) => file.len() as u64,
            Self::Qcow2(image) => image.size(),
        }
    }

    /// Returns the file.
    #[must_use]
    pub const fn file(&self) -> &'a [u8] {
        match self {
            Self::Raw(file) => file,
            Self::Qcow2(image) => image.file(),
        }
    }
}
