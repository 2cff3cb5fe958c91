//! Linear memory as the processor sees it for its own structures: supervisor accesses, with no
//! segments, in 32 bits.

use arch::ExceptionVector;
use vmx::addr::{GuestPhysAddr, GuestVirtAddr, PAGE_SIZE};

use super::SwitchError;
use crate::emulate::Fault;
use crate::guest_memory::{GuestMemory, NotRam};
use crate::guest_paging::{Access, AccessKind, Paging, PagingRegisters, WalkError};

impl From<WalkError> for SwitchError {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Fault(fault) => Self::Fault(Fault {
                vector: ExceptionVector::Page,
                error_code: Some(fault.error_code.bits() as u32),
                cr2: Some(fault.address.0),
            }),
            WalkError::NotRam(not_ram) => Self::NotRam(not_ram),
        }
    }
}

impl From<NotRam> for SwitchError {
    fn from(error: NotRam) -> Self {
        Self::NotRam(error)
    }
}

/// An address space, for system accesses.
pub(super) struct SystemMemory<'a, M> {
    memory: &'a M,
    paging: Paging,
}

impl<'a, M: GuestMemory> SystemMemory<'a, M> {
    /// Returns the address space that `registers` have now.
    pub(super) fn new(registers: &impl PagingRegisters, memory: &'a M) -> Self {
        Self {
            memory,
            paging: Paging::new(registers),
        }
    }

    /// Reads `buffer.len()` bytes at `linear`.
    pub(super) fn read_checked(&self, linear: u64, buffer: &mut [u8]) -> Result<(), SwitchError> {
        self.each_page(linear, buffer.len(), |address, from, to| {
            let physical = self.translate(address, AccessKind::Read, false)?;
            match buffer.get_mut(from..to) {
                Some(part) => Ok(self.memory.read(physical, part)?),
                None => Ok(()),
            }
        })
    }

    /// Returns whether `length` bytes at `linear` can be written.
    pub(super) fn check_writable(&self, linear: u64, length: usize) -> Result<(), SwitchError> {
        self.each_page(linear, length, |address, _, _| {
            self.translate(address, AccessKind::Write, false)
                .map(|_| ())
        })
    }

    /// Writes `data` at `linear`, all of it or nothing if a page faults.
    pub(super) fn write(&self, linear: u64, data: &[u8]) -> Result<(), SwitchError> {
        self.write_as(linear, data, false)
    }

    /// Writes `data` at `linear` as a push does at CPL 3 if `user`.
    pub(super) fn push(&self, linear: u64, data: &[u8], user: bool) -> Result<(), SwitchError> {
        self.write_as(linear, data, user)
    }

    fn write_as(&self, linear: u64, data: &[u8], user: bool) -> Result<(), SwitchError> {
        self.each_page(linear, data.len(), |address, _, _| {
            self.translate(address, AccessKind::Write, user).map(|_| ())
        })?;
        self.each_page(linear, data.len(), |address, from, to| {
            let physical = self.translate(address, AccessKind::Write, user)?;
            Ok(self
                .memory
                .write(physical, data.get(from..to).unwrap_or_default())?)
        })
    }

    fn translate(
        &self,
        linear: u64,
        kind: AccessKind,
        user: bool,
    ) -> Result<GuestPhysAddr, SwitchError> {
        let access = Access {
            kind,
            user,
            smap_override: false,
        };
        Ok(self
            .paging
            .translate(self.memory, GuestVirtAddr(linear), access)?)
    }

    /// Calls `part` with the address of each piece of `length` bytes at `linear` that lies on
    /// one page, and where it starts and ends in the whole.
    fn each_page(
        &self,
        linear: u64,
        length: usize,
        mut part: impl FnMut(u64, usize, usize) -> Result<(), SwitchError>,
    ) -> Result<(), SwitchError> {
        let mut done = 0;
        while done < length {
            let address = linear.wrapping_add(done as u64) & 0xffff_ffff;
            let on_page = (PAGE_SIZE - address % PAGE_SIZE) as usize;
            let end = length.min(done + on_page);
            part(address, done, end)?;
            done = end;
        }
        Ok(())
    }
}
