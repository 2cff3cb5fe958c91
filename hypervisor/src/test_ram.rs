//! Guest RAM for tests: a byte array from guest-physical address zero.

use core::cell::RefCell;
use std::vec;
use std::vec::Vec;

use vmx::addr::GuestPhysAddr;

use crate::guest_memory::{GuestMemory, NotRam};

pub(crate) struct TestRam(RefCell<Vec<u8>>);

impl TestRam {
    pub(crate) fn new(size: usize) -> Self {
        Self(RefCell::new(vec![0; size]))
    }

    pub(crate) fn write_u64(&self, address: u64, value: u64) {
        self.write(GuestPhysAddr(address), &value.to_le_bytes())
            .unwrap();
    }

    pub(crate) fn write_u32(&self, address: u64, value: u32) {
        self.write(GuestPhysAddr(address), &value.to_le_bytes())
            .unwrap();
    }

    /// All of it, to be compared with a later state.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }

    fn range(&self, address: GuestPhysAddr, length: usize) -> Result<usize, NotRam> {
        let size = self.0.borrow().len();
        usize::try_from(address.0)
            .ok()
            .filter(|start| start.checked_add(length).is_some_and(|end| end <= size))
            .ok_or(NotRam { address, length })
    }
}

impl GuestMemory for TestRam {
    fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
        let start = self.range(address, buffer.len())?;
        buffer.copy_from_slice(&self.0.borrow()[start..start + buffer.len()]);
        Ok(())
    }

    fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
        let start = self.range(address, data.len())?;
        self.0.borrow_mut()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}
