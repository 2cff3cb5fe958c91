//! RAM of a guest for tests: laid out as the real one, with the holes.

use alloc::{vec, vec::Vec};
use core::cell::RefCell;

use vmx::addr::GuestPhysAddr;

use super::memory_map::{is_ram, ram_offset};
use super::{EntryState, GuestImage, LoadError, MemoryImage, prepare};
use crate::guest_memory::{GuestMemory, NotRam};
use crate::vm_config::VmConfig;

pub(crate) struct TestRam {
    size: u64,
    bytes: RefCell<Vec<u8>>,
}

impl TestRam {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            bytes: RefCell::new(vec![0; size as usize]),
        }
    }

    /// RAM of `size` bytes with what `fill` puts into it.
    pub(crate) fn with(size: u64, fill: impl FnOnce(&mut MemoryImage<'_>)) -> Self {
        let mut image = MemoryImage::new(size);
        fill(&mut image);
        let ram = Self::new(size);
        image.copy_to(&ram).unwrap();
        ram
    }

    /// Where the bytes at `address` are in the array.
    fn offset(&self, address: GuestPhysAddr, length: usize) -> Result<usize, NotRam> {
        if !is_ram(self.size, address.0, length as u64) {
            return Err(NotRam { address, length });
        }
        Ok(ram_offset(address.0) as usize)
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read(GuestPhysAddr(address), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn u64(&self, address: u64) -> u64 {
        self.read_u64(GuestPhysAddr(address)).unwrap()
    }

    pub(crate) fn u32(&self, address: u64) -> u32 {
        self.read_u32(GuestPhysAddr(address)).unwrap()
    }

    /// The NUL-terminated string at `address`.
    pub(crate) fn string(&self, address: u64) -> alloc::string::String {
        (address..)
            .map(|at| self.bytes(at, 1)[0])
            .take_while(|&byte| byte != 0)
            .map(char::from)
            .collect()
    }
}

/// Prepares the guest of `vm` and puts it into `ram`. Returns the state of its first VCPU.
pub(crate) fn load(ram: &TestRam, vm: &VmConfig) -> Result<EntryState, LoadError> {
    let GuestImage { memory, entry } = prepare(vm)?;
    memory.copy_to(ram)?;
    Ok(entry)
}

impl GuestMemory for TestRam {
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
        let at = self.offset(address, buffer.len())?;
        buffer.copy_from_slice(&self.bytes.borrow()[at..at + buffer.len()]);
        Ok(())
    }

    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
        let at = self.offset(address, data.len())?;
        self.bytes.borrow_mut()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}
