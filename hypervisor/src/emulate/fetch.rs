//! Fetching and decoding the instruction at CS:RIP.

use arch::ExceptionVector;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use vmx::addr::{GuestPhysAddr, PAGE_SIZE};

use super::context::Context;
use super::cpu::{Cpu, Fault, Mode, SegmentRegister};
use super::{InstructionBytes, Reason, Stop};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// The longest instruction, in bytes (SDM vol. 2A, 2.3.11).
pub(super) const MAX_LENGTH: u64 = 15;

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Fetches the instruction's bytes as far as they are on its first page. May be more
    /// than the instruction has; is less if it goes on on the next page.
    pub(super) fn fetch(&self) -> Result<InstructionBytes, Stop> {
        let (linear, in_segment) = self.code_address(0)?;
        let in_page = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
        let address = self.translate(linear, AccessKind::Fetch)?;
        let mut code = InstructionBytes::default();
        if in_page >= 16 && in_segment >= MAX_LENGTH {
            // The usual case: two reads that are no calls, where RAM is one piece.
            let low = self.memory.read_u64(address);
            let high = self.memory.read_u64(GuestPhysAddr(address.0 + 8));
            if let (Ok(low), Ok(high)) = (low, high) {
                code.bytes = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
                code.length = MAX_LENGTH as u8;
                return Ok(code);
            }
        }
        let length = in_page.min(in_segment).min(MAX_LENGTH) as usize;
        self.memory
            .read(address, &mut code.bytes[..length])
            .map_err(|not_ram| Stop::Unsupported(Reason::CodeNotRam(not_ram)))?;
        code.length = length as u8;
        Ok(code)
    }

    /// Decodes `code`, fetching what lies on the next page if it goes on there.
    pub(super) fn decode(&self, code: &mut InstructionBytes) -> Result<Instruction, Stop> {
        loop {
            let mut decoder = Decoder::with_ip(
                self.mode.bits(),
                code.as_slice(),
                self.cpu.rip(),
                DecoderOptions::NONE,
            );
            let instruction = decoder.decode();
            match decoder.last_error() {
                DecoderError::None => return Ok(instruction),
                DecoderError::NoMoreBytes if u64::from(code.length) < MAX_LENGTH => {
                    self.fetch_more(code)?;
                }
                // Sixteen bytes and more: the CPU says #GP, but then it would not have come
                // to an access.
                _ => return Err(Stop::Unsupported(Reason::NotDecoded)),
            }
        }
    }

    /// Appends the bytes from the next page on; at least one.
    #[cold]
    fn fetch_more(&self, code: &mut InstructionBytes) -> Result<(), Stop> {
        let done = u64::from(code.length);
        let (linear, in_segment) = self.code_address(done)?;
        let address = self.translate(linear, AccessKind::Fetch)?;
        let in_page = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
        let length = (MAX_LENGTH - done).min(in_segment).min(in_page);
        let end = (done + length) as usize;
        self.memory
            .read(address, &mut code.bytes[done as usize..end])
            .map_err(|not_ram| Stop::Unsupported(Reason::CodeNotRam(not_ram)))?;
        code.length = end as u8;
        Ok(())
    }

    /// Returns the linear address of the code `offset` bytes from RIP, and how many bytes the code
    /// segment has from there on; at least one.
    fn code_address(&self, offset: u64) -> Result<(u64, u64), Stop> {
        let rip = self.cpu.rip().wrapping_add(offset);
        if self.mode == Mode::Long {
            if !self.is_canonical(rip) {
                return Err(self.beyond_code());
            }
            return Ok((rip, MAX_LENGTH));
        }
        let rip = rip & 0xffff_ffff;
        let limit = u64::from(self.cpu.segment_limit(SegmentRegister::Cs));
        if rip > limit {
            return Err(self.beyond_code());
        }
        let base = self.cpu.segment_base(SegmentRegister::Cs);
        Ok((self.wrap(base.wrapping_add(rip)), limit - rip + 1))
    }

    #[cold]
    pub(super) fn beyond_code(&self) -> Stop {
        Stop::Fault(Fault::with_zero_code(
            ExceptionVector::GeneralProtection,
            self.mode,
        ))
    }
}
