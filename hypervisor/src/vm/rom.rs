//! A guest's ROM: its firmware, below 4 GiB. The guest reads and executes there; what it writes goes
//! nowhere.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use vmx::addr::{GuestPhysAddr, HostPhysAddr, PAGE_SIZE};
use vmx::page::Page;

/// A ROM.
pub(crate) struct Rom {
    start: GuestPhysAddr,
    image: &'static [u8],
    /// A copy of the image, for the processor: a boot loader may put a file anywhere.
    pages: Vec<Box<Page>>,
}

impl Rom {
    /// Makes a ROM with `image` at `start`, in whole pages. `None` if there is no memory.
    #[must_use]
    pub(crate) fn new(start: GuestPhysAddr, image: &'static [u8]) -> Option<Self> {
        let mut pages = Vec::new();
        let contents = image.chunks(PAGE_SIZE as usize);
        pages.try_reserve_exact(contents.len()).ok()?;
        for content in contents {
            let mut page = Page::try_new()?;
            for (word, bytes) in page.0.iter_mut().zip(content.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            pages.push(page);
        }
        Some(Self {
            start,
            image,
            pages,
        })
    }

    /// Returns its pages: where the guest sees each, and where it is.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (GuestPhysAddr, HostPhysAddr)> {
        let addresses = (self.start.0..).step_by(PAGE_SIZE as usize);
        addresses
            .map(GuestPhysAddr)
            .zip(self.pages.iter().map(|page| page.address()))
    }

    /// Copies what is at `address` to `buffer`, and returns whether all of it is in the ROM.
    pub(crate) fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> bool {
        let offset = address.0.wrapping_sub(self.start.0);
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.image.get(offset..))
            .and_then(|bytes| bytes.get(..buffer.len()));
        if let Some(bytes) = bytes {
            buffer.copy_from_slice(bytes);
        }
        bytes.is_some()
    }
}

impl core::fmt::Debug for Rom {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes of ROM at {:?}", self.image.len(), self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_and_the_emulator_find_the_same_in_it() {
        let image: Vec<u8> = (0..0x3000_u32).map(|at| ((at * 7) >> 4) as u8).collect();
        let image: &'static [u8] = image.leak();
        let start = GuestPhysAddr(0xffff_d000);
        let rom = Rom::new(start, image).unwrap();
        let pages: Vec<_> = rom.pages().collect();
        assert_eq!(pages.len(), 3);
        for (index, (guest, host)) in pages.into_iter().enumerate() {
            assert_eq!(guest.0, start.0 + 0x1000 * index as u64);
            assert_eq!(host, rom.pages[index].address());
            let bytes = rom.pages[index]
                .0
                .iter()
                .flat_map(|word| word.to_le_bytes());
            assert!(bytes.eq(image[0x1000 * index..][..0x1000].iter().copied()));
        }
        let mut buffer = [0; 16];
        assert!(rom.read(GuestPhysAddr(0xffff_fff0), &mut buffer));
        assert_eq!(buffer, image[0x2ff0..]);
        for beyond in [0, 0xffff_cfff, 0xffff_fff1, 1 << 32, u64::MAX] {
            assert!(!rom.read(GuestPhysAddr(beyond), &mut buffer), "{beyond:#x}");
        }
    }
}
