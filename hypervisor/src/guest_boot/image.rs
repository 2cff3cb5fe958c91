//! What a guest begins with, in memory and in its first VCPU.
//!
//! It is made of the VM's files before the VM runs, which may take its time: an initial RAM disk is
//! unpacked to see whether it is whole. Copying it to the RAM takes as long as the files are, so that
//! can be done in pieces, with other things in between.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use vmx::addr::GuestPhysAddr;

use super::entry::EntryState;
use super::memory_map::is_ram;
use crate::guest_memory::{GuestMemory, NotRam};

/// The memory of a guest that has not been started yet. What is in no part of it is zero.
pub(crate) struct MemoryImage<'a> {
    /// The size of the guest's RAM, in bytes.
    ram_size: u64,
    /// The parts, none of them empty. Of those that lie over each other the last counts.
    parts: Vec<Part<'a>>,
}

/// A guest that is ready to be put into its VM.
pub(crate) struct GuestImage<'a> {
    /// The things in its memory.
    pub memory: MemoryImage<'a>,
    /// The state that its first VCPU starts in.
    pub entry: EntryState,
}

/// A part of the memory.
struct Part<'a> {
    address: GuestPhysAddr,
    content: Content<'a>,
}

/// The content of a part.
enum Content<'a> {
    /// Bytes of a file, or made for this guest.
    Bytes(Cow<'a, [u8]>),
    /// A number of zeros.
    Zeros(u64),
}

impl Part<'_> {
    fn length(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Zeros(length) => *length,
        }
    }

    /// Copies `length` bytes, from `offset` on, to where they belong in `memory`; both are within the
    /// part.
    fn copy(&self, memory: &impl GuestMemory, offset: u64, length: u64) -> Result<(), NotRam> {
        const ZEROS: [u8; 4096] = [0; _];
        let mut address = GuestPhysAddr(self.address.0 + offset);
        match &self.content {
            Content::Bytes(bytes) => {
                let bytes = &bytes[offset as usize..(offset + length) as usize];
                memory.write(address, bytes)
            }
            Content::Zeros(_) => {
                let end = address.0 + length;
                while address.0 < end {
                    let zeros = (end - address.0).min(ZEROS.len() as u64);
                    memory.write(address, &ZEROS[..zeros as usize])?;
                    address.0 += zeros;
                }
                Ok(())
            }
        }
    }
}

impl<'a> MemoryImage<'a> {
    /// Makes an image for a guest with `ram_size` bytes of RAM, with nothing in it yet.
    pub(crate) const fn new(ram_size: u64) -> Self {
        Self {
            ram_size,
            parts: Vec::new(),
        }
    }

    /// Has `bytes` be at `address`.
    ///
    /// # Errors
    /// If that is not RAM of the guest; then nothing has changed.
    pub(crate) fn write(
        &mut self,
        address: GuestPhysAddr,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), NotRam> {
        self.add(address, Content::Bytes(bytes.into()))
    }

    /// Has `length` zeros be at `address`, over what is there.
    ///
    /// # Errors
    /// As [`MemoryImage::write`].
    pub(super) fn clear(&mut self, address: GuestPhysAddr, length: u64) -> Result<(), NotRam> {
        self.add(address, Content::Zeros(length))
    }

    fn add(&mut self, address: GuestPhysAddr, content: Content<'a>) -> Result<(), NotRam> {
        let part = Part { address, content };
        let length = part.length();
        if length == 0 {
            return Ok(());
        }
        if !is_ram(self.ram_size, address.0, length) {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            return Err(NotRam { address, length });
        }
        self.parts.push(part);
        Ok(())
    }

    /// Copies at most `length` bytes to `memory`, from `offset` on, which counts through all parts.
    /// Returns the offset to go on from; `None` at the end.
    ///
    /// # Errors
    /// If `memory` is not of the size that the image was made for.
    pub(crate) fn copy_piece(
        &self,
        memory: &impl GuestMemory,
        offset: u64,
        length: u64,
    ) -> Result<Option<u64>, NotRam> {
        let mut begin = 0;
        for part in &self.parts {
            let within = offset - begin;
            if within < part.length() {
                let length = length.min(part.length() - within);
                part.copy(memory, within, length)?;
                return Ok(Some(offset + length));
            }
            begin += part.length();
        }
        Ok(None)
    }

    /// Copies it to `memory`, whose other bytes are zero.
    ///
    /// # Errors
    /// As [`MemoryImage::copy_piece`]; then a part may have been copied.
    pub(crate) fn copy_to(&self, memory: &impl GuestMemory) -> Result<(), NotRam> {
        (self.parts.iter()).try_for_each(|part| part.copy(memory, 0, part.length()))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::guest_boot::test_ram::TestRam;

    const RAM: u64 = 2 << 20;

    #[test]
    fn nothing_is_put_where_there_is_no_ram() {
        let mut image = MemoryImage::new(RAM);
        for (address, length) in [
            (RAM - 1, 2),
            (RAM, 1),
            (0x9_ffff, 2),
            (0xb_7fff, 2),
            (u64::MAX, 1),
            (u64::MAX, 2),
        ] {
            let address = GuestPhysAddr(address);
            let error = NotRam { address, length };
            assert_eq!(image.write(address, vec![7; length]), Err(error));
            assert_eq!(image.clear(address, length as u64), Err(error));
        }
        assert!(image.parts.is_empty());
        assert_eq!(
            image.clear(GuestPhysAddr(0), u64::MAX).unwrap_err().length,
            usize::MAX
        );
        assert_eq!(image.write(GuestPhysAddr(RAM - 1), vec![7]), Ok(()));
        assert_eq!(image.write(GuestPhysAddr(RAM), &[][..]), Ok(()), "nothing");
    }

    #[test]
    fn a_vm_of_another_size_is_refused() {
        let mut image = MemoryImage::new(2 * RAM);
        let address = GuestPhysAddr(RAM);
        image.write(address, vec![7; 16]).unwrap();
        let memory = TestRam::new(RAM);
        let error = NotRam { address, length: 8 };
        assert_eq!(image.copy_piece(&memory, 0, 8), Err(error));
        let error = NotRam {
            address,
            length: 16,
        };
        assert_eq!(image.copy_to(&memory), Err(error));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pieces_of_any_length_make_the_same_memory(
            parts in prop::collection::vec((0_u64..0x8000, 0_usize..0x3000, any::<u8>()), 0..8),
            lengths in prop::collection::vec(1_u64..0x2000, 1..8),
        ) {
            let [expected, whole, pieces] = [(); 3].map(|()| TestRam::new(RAM));
            for memory in [&expected, &whole, &pieces] {
                memory.write(GuestPhysAddr(0), &[0xee; 0x1_0000]).unwrap();
            }
            let mut image = MemoryImage::new(RAM);
            for &(address, length, byte) in &parts {
                let address = GuestPhysAddr(address);
                if byte == 0 {
                    image.clear(address, length as u64).unwrap();
                } else {
                    image.write(address, vec![byte; length]).unwrap();
                }
                expected.write(address, &vec![byte; length]).unwrap();
            }
            image.copy_to(&whole).unwrap();
            let mut lengths = lengths.iter().cycle();
            let mut offset = 0;
            loop {
                let &length = lengths.next().unwrap();
                let Some(next) = image.copy_piece(&pieces, offset, length).unwrap() else { break };
                prop_assert!(next > offset && next <= offset + length);
                offset = next;
            }
            let total: usize = parts.iter().map(|part| part.1).sum();
            prop_assert_eq!(offset, total as u64);
            let all = |ram: &TestRam| ram.bytes(0, 0x1_0000);
            prop_assert!(all(&whole) == all(&expected));
            prop_assert!(all(&pieces) == all(&expected));
        }
    }
}
