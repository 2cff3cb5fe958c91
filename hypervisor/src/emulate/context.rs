//! One instruction's view of the VCPU: its mode, and memory as segmentation and paging show
//! it.

use arch::{Cr0Flags, ExceptionVector};
use vmx::addr::{GuestPhysAddr, GuestVirtAddr, PAGE_SIZE};

use super::cpu::{AccessRights, Cpu, Fault, Mode, SegmentRegister};
use super::{Bus, Stop, Width, flags};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::{Access, AccessKind, Paging};

pub(super) struct Context<'a, C, M> {
    pub(super) cpu: &'a mut C,
    pub(super) memory: &'a M,
    pub(super) mode: Mode,
    pub(super) paging: Paging,
    /// RFLAGS before the instruction.
    pub(super) rflags: u64,
    /// CPL 3.
    pub(super) user: bool,
}

/// The guest-physical location of a memory operand: on one page, or on two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    width: Width,
    first: GuestPhysAddr,
    /// The number of bytes on the first page, and the address of the rest, if the operand crosses a
    /// page border.
    second: Option<(usize, GuestPhysAddr)>,
}

impl Span {
    /// Returns whether it begins on a boundary of `alignment` bytes, at most a page.
    pub(super) fn is_aligned(self, alignment: u64) -> bool {
        self.first.is_aligned(alignment)
    }
}

impl<'a, C: Cpu, M: GuestMemory> Context<'a, C, M> {
    pub(super) fn new(cpu: &'a mut C, memory: &'a M) -> Self {
        Self {
            mode: Mode::of(cpu),
            paging: Paging::new(cpu),
            rflags: cpu.rflags(),
            user: cpu.cpl() == 3,
            cpu,
            memory,
        }
    }

    /// Returns the span of `width` at `segment:offset`, checked for an access of `kind`, by
    /// segmentation, then alignment, then paging.
    pub(super) fn span(
        &self,
        segment: SegmentRegister,
        offset: u64,
        width: Width,
        kind: AccessKind,
    ) -> Result<Span, Stop> {
        let linear = self.linear(segment, offset, width.bytes() as u64, kind)?;
        let misalignment = linear & (width.bytes() as u64 - 1);
        if misalignment != 0
            && self.user
            && self.rflags & flags::AC != 0
            && self.cpu.cr0() & Cr0Flags::ALIGNMENT_MASK.bits() != 0
        {
            return Err(Stop::Fault(Fault::with_zero_code(
                ExceptionVector::AlignmentCheck,
                self.mode,
            )));
        }
        let first = self.translate(linear, kind)?;
        let in_page = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
        let second = if width.bytes() as u64 > in_page {
            let next = self.wrap(linear.wrapping_add(in_page));
            Some((in_page as usize, self.translate(next, kind)?))
        } else {
            None
        };
        Ok(Span {
            width,
            first,
            second,
        })
    }

    pub(super) fn translate(&self, linear: u64, kind: AccessKind) -> Result<GuestPhysAddr, Stop> {
        let access = Access {
            kind,
            user: self.user,
            smap_override: self.rflags & flags::AC != 0,
        };
        Ok(self
            .paging
            .translate(self.memory, GuestVirtAddr(linear), access)?)
    }

    /// Translates the address of an access that the processor makes for itself, to a descriptor: one of a
    /// supervisor, whatever the CPL (SDM vol. 3A, 4.6.1).
    pub(super) fn translate_system(
        &self,
        linear: u64,
        kind: AccessKind,
    ) -> Result<GuestPhysAddr, Stop> {
        let access = Access {
            kind,
            user: false,
            smap_override: false,
        };
        Ok(self
            .paging
            .translate(self.memory, GuestVirtAddr(linear), access)?)
    }

    /// Wraps a linear address, which has 32 bits outside of 64-bit mode.
    pub(super) fn wrap(&self, linear: u64) -> u64 {
        if self.mode == Mode::Long {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }

    /// Returns whether `linear` is canonical, as it must be in 64-bit mode.
    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        let unused = 64 - self.paging.linear_address_bits();
        ((linear << unused) as i64 >> unused) as u64 == linear
    }

    /// Returns the linear address of the `length` bytes at `segment:offset`, by segmentation (SDM
    /// vol. 3A, 5.3 to 5.5).
    fn linear(
        &self,
        segment: SegmentRegister,
        offset: u64,
        length: u64,
        kind: AccessKind,
    ) -> Result<u64, Stop> {
        let last = length - 1;
        if self.mode == Mode::Long {
            let linear = match segment {
                SegmentRegister::Fs | SegmentRegister::Gs => {
                    self.cpu.segment_base(segment).wrapping_add(offset)
                }
                _ => offset,
            };
            if self.is_canonical(linear) && self.is_canonical(linear.wrapping_add(last)) {
                return Ok(linear);
            }
            return Err(self.segment_fault(segment));
        }
        let rights = self.cpu.segment_rights(segment);
        if self.mode.checks_segment_types() {
            let allowed = !rights.is_unusable()
                && match kind {
                    AccessKind::Read => rights.is_readable(),
                    AccessKind::Write => rights.is_writable(),
                    AccessKind::Fetch => true,
                };
            if !allowed {
                return Err(self.segment_fault(segment));
            }
        }
        // Offsets have 32 bits at most, whatever the caller's address size says.
        let end = offset.saturating_add(last);
        let limit = u64::from(self.cpu.segment_limit(segment));
        let within = if rights.is_expand_down() {
            let top = if rights.contains(AccessRights::DEFAULT_BIG) {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && end <= top
        } else {
            end <= limit
        };
        if !within {
            return Err(self.segment_fault(segment));
        }
        let base = self.cpu.segment_base(segment);
        Ok(self.wrap(base.wrapping_add(offset)))
    }

    #[cold]
    fn segment_fault(&self, segment: SegmentRegister) -> Stop {
        let vector = if segment == SegmentRegister::Ss {
            ExceptionVector::Stack
        } else {
            ExceptionVector::GeneralProtection
        };
        Stop::Fault(Fault::with_zero_code(vector, self.mode))
    }

    /// Returns whether any byte of `span` is RAM.
    pub(super) fn touches_ram(&self, span: Span) -> bool {
        let is_ram = |address| self.memory.read(address, &mut [0]).is_ok();
        is_ram(span.first) || span.second.is_some_and(|(_, second)| is_ram(second))
    }

    /// Reads `span`, zero-extended.
    pub(super) fn read(&self, bus: &mut impl Bus, span: Span) -> u64 {
        let Some((split, second)) = span.second else {
            let ram = match span.width {
                Width::DOUBLEWORD => self.memory.read_u32(span.first).map(u64::from),
                Width::QUADWORD => self.memory.read_u64(span.first),
                width => {
                    let mut bytes = [0; 8];
                    self.memory
                        .read(span.first, &mut bytes[..width.bytes()])
                        .map(|()| u64::from_le_bytes(bytes))
                }
            };
            return match ram {
                Ok(value) => value,
                Err(_) => bus.read(span.first, span.width) & span.width.mask(),
            };
        };
        let mut bytes = [0; 8];
        let (low, high) = bytes[..span.width.bytes()].split_at_mut(split);
        self.read_piece(bus, span.first, low);
        self.read_piece(bus, second, high);
        u64::from_le_bytes(bytes)
    }

    /// Writes `value` to `span`.
    pub(super) fn write(&self, bus: &mut impl Bus, span: Span, value: u64) {
        let bytes = value.to_le_bytes();
        let bytes = &bytes[..span.width.bytes()];
        let Some((split, second)) = span.second else {
            if self.memory.write(span.first, bytes).is_err() {
                bus.write(span.first, span.width, value & span.width.mask());
            }
            return;
        };
        let (low, high) = bytes.split_at(split);
        self.write_piece(bus, span.first, low);
        self.write_piece(bus, second, high);
    }

    /// Reads a part of an operand: from the bus in the widest naturally aligned accesses, as
    /// a CPU splits an access that crosses a border.
    pub(super) fn read_piece(&self, bus: &mut impl Bus, address: GuestPhysAddr, buffer: &mut [u8]) {
        if self.memory.read(address, buffer).is_ok() {
            return;
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = GuestPhysAddr(address.0 + done as u64);
            let width = widest_access(at, buffer.len() - done);
            let value = bus.read(at, width).to_le_bytes();
            buffer[done..done + width.bytes()].copy_from_slice(&value[..width.bytes()]);
            done += width.bytes();
        }
    }

    pub(super) fn write_piece(&self, bus: &mut impl Bus, address: GuestPhysAddr, data: &[u8]) {
        if self.memory.write(address, data).is_ok() {
            return;
        }
        let mut done = 0;
        while done < data.len() {
            let at = GuestPhysAddr(address.0 + done as u64);
            let width = widest_access(at, data.len() - done);
            let mut value = [0; 8];
            value[..width.bytes()].copy_from_slice(&data[done..done + width.bytes()]);
            bus.write(at, width, u64::from_le_bytes(value));
            done += width.bytes();
        }
    }
}

/// Returns the widest naturally aligned access at `address` within `length` bytes (at least 1).
fn widest_access(address: GuestPhysAddr, length: usize) -> Width {
    [Width::QUADWORD, Width::DOUBLEWORD, Width::WORD]
        .into_iter()
        .find(|width| width.bytes() <= length && address.is_aligned(width.bytes() as u64))
        .unwrap_or(Width::BYTE)
}
