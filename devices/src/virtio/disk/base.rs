//! What a disk has where nothing was written: its image, page by page.

use alloc::boxed::Box;

use super::error::DiskError;
use super::image::DiskImage;
use super::pages::{PAGE, ZEROS, own_page};
use super::qcow2::{Cluster, Qcow2};
use super::unpacker::Unpacker;
use crate::virtio::device::Budget;

/// A file, in pages.
#[derive(Debug)]
struct File<'a> {
    bytes: &'a [u8],
    /// The last page with zeros behind it, if the file does not have all of that.
    tail: Option<Box<[u8; PAGE]>>,
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, DiskError> {
        let (_, rest) = bytes.as_chunks::<PAGE>();
        let tail = (!rest.is_empty()).then(|| own_page(rest)).transpose()?;
        Ok(Self { bytes, tail })
    }

    /// Returns the page at byte `offset`, a multiple of a page's size. Behind the end there are zeros.
    fn page(&self, offset: usize) -> &[u8] {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        match (rest.get(..PAGE), &self.tail) {
            (Some(page), _) => page,
            (None, Some(tail)) if !rest.is_empty() => &tail[..],
            _ => &ZEROS,
        }
    }
}

/// The pages of an image, which is shared and stays as it is.
#[derive(Debug)]
pub(super) struct Base<'a> {
    file: File<'a>,
    /// The size of the disk, in bytes.
    size: u64,
    /// The tables, and what unpacks, if it is not raw.
    clusters: Option<(Qcow2<'a>, Unpacker)>,
}

impl<'a> Base<'a> {
    /// Makes the pages of `image`.
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn new(image: DiskImage<'a>) -> Result<Self, DiskError> {
        let clusters = match image {
            DiskImage::Raw(_) => None,
            DiskImage::Qcow2(image) => Some((image, Unpacker::new(image.cluster_size())?)),
        };
        Ok(Self {
            file: File::new(image.file())?,
            size: image.size(),
            clusters,
        })
    }

    /// Returns the size of the disk, in bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Returns page `page`, all of it; `None` if that takes more than there is of `budget`, and is to be
    /// asked for again.
    ///
    /// # Errors
    /// [`DiskError::Damaged`] if the image has nothing there that could be right.
    pub(super) fn page(
        &mut self,
        page: usize,
        budget: &mut Budget,
    ) -> Result<Option<&[u8]>, DiskError> {
        let Some((image, unpacker)) = &mut self.clusters else {
            return Ok(Some(self.file.page(page * PAGE)));
        };
        let pages = image.cluster_size() / PAGE;
        let (cluster, start) = ((page / pages) as u64, page % pages * PAGE);
        match image.cluster(cluster).map_err(|_| DiskError::Damaged)? {
            Cluster::Zeros => Ok(Some(&ZEROS)),
            Cluster::At(offset) => Ok(Some(self.file.page(offset + start))),
            Cluster::Compressed(compressed) => {
                let unpacked = unpacker.cluster(cluster, compressed, budget)?;
                Ok(unpacked.map(|bytes| &bytes[start..start + PAGE]))
            }
        }
    }
}
