//! The contents of a disk: an image that is never written, and pages over it that were.

mod base;
mod error;
pub mod image;
mod pages;
pub mod qcow2;
mod unpacker;

use alloc::sync::Arc;

use spin::Mutex;

use super::device::Budget;
use base::Base;
use image::DiskImage;
use pages::{PAGE, Page, Pages, REGION, ZEROS, own_page};

pub use error::DiskError;

/// The unit of addresses on a disk, in bytes.
pub const SECTOR: u64 = 512;

/// A disk whose writes stay its own: the image is shared and stays as it is.
#[derive(Debug)]
pub struct Disk {
    base: Base<'static>,
    pages: Pages,
    read_only: bool,
    /// Whether the machine has memory for a copy: see [`Disk::new`].
    has_room: fn() -> bool,
}

/// A disk that outlives the device in front of it. Only that works with it, under the lock of its VM's board: nobody
/// waits for this one but who looks at how much was written.
pub type SharedDisk = Arc<Mutex<Disk>>;

impl Disk {
    /// Makes a disk that begins as `image`, rounded up to whole sectors. A page is
    /// copied to memory of its own only while `has_room` says that the machine has enough of it:
    /// what a guest writes is not to leave others without.
    ///
    /// # Errors
    /// If there is no memory for its tables.
    pub fn new(
        image: DiskImage<'static>,
        read_only: bool,
        has_room: fn() -> bool,
    ) -> Result<Self, DiskError> {
        let pages = usize::try_from(image.size().div_ceil(PAGE as u64));
        Ok(Self {
            base: Base::new(image)?,
            pages: Pages::new(pages.map_err(|_| DiskError::OutOfMemory)?)?,
            read_only,
            has_room,
        })
    }

    /// Returns how many sectors it has.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.base.size().div_ceil(SECTOR)
    }

    /// Tells whether it cannot be written.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Returns the byte at which the `count` sectors from `first` on begin.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] if they are not all there.
    pub const fn offset(&self, first: u64, count: u64) -> Result<u64, DiskError> {
        match first.checked_add(count) {
            Some(end) if end <= self.sectors() => Ok(first * SECTOR),
            _ => Err(DiskError::OutOfRange),
        }
    }

    /// Returns how many of the `length` bytes from byte `offset` on are one piece of memory.
    #[must_use]
    pub const fn piece(offset: u64, length: u64) -> usize {
        let piece = PAGE - offset as usize % PAGE;
        if length < piece as u64 {
            length as usize
        } else {
            piece
        }
    }

    /// Returns how many of the `length` bytes from byte `offset` on can be [discarded](Disk::discard) at
    /// once: a [piece](Disk::piece), or what has a table of its own.
    #[must_use]
    pub const fn discarded_piece(offset: u64, length: u64) -> usize {
        if offset.is_multiple_of(REGION as u64) && length >= REGION as u64 {
            REGION
        } else {
            Self::piece(offset, length)
        }
    }

    /// Returns the `length` bytes from byte `offset` on, which are one [piece](Disk::piece). `None` if
    /// unpacking them takes more than there is of `budget`: what has been done is kept until they are asked
    /// for again.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] if they are none, or not all there; [`DiskError::Damaged`] if the image is.
    pub fn read(
        &mut self,
        offset: u64,
        length: usize,
        budget: &mut Budget,
    ) -> Result<Option<&[u8]>, DiskError> {
        let (page, start) = Self::locate(offset);
        let bytes = match self.pages.get(page) {
            Some(Page::Own(bytes)) => &bytes[..],
            Some(Page::Zeros) => &ZEROS[..],
            Some(Page::Base) => match self.base.page(page, budget)? {
                Some(bytes) => bytes,
                None => return Ok(None),
            },
            None => return Err(DiskError::OutOfRange),
        };
        let piece = bytes.get(start..start + length);
        piece.map(Some).ok_or(DiskError::OutOfRange)
    }

    /// Does as [`Disk::read`] does, with a piece to be written, all of it.
    ///
    /// # Errors
    /// As [`Disk::read`]; and if the disk is read-only, or there is no memory for a copy.
    pub fn write(
        &mut self,
        offset: u64,
        length: usize,
        budget: &mut Budget,
    ) -> Result<Option<&mut [u8]>, DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        let (page, start) = Self::locate(offset);
        let copy = match self.pages.get(page) {
            Some(Page::Own(_)) => None,
            Some(_) if !(self.has_room)() => return Err(DiskError::OutOfMemory),
            // What is there is not wanted.
            Some(Page::Base) if length == PAGE => Some(own_page(&[])?),
            Some(Page::Base) => match self.base.page(page, budget)? {
                Some(bytes) => Some(own_page(bytes)?),
                None => return Ok(None),
            },
            Some(Page::Zeros) => Some(own_page(&[])?),
            None => return Err(DiskError::OutOfRange),
        };
        if let Some(copy) = copy {
            self.pages.put(page, Page::Own(copy), self.has_room)?;
        }
        let bytes = self.pages.own_mut(page).ok_or(DiskError::OutOfRange)?;
        let piece = bytes.get_mut(start..start + length);
        piece.map(Some).ok_or(DiskError::OutOfRange)
    }

    /// Makes the `length` bytes from byte `offset` on zeros, which are one
    /// [piece](Disk::discarded_piece), and gives back the memory of pages that have nothing else. `None`
    /// as with [`Disk::read`].
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn discard(
        &mut self,
        offset: u64,
        length: usize,
        budget: &mut Budget,
    ) -> Result<Option<()>, DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        match length {
            REGION => self
                .pages
                .discard_region((offset / REGION as u64) as usize)?,
            PAGE => {
                let page = Self::locate(offset).0;
                self.pages.put(page, Page::Zeros, self.has_room)?;
            }
            _ => match self.write(offset, length, budget)? {
                Some(bytes) => bytes.fill(0),
                None => return Ok(None),
            },
        }
        Ok(Some(()))
    }

    /// Returns how many pages have memory of their own.
    #[must_use]
    pub const fn own_pages(&self) -> usize {
        self.pages.own()
    }

    /// Returns how much memory these take, in bytes.
    #[must_use]
    pub const fn own_bytes(&self) -> u64 {
        (self.own_pages() * PAGE) as u64
    }

    /// Returns the page of byte `offset`, and where in it that is.
    const fn locate(offset: u64) -> (usize, usize) {
        ((offset / PAGE as u64) as usize, offset as usize % PAGE)
    }
}

#[cfg(test)]
pub(crate) mod test_image;
#[cfg(test)]
mod tests;
