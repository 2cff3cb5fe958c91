//! Finding out whether an initial RAM disk is whole, before a guest is started with it:
//! Linux itself would report a truncated one in the middle of its boot at best.
//!
//! What is recognized is what Linux's initramfs loader takes (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst): cpio archives in the "newc"
//! format, one after another, each plain or compressed. They are walked to their end; gzip
//! has to be decompressed for that (about what Linux pays for it a moment later), the others
//! carry sizes. Files of other formats, such as file system images, are left to Linux.
//!
//! A plain archive cut exactly between two members cannot be told from a whole one: the
//! trailer is optional.

use alloc::{boxed::Box, vec};

use miniz_oxide::inflate::{
    TINFLStatus,
    core::{DecompressorOxide, decompress},
};
use thiserror::Error;

use crate::numbers::hexadecimal;

/// A defect of an initial RAM disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum InitrdError {
    /// A file without bytes.
    #[error("it is empty")]
    Empty,
    /// A file that ends in the middle of one of its parts.
    #[error("it is truncated: its {format} ends too early, after {length} bytes")]
    Truncated {
        /// The format of the part that is cut off.
        format: &'static str,
        /// The length of the file, in bytes.
        length: usize,
    },
    /// A part that contradicts its own format.
    #[error("it is damaged: byte {offset} is not as a {format} has it")]
    Damaged {
        /// The format of the part.
        format: &'static str,
        /// The offset in the file at which the part starts.
        offset: usize,
    },
}

/// A defect of one part of the file.
#[derive(Clone, Copy)]
enum Fault {
    Truncated,
    Damaged,
}

/// A part that has been walked to its end.
struct Part {
    /// Its length.
    length: usize,
    /// The number of bytes that it unpacks to; `None` if it does not say.
    unpacked: Option<u64>,
}

/// Walks through `initrd` to its end. Returns how many bytes it unpacks to, if it says.
///
/// # Errors
/// If it is empty, truncated or damaged; as far as its format can tell.
pub(crate) fn unpacked_size(initrd: &[u8]) -> Result<Option<u64>, InitrdError> {
    if initrd.is_empty() {
        return Err(InitrdError::Empty);
    }
    let mut unpacked = Some(0_u64);
    let mut offset = 0;
    loop {
        // Archives may be padded with zeros.
        let rest = initrd.get(offset..).unwrap_or_default();
        let Some(padding) = rest.iter().position(|&byte| byte != 0) else {
            return Ok(unpacked);
        };
        offset += padding;
        let rest = &rest[padding..];
        let (format, part) = match rest {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => ("cpio archive", cpio(rest)),
            [0x1F, 0x8B, ..] => ("gzip stream", gzip(rest)),
            [0x28, 0xB5, 0x2F, 0xFD, ..] => ("zstd stream", zstd(rest)),
            [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => ("xz stream", xz(rest)),
            [0x02, 0x21, 0x4C, 0x18, ..] => ("lz4 stream", lz4(rest)),
            _ => return Ok(None),
        };
        match part {
            Ok(part) => {
                offset += part.length;
                unpacked = unpacked
                    .zip(part.unpacked)
                    .map(|(a, b)| a.saturating_add(b));
            }
            Err(Fault::Truncated) => {
                return Err(InitrdError::Truncated {
                    format,
                    length: initrd.len(),
                });
            }
            Err(Fault::Damaged) => return Err(InitrdError::Damaged { format, offset }),
        }
    }
}

/// A position in a part, moved forward by what has been understood.
struct Cursor<'a> {
    data: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    const fn new(data: &'a [u8]) -> Self {
        Self { data, position: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.data.get(self.position..).unwrap_or_default()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let taken = self.rest().get(..length).ok_or(Fault::Truncated)?;
        self.position += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let taken = self.rest().first_chunk().ok_or(Fault::Truncated)?;
        self.position += N;
        Ok(*taken)
    }

    /// Moves to the next multiple of four; the padding may be missing at the very end.
    fn align(&mut self) {
        self.position = self.position.next_multiple_of(4).min(self.data.len());
    }

    /// Moves behind the next zero byte.
    fn skip_string(&mut self) -> Result<(), Fault> {
        let length = self.rest().iter().position(|&byte| byte == 0);
        self.position += length.ok_or(Fault::Truncated)? + 1;
        Ok(())
    }

    const fn end(&self, unpacked: Option<u64>) -> Part {
        Part {
            length: self.position,
            unpacked,
        }
    }
}

fn cpio(data: &[u8]) -> Result<Part, Fault> {
    let mut cursor = Cursor::new(data);
    let mut unpacked = 0_u64;
    while cursor.rest().first().is_some_and(|&byte| byte != 0) {
        // The magic and 13 numbers of 8 hexadecimal digits.
        let header: [u8; 110] = cursor.array()?;
        if !header.starts_with(b"07070") {
            return Err(Fault::Damaged);
        }
        let number = |index: usize| {
            let digits = header.get(6 + 8 * index..)?.first_chunk::<8>()?;
            u32::try_from(hexadecimal(core::str::from_utf8(digits).ok()?)?).ok()
        };
        let file_size = number(6).ok_or(Fault::Damaged)?;
        let name_size = number(11).ok_or(Fault::Damaged)?;
        let name = cursor.take(name_size as usize)?;
        cursor.align();
        cursor.take(file_size as usize)?;
        cursor.align();
        unpacked = unpacked.saturating_add(file_size.into());
        if name == b"TRAILER!!!\0" {
            break;
        }
    }
    Ok(cursor.end(Some(unpacked)))
}

/// Unpacks RFC 1952, with the deflate stream of RFC 1951 in it.
fn gzip(data: &[u8]) -> Result<Part, Fault> {
    const HEADER_CRC: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    let mut cursor = Cursor::new(data);
    let [_, _, _, flags, ..] = cursor.array::<10>()?;
    if flags & EXTRA != 0 {
        let length = u16::from_le_bytes(cursor.array()?);
        cursor.take(length.into())?;
    }
    for string in [NAME, COMMENT] {
        if flags & string != 0 {
            cursor.skip_string()?;
        }
    }
    if flags & HEADER_CRC != 0 {
        cursor.take(2)?;
    }

    const WINDOW: usize = 32 << 10;
    let mut decompressor = Box::new(DecompressorOxide::new());
    let mut window = vec![0; WINDOW];
    let mut unpacked = 0_u64;
    loop {
        let position = (unpacked % WINDOW as u64) as usize;
        let (status, consumed, produced) =
            decompress(&mut decompressor, cursor.rest(), &mut window, position, 0);
        cursor.take(consumed)?;
        unpacked += produced as u64;
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => {
                return Err(Fault::Truncated);
            }
            _ => return Err(Fault::Damaged),
        }
    }
    let _crc = cursor.take(4)?;
    let size = u32::from_le_bytes(cursor.array()?);
    if size != unpacked as u32 {
        return Err(Fault::Damaged);
    }
    Ok(cursor.end(Some(unpacked)))
}

/// Unpacks one frame of RFC 8878.
fn zstd(data: &[u8]) -> Result<Part, Fault> {
    let mut cursor = Cursor::new(data);
    let [_, _, _, _, descriptor] = cursor.array()?;
    let single_segment = descriptor & 1 << 5 != 0;
    if !single_segment {
        cursor.take(1)?;
    }
    cursor.take([0, 1, 2, 4][usize::from(descriptor & 0b11)])?;
    let unpacked = match (descriptor >> 6, single_segment) {
        (0, false) => None,
        (0, true) => Some(cursor.array::<1>()?[0].into()),
        (1, _) => Some(u64::from(u16::from_le_bytes(cursor.array()?)) + 256),
        (2, _) => Some(u32::from_le_bytes(cursor.array()?).into()),
        _ => Some(u64::from_le_bytes(cursor.array()?)),
    };
    loop {
        let [a, b, c] = cursor.array()?;
        let header = u32::from_le_bytes([a, b, c, 0]);
        let size = (header >> 3) as usize;
        match header >> 1 & 0b11 {
            // Raw or compressed; a run of one byte; reserved.
            0 | 2 => cursor.take(size)?,
            1 => cursor.take(1)?,
            _ => return Err(Fault::Damaged),
        };
        if header & 1 != 0 {
            break;
        }
    }
    if descriptor & 1 << 2 != 0 {
        cursor.take(4)?;
    }
    Ok(cursor.end(unpacked))
}

/// Finds the end of an .xz file, which is a footer that ends with its own magic; the rest of the
/// file is taken for it.
fn xz(data: &[u8]) -> Result<Part, Fault> {
    let last = data.iter().rposition(|&byte| byte != 0);
    match last.and_then(|last| data.get(..=last)) {
        Some(stream) if stream.ends_with(b"YZ") => Ok(Part {
            length: data.len(),
            unpacked: None,
        }),
        _ => Err(Fault::Truncated),
    }
}

/// Unpacks LZ4's legacy frame, the only one that Linux takes: blocks to the end of the file.
fn lz4(data: &[u8]) -> Result<Part, Fault> {
    let mut cursor = Cursor::new(data);
    let magic = cursor.array::<4>()?;
    while !cursor.rest().is_empty() {
        let word = cursor.array()?;
        // Another frame may start where a block would.
        if word == [0; 4] {
            break;
        } else if word != magic {
            cursor.take(u32::from_le_bytes(word) as usize)?;
        }
    }
    Ok(cursor.end(None))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
