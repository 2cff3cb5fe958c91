//! Task-state segments, of 32 and of 16 bits (SDM vol. 3A, figures 8-2 and 8-10).

use arch::RFlags;
use vmx::segment::SegmentRegister;

use super::TaskCpu;

/// The flags that exist, but for bit 1, which is one.
const DEFINED: u32 = RFlags::all().bits() as u32;
/// The flag that is always one, bit 1.
const FIXED: u32 = arch::reset::RFLAGS as u32;

/// The format of a TSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The format of the 80286.
    Bits16,
    Bits32,
}

/// Offsets in a TSS of 32 bits.
mod wide {
    pub(super) const SIZE: usize = 0x68;
    pub(super) const CR3: usize = 0x1c;
    pub(super) const EIP: usize = 0x20;
    pub(super) const EFLAGS: usize = 0x24;
    pub(super) const GPRS: usize = 0x28;
    pub(super) const SEGMENTS: usize = 0x48;
    pub(super) const LDT: usize = 0x60;
    pub(super) const TRAP: usize = 0x64;
}

/// Offsets in a TSS of 16 bits.
mod narrow {
    pub(super) const SIZE: usize = 0x2c;
    pub(super) const IP: usize = 0x0e;
    pub(super) const FLAGS: usize = 0x10;
    pub(super) const GPRS: usize = 0x12;
    pub(super) const SEGMENTS: usize = 0x22;
    pub(super) const LDT: usize = 0x2a;
    /// ES, CS, SS and DS.
    pub(super) const SEGMENT_COUNT: usize = 4;
}

impl Format {
    /// Returns the format of a TSS whose descriptor has this type.
    pub(super) const fn of_type(rights: u32) -> Self {
        if rights & 1 << 3 != 0 {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }

    /// Returns the least limit that a TSS can have: one less than its size.
    pub(super) const fn least_limit(self) -> u32 {
        match self {
            Self::Bits16 => narrow::SIZE as u32 - 1,
            Self::Bits32 => wide::SIZE as u32 - 1,
        }
    }

    /// Returns the size of what the task pushes, in bytes.
    pub(super) const fn word_size(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
        }
    }

    /// Makes room for a TSS.
    pub(super) const fn buffer(self) -> Image {
        Image {
            bytes: [0; wide::SIZE],
            format: self,
        }
    }
}

/// The bytes of a TSS.
pub(super) struct Image {
    bytes: [u8; wide::SIZE],
    format: Format,
}

impl core::ops::Deref for Image {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.format {
            Format::Bits16 => &self.bytes[..narrow::SIZE],
            Format::Bits32 => &self.bytes,
        }
    }
}

impl core::ops::DerefMut for Image {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self.format {
            Format::Bits16 => &mut self.bytes[..narrow::SIZE],
            Format::Bits32 => &mut self.bytes,
        }
    }
}

impl Image {
    fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn doubleword(&self, offset: usize) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    fn set_word(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set_doubleword(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The state of a task in its TSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) cr3: Option<u32>,
    pub(super) eip: u32,
    pub(super) eflags: u32,
    /// The general registers, in the order of their encodings, which is that of the TSS.
    pub(super) gprs: [u32; 8],
    /// Selectors, in the order of the registers' encodings: ES, CS, SS, DS, FS, GS.
    pub(super) segments: [u16; 6],
    pub(super) ldt: u16,
    pub(super) debug_trap: bool,
}

/// Segment registers in the order of their encodings.
pub(super) const SEGMENTS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

impl State {
    /// Returns what the task that `cpu` runs will be found with when it goes on at `rip`.
    pub(super) fn of(cpu: &impl TaskCpu, rip: u64) -> Self {
        Self {
            cr3: None,
            eip: rip as u32,
            eflags: cpu.rflags() as u32,
            gprs: core::array::from_fn(|index| cpu.gpr(index) as u32),
            segments: SEGMENTS.map(|register| cpu.segment(register).selector),
            ldt: 0,
            debug_trap: false,
        }
    }

    /// Returns what a TSS says. What a TSS of 16 bits does not say is zero.
    pub(super) fn from_image(image: &Image) -> Self {
        match image.format {
            Format::Bits32 => Self {
                cr3: Some(image.doubleword(wide::CR3)),
                eip: image.doubleword(wide::EIP),
                eflags: image.doubleword(wide::EFLAGS) & DEFINED | FIXED,
                gprs: core::array::from_fn(|index| image.doubleword(wide::GPRS + 4 * index)),
                segments: core::array::from_fn(|index| image.word(wide::SEGMENTS + 4 * index)),
                ldt: image.word(wide::LDT),
                debug_trap: image.word(wide::TRAP) & 1 != 0,
            },
            Format::Bits16 => Self {
                cr3: None,
                eip: image.word(narrow::IP).into(),
                eflags: u32::from(image.word(narrow::FLAGS)) & DEFINED | FIXED,
                gprs: core::array::from_fn(|index| image.word(narrow::GPRS + 2 * index).into()),
                segments: core::array::from_fn(|index| {
                    if index < narrow::SEGMENT_COUNT {
                        image.word(narrow::SEGMENTS + 2 * index)
                    } else {
                        0
                    }
                }),
                ldt: image.word(narrow::LDT),
                debug_trap: false,
            },
        }
    }

    /// Returns whether the task runs in virtual-8086 mode.
    pub(super) const fn is_virtual_8086(&self) -> bool {
        self.eflags & RFlags::VIRTUAL_8086_MODE.bits() as u32 != 0
    }

    /// Writes the dynamic fields, those that a switch away from a task updates, to its TSS.
    pub(super) fn store_dynamic(&self, image: &mut Image) {
        match image.format {
            Format::Bits32 => {
                image.set_doubleword(wide::EIP, self.eip);
                image.set_doubleword(wide::EFLAGS, self.eflags);
                for (index, value) in self.gprs.into_iter().enumerate() {
                    image.set_doubleword(wide::GPRS + 4 * index, value);
                }
                for (index, selector) in self.segments.into_iter().enumerate() {
                    image.set_word(wide::SEGMENTS + 4 * index, selector);
                }
            }
            Format::Bits16 => {
                image.set_word(narrow::IP, self.eip as u16);
                image.set_word(narrow::FLAGS, self.eflags as u16);
                for (index, value) in self.gprs.into_iter().enumerate() {
                    image.set_word(narrow::GPRS + 2 * index, value as u16);
                }
                for (index, selector) in (self.segments.into_iter())
                    .take(narrow::SEGMENT_COUNT)
                    .enumerate()
                {
                    image.set_word(narrow::SEGMENTS + 2 * index, selector);
                }
            }
        }
    }
}
