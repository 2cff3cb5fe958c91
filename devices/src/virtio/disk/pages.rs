//! The pages of a disk: which are as in the image, and the memory of those that are not.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::error::DiskError;

/// The unit in which a disk is copied as it is written, in bytes.
pub(super) const PAGE: usize = 4096;
/// The number of pages for which there is a table where one of them was written.
const PAGES: usize = 512;
/// The bytes of a disk that such a table is for.
pub(super) const REGION: usize = PAGES * PAGE;
/// A page of zeros.
pub(super) static ZEROS: [u8; PAGE] = [0; PAGE];

/// A page of a disk.
#[derive(Debug)]
pub(super) enum Page {
    /// A page that is as in the image.
    Base,
    /// Discarded: zeros.
    Zeros,
    /// Written.
    Own(Box<[u8; PAGE]>),
}

impl Page {
    const fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }
}

/// Pages in a row.
#[derive(Debug)]
enum Region {
    /// All are as in the image.
    Base,
    /// All are zeros.
    Zeros,
    /// Some are not as others.
    Table(Box<[Page]>),
}

/// Makes a page in memory of its own, which begins with `bytes` and goes on with zeros.
pub(super) fn own_page(bytes: &[u8]) -> Result<Box<[u8; PAGE]>, DiskError> {
    let mut page = Vec::new();
    page.try_reserve_exact(PAGE)
        .map_err(|_| DiskError::OutOfMemory)?;
    page.extend_from_slice(bytes);
    page.resize(PAGE, 0);
    // As large as it was reserved: this copies nothing.
    page.into_boxed_slice()
        .try_into()
        .map_err(|_| DiskError::OutOfMemory)
}

/// Makes a list of `count` things in memory of its own.
fn list<T>(count: usize, thing: impl FnMut() -> T) -> Result<Vec<T>, DiskError> {
    let mut list = Vec::new();
    list.try_reserve_exact(count)
        .map_err(|_| DiskError::OutOfMemory)?;
    list.resize_with(count, thing);
    Ok(list)
}

/// The pages of a disk. What nobody has written takes some 12 bytes a MiB: images may be of disks that are
/// much larger than what is on them, and a disk is to be made in no time.
#[derive(Debug)]
pub(super) struct Pages {
    regions: Vec<Region>,
    /// The number of pages.
    count: usize,
    /// The number of those that are [`Page::Own`].
    own: usize,
}

impl Pages {
    /// The memory that a region takes of which nothing was written, in bytes.
    #[cfg(test)]
    pub(super) const REGION_TABLE: usize = size_of::<Region>();

    /// Makes so many pages, which are as in the image.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub(super) fn new(count: usize) -> Result<Self, DiskError> {
        let regions = list(count.div_ceil(PAGES), || Region::Base)?;
        Ok(Self {
            regions,
            count,
            own: 0,
        })
    }

    /// Returns page `index`, if there is one.
    pub(super) fn get(&self, index: usize) -> Option<&Page> {
        match self.regions.get(index / PAGES)? {
            _ if index >= self.count => None,
            Region::Base => Some(&Page::Base),
            Region::Zeros => Some(&Page::Zeros),
            Region::Table(pages) => pages.get(index % PAGES),
        }
    }

    /// Puts something else into the place of page `index`. The memory that this may take is had only while
    /// `has_room` says so.
    ///
    /// # Errors
    /// If there is no such page, or no memory.
    pub(super) fn put(
        &mut self,
        index: usize,
        page: Page,
        has_room: fn() -> bool,
    ) -> Result<(), DiskError> {
        let first = index / PAGES * PAGES;
        let count = PAGES.min(self.count.saturating_sub(first));
        let region = self.regions.get_mut(index / PAGES);
        let region = region.ok_or(DiskError::OutOfRange)?;
        let table = match (&*region, &page) {
            (Region::Zeros, Page::Zeros) => return Ok(()),
            (Region::Table(_), _) => None,
            _ if !has_room() => return Err(DiskError::OutOfMemory),
            (Region::Base, _) => Some(list(count, || Page::Base)?),
            (Region::Zeros, _) => Some(list(count, || Page::Zeros)?),
        };
        if let Some(table) = table {
            *region = Region::Table(table.into_boxed_slice());
        }
        match region {
            Region::Table(pages) => {
                let place = pages.get_mut(index % PAGES).ok_or(DiskError::OutOfRange)?;
                self.own += usize::from(page.is_own());
                self.own -= usize::from(core::mem::replace(place, page).is_own());
                Ok(())
            }
            _ => Err(DiskError::OutOfRange),
        }
    }

    /// Returns the memory of page `index`, if it has some.
    pub(super) fn own_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        match self.regions.get_mut(index / PAGES)? {
            Region::Table(pages) => match pages.get_mut(index % PAGES)? {
                Page::Own(bytes) => Some(&mut bytes[..]),
                _ => None,
            },
            _ => None,
        }
    }

    /// Makes all pages of a region zeros.
    ///
    /// # Errors
    /// If there is no such region.
    pub(super) fn discard_region(&mut self, region: usize) -> Result<(), DiskError> {
        let region = self.regions.get_mut(region).ok_or(DiskError::OutOfRange)?;
        if let Region::Table(pages) = core::mem::replace(region, Region::Zeros) {
            self.own -= pages.iter().filter(|page| page.is_own()).count();
        }
        Ok(())
    }

    /// Returns how many pages have memory of their own.
    pub(super) const fn own(&self) -> usize {
        self.own
    }
}
