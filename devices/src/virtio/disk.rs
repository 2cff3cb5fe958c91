//! The contents of a disk: a base that is never written, and pages over it that were.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

/// The unit of addresses on a disk, in bytes.
pub const SECTOR: u64 = 512;
/// The unit in which a disk is copied as it is written, in bytes.
const PAGE: usize = 4096;

/// The cause of a failed access to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// An access past the end.
    OutOfRange,
    /// No memory for what is written.
    OutOfMemory,
    /// The disk cannot be written.
    ReadOnly,
}

/// A page of a disk.
#[derive(Clone, Debug)]
enum Page {
    /// A page of the base, which has all of it.
    Base,
    /// Discarded: zeros.
    Zeros,
    /// Written.
    Own(Box<[u8]>),
}

/// A disk whose writes stay its own: the base is shared and stays as it is.
#[derive(Clone, Debug)]
pub struct Disk {
    base: &'static [u8],
    pages: Vec<Page>,
    /// The number of pages that are [`Page::Own`].
    own: usize,
    read_only: bool,
    /// Whether the machine has memory for a copy: see [`Disk::new`].
    has_room: fn() -> bool,
}

/// A disk that outlives the device in front of it. Only that works with it, under the lock of its VM's board: nobody
/// waits for this one but who looks at how much was written.
pub type SharedDisk = Arc<Mutex<Disk>>;

/// Makes a page in memory of its own, which begins with `bytes` and goes on with zeros.
fn own_page(bytes: &[u8]) -> Result<Box<[u8]>, DiskError> {
    let mut page = Vec::new();
    page.try_reserve_exact(PAGE)
        .map_err(|_| DiskError::OutOfMemory)?;
    page.extend_from_slice(bytes);
    page.resize(PAGE, 0);
    // As large as it was reserved: this copies nothing.
    Ok(page.into_boxed_slice())
}

impl Disk {
    /// Makes a disk that begins as `base`, rounded up to whole sectors with zeros. A page is
    /// copied to memory of its own only while `has_room` says that the machine has enough of it:
    /// what a guest writes is not to leave others without.
    ///
    /// # Errors
    /// If there is no memory for its tables.
    pub fn new(
        base: &'static [u8],
        read_only: bool,
        has_room: fn() -> bool,
    ) -> Result<Self, DiskError> {
        let mut pages = Vec::new();
        pages
            .try_reserve_exact(base.len().div_ceil(PAGE))
            .map_err(|_| DiskError::OutOfMemory)?;
        let (whole, rest) = base.as_chunks::<PAGE>();
        pages.resize(whole.len(), Page::Base);
        let own = usize::from(!rest.is_empty());
        if !rest.is_empty() {
            pages.push(Page::Own(own_page(rest)?));
        }
        Ok(Self {
            base,
            pages,
            own,
            read_only,
            has_room,
        })
    }

    /// Returns how many sectors it has.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        (self.base.len() as u64).div_ceil(SECTOR)
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

    /// Returns the `length` bytes from byte `offset` on, which are one [piece](Disk::piece).
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] if they are none, or not all there.
    pub fn read(&self, offset: u64, length: usize) -> Result<&[u8], DiskError> {
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let (page, start) = Self::locate(offset);
        let bytes = match self.pages.get(page) {
            Some(Page::Own(bytes)) => bytes,
            Some(Page::Zeros) => &ZEROS[..],
            Some(Page::Base) => self.base_page(page),
            None => return Err(DiskError::OutOfRange),
        };
        bytes
            .get(start..start + length)
            .ok_or(DiskError::OutOfRange)
    }

    /// Does as [`Disk::read`] does, with a piece to be written.
    ///
    /// # Errors
    /// As [`Disk::read`]; and if the disk is read-only, or there is no memory for a copy.
    pub fn write(&mut self, offset: u64, length: usize) -> Result<&mut [u8], DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        let (page, start) = Self::locate(offset);
        let copy = match self.pages.get(page) {
            Some(Page::Own(_)) => None,
            Some(_) if !(self.has_room)() => return Err(DiskError::OutOfMemory),
            Some(Page::Zeros) => Some(own_page(&[])?),
            Some(Page::Base) => Some(own_page(self.base_page(page))?),
            None => return Err(DiskError::OutOfRange),
        };
        let slot = &mut self.pages[page];
        if let Some(copy) = copy {
            *slot = Page::Own(copy);
            self.own += 1;
        }
        match slot {
            Page::Own(bytes) => bytes
                .get_mut(start..start + length)
                .ok_or(DiskError::OutOfRange),
            _ => Err(DiskError::OutOfRange),
        }
    }

    /// Makes the `length` bytes from byte `offset` on zeros, and gives back the memory of pages
    /// that have nothing else.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let piece = Self::piece(at, length - done);
            if piece == PAGE {
                let page = self.pages.get_mut(Self::locate(at).0);
                let page = page.ok_or(DiskError::OutOfRange)?;
                let former = core::mem::replace(page, Page::Zeros);
                self.own -= usize::from(matches!(former, Page::Own(_)));
            } else {
                self.write(at, piece)?.fill(0);
            }
            done += piece as u64;
        }
        Ok(())
    }

    /// Returns how many pages have memory of their own.
    #[must_use]
    pub const fn own_pages(&self) -> usize {
        self.own
    }

    /// Returns how much memory these take, in bytes.
    #[must_use]
    pub const fn own_bytes(&self) -> u64 {
        (self.own * PAGE) as u64
    }

    /// Returns the page of byte `offset`, and where in it that is.
    const fn locate(offset: u64) -> (usize, usize) {
        ((offset / PAGE as u64) as usize, offset as usize % PAGE)
    }

    fn base_page(&self, page: usize) -> &'static [u8] {
        let rest = self.base.get(page * PAGE..).unwrap_or_default();
        &rest[..rest.len().min(PAGE)]
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use proptest::prelude::*;

    use super::*;

    fn base(length: usize) -> &'static [u8] {
        let bytes: Vec<u8> = (0..length).map(|n| (n / 7) as u8).collect();
        bytes.leak()
    }

    #[test]
    fn only_what_is_written_takes_memory() {
        let mut disk = Disk::new(base(16 * PAGE), false, || true).unwrap();
        assert_eq!((disk.sectors(), disk.own_pages()), (128, 0));
        disk.write(5 * PAGE as u64 + 7, 1).unwrap()[0] = 0xaa;
        assert_eq!(disk.own_pages(), 1);
        let page = disk.read(5 * PAGE as u64, PAGE).unwrap();
        let original = &disk.base[5 * PAGE..6 * PAGE];
        assert_eq!(
            (&page[..7], page[7], &page[8..]),
            (&original[..7], 0xaa, &original[8..])
        );
        disk.discard(5 * PAGE as u64, PAGE as u64).unwrap();
        assert_eq!(disk.own_pages(), 0);
        assert_eq!(disk.read(5 * PAGE as u64, PAGE).unwrap(), [0; PAGE]);
    }

    #[test]
    fn a_base_is_rounded_up_to_whole_sectors() {
        let disk = Disk::new(base(PAGE + 600), false, || true).unwrap();
        assert_eq!(disk.sectors(), 10);
        assert_eq!(disk.offset(9, 1), Ok(9 * SECTOR));
        assert_eq!(disk.offset(9, 2), Err(DiskError::OutOfRange));
        assert_eq!(disk.offset(u64::MAX, 2), Err(DiskError::OutOfRange));
        let last = disk.read(9 * SECTOR, 512).unwrap();
        assert_eq!(last[..88], disk.base[PAGE + 512..]);
        assert_eq!(last[88..], [0; 424]);
        let empty = Disk::new(&[], false, || true).unwrap();
        assert_eq!(empty.sectors(), 0);
        assert_eq!(empty.read(0, 1), Err(DiskError::OutOfRange));
    }

    #[test]
    fn a_read_only_disk_is_not_written() {
        let mut disk = Disk::new(base(PAGE), true, || true).unwrap();
        assert_eq!(disk.write(0, 1), Err(DiskError::ReadOnly));
        assert_eq!(disk.discard(0, 512), Err(DiskError::ReadOnly));
        assert!(disk.read(0, PAGE).is_ok());
    }

    #[test]
    fn a_disk_takes_no_memory_that_others_need() {
        let mut disk = Disk::new(base(2 * PAGE), false, || false).unwrap();
        assert_eq!(disk.write(0, 1), Err(DiskError::OutOfMemory));
        disk.discard(0, PAGE as u64).unwrap();
        assert_eq!(disk.write(0, 1), Err(DiskError::OutOfMemory));
        assert_eq!(disk.read(0, PAGE).unwrap(), [0; PAGE]);
        assert_eq!(disk.discard(9, 3), Err(DiskError::OutOfMemory));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Discard(u64, u64),
    }

    fn any_step(length: u64) -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..length, proptest::collection::vec(any::<u8>(), 1..9000))
                .prop_map(|(offset, data)| Step::Write(offset, data)),
            (0..length, 0..20_000u64).prop_map(|(offset, count)| Step::Discard(offset, count)),
        ]
    }

    proptest! {
        #[test]
        fn a_disk_is_an_array_of_bytes(
            length in 1..20 * PAGE,
            steps in proptest::collection::vec(any_step(20 * PAGE as u64), 0..30),
        ) {
            let base = base(length);
            let mut disk = Disk::new(base, false, || true).unwrap();
            let size = (disk.sectors() * SECTOR) as usize;
            let mut model = vec![0; size];
            model[..length].copy_from_slice(base);
            for step in steps {
                match step {
                    Step::Write(offset, data) => {
                        let start = offset.min(size as u64);
                        let data = &data[..data.len().min(size - start as usize)];
                        let mut done = 0;
                        while done < data.len() {
                            let at = start + done as u64;
                            let piece = Disk::piece(at, (data.len() - done) as u64);
                            disk.write(at, piece).unwrap().copy_from_slice(&data[done..done + piece]);
                            done += piece;
                        }
                        model[start as usize..start as usize + data.len()].copy_from_slice(data);
                    }
                    Step::Discard(offset, count) => {
                        let start = offset.min(size as u64);
                        let count = count.min(size as u64 - start);
                        disk.discard(start, count).unwrap();
                        model[start as usize..(start + count) as usize].fill(0);
                    }
                }
            }
            let mut at = 0;
            while at < size as u64 {
                let piece = Disk::piece(at, size as u64 - at);
                prop_assert_eq!(disk.read(at, piece).unwrap(), &model[at as usize..at as usize + piece]);
                at += piece as u64;
            }
            prop_assert_eq!(base, super::tests::base(length), "the base stays");
            let own = disk.pages.iter().filter(|page| matches!(page, Page::Own(_)));
            prop_assert_eq!(disk.own_pages(), own.count());
        }
    }
}
