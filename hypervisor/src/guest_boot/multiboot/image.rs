//! What a multiboot 1 image says of itself: its header, and the parts to be loaded.

use alloc::{vec, vec::Vec};

use elf::{ElfBytes, abi, endian::LittleEndian};

use super::MultibootError;

/// Bytes of the file within which the header is.
const SEARCHED: usize = 8192;
const MAGIC: u32 = 0x1BAD_B002;
/// Demands that a boot loader must know or refuse; those of bits 16 and up are wishes.
const DEMANDS: u32 = 0xFFFF;
/// Page-aligned modules, memory information, and a video mode, which there is not: an
/// image has to look whether it got one. We fulfil the others anyway.
const KNOWN_DEMANDS: u32 = 0b111;
/// The flag of a header that has load addresses.
const HAS_ADDRESSES: u32 = 1 << 16;

/// A part of an image: what is to be where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// The guest-physical address.
    pub(super) address: u64,
    /// The bytes that come from the file.
    pub(super) data: &'a [u8],
    /// The room that it takes in all, at least the length of the data; the rest is zeros.
    pub(super) size: u64,
}

impl Segment<'_> {
    pub(super) const fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }

    pub(super) const fn data_end(&self) -> u64 {
        self.address.saturating_add(self.data.len() as u64)
    }
}

/// An image, ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image<'a> {
    pub(super) segments: Vec<Segment<'a>>,
    /// The physical address to start at.
    pub(super) entry: u32,
}

/// A multiboot header.
struct Header {
    /// The offset of the header in the file.
    offset: usize,
    flags: u32,
}

/// Returns whether `file` has a multiboot 1 header.
#[must_use]
pub(crate) fn is_multiboot(file: &[u8]) -> bool {
    find_header(file).is_some()
}

fn find_header(file: &[u8]) -> Option<Header> {
    (0..SEARCHED.min(file.len())).step_by(4).find_map(|offset| {
        let [magic, flags, checksum] = words(file, offset)?;
        let sum = magic.wrapping_add(flags).wrapping_add(checksum);
        (magic == MAGIC && sum == 0 && offset + 12 <= SEARCHED).then_some(Header { offset, flags })
    })
}

/// Returns the `N` 32-bit words at `offset`, if they are there.
fn words<const N: usize>(file: &[u8], offset: usize) -> Option<[u32; N]> {
    let bytes = file.get(offset..)?.get(..4 * N)?;
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes(*bytes.first_chunk()?);
    }
    Some(words)
}

impl<'a> Image<'a> {
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, MultibootError> {
        let header = find_header(file).ok_or(MultibootError::BadElf)?;
        let unknown = header.flags & DEMANDS & !KNOWN_DEMANDS;
        if unknown != 0 {
            return Err(MultibootError::UnknownDemands(unknown as u16));
        }
        if header.flags & HAS_ADDRESSES != 0 {
            Self::by_header(file, &header)
        } else if file.starts_with(&abi::ELFMAGIC) {
            Self::by_elf(file)
        } else {
            Err(MultibootError::NoAddresses)
        }
    }

    /// Reads an image by the addresses in the header (specification, 3.1.3).
    fn by_header(file: &'a [u8], header: &Header) -> Result<Self, MultibootError> {
        let bad = MultibootError::BadAddresses;
        let [header_address, load, load_end, bss_end, entry] = words(file, header.offset + 12)
            .ok_or(MultibootError::Truncated {
                expected: header.offset as u64 + 32,
                actual: file.len() as u64,
            })?;
        let before_header = header_address.checked_sub(load).ok_or(bad.clone())?;
        let start = (header.offset)
            .checked_sub(before_header as usize)
            .ok_or(bad.clone())?;
        let available = file.get(start..).unwrap_or_default();
        // Zero stands for the whole file.
        let data = if load_end == 0 {
            available
        } else {
            let length = load_end.checked_sub(load).ok_or(bad.clone())? as usize;
            available.get(..length).ok_or(MultibootError::Truncated {
                expected: (start + length) as u64,
                actual: file.len() as u64,
            })?
        };
        // Zero stands for no bss.
        let size = match bss_end {
            0 => data.len() as u64,
            _ => u64::from(bss_end.checked_sub(load).ok_or(bad.clone())?),
        };
        if size < data.len() as u64 {
            return Err(bad);
        }
        Ok(Self {
            segments: vec![Segment {
                address: load.into(),
                data,
                size,
            }],
            entry,
        })
    }

    fn by_elf(file: &'a [u8]) -> Result<Self, MultibootError> {
        let bad = |_| MultibootError::BadElf;
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(bad)?;
        if !matches!(elf.ehdr.e_machine, abi::EM_386 | abi::EM_X86_64) {
            return Err(MultibootError::WrongMachine(elf.ehdr.e_machine));
        }
        let mut entry = elf.ehdr.e_entry;
        let mut segments = Vec::new();
        let headers = elf.segments().ok_or(MultibootError::BadElf)?;
        for header in headers
            .iter()
            .filter(|header| header.p_type == abi::PT_LOAD)
        {
            if header.p_memsz < header.p_filesz {
                return Err(MultibootError::BadElf);
            }
            // The entry point is a virtual address.
            let virtual_end = header.p_vaddr.saturating_add(header.p_memsz);
            if (header.p_vaddr..virtual_end).contains(&elf.ehdr.e_entry) {
                entry = (elf.ehdr.e_entry - header.p_vaddr).saturating_add(header.p_paddr);
            }
            if header.p_memsz == 0 {
                continue;
            }
            let data = elf
                .segment_data(&header)
                .map_err(|_| MultibootError::Truncated {
                    expected: header.p_offset.saturating_add(header.p_filesz),
                    actual: file.len() as u64,
                })?;
            segments.push(Segment {
                address: header.p_paddr,
                data,
                size: header.p_memsz,
            });
        }
        if segments.is_empty() {
            return Err(MultibootError::BadElf);
        }
        let entry = u32::try_from(entry).map_err(|_| MultibootError::EntryTooHigh(entry))?;
        Ok(Self { segments, entry })
    }
}
