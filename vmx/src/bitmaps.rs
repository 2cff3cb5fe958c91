//! The I/O and MSR bitmaps: what a guest touches without an exit (SDM vol. 3C, 25.6.4 and
//! 25.6.9). A bit that is set makes the access exit; new bitmaps have all of them set.

use alloc::boxed::Box;

use crate::addr::HostPhysAddr;
use crate::page::Page;

/// The bitmaps of the 65,536 ports.
#[repr(C, align(4096))]
pub struct IoBitmaps([u8; 8192]);

impl IoBitmaps {
    /// All ports exit.
    pub const ALL_EXIT: Self = Self([0xff; 8192]);

    /// Returns the physical addresses of bitmaps A and B (mapped one to one).
    #[must_use]
    pub fn addresses(&self) -> (HostPhysAddr, HostPhysAddr) {
        let a = core::ptr::from_ref(self) as u64;
        (HostPhysAddr(a), HostPhysAddr(a + 4096))
    }
}

/// The bitmaps of the MSRs 0 to 0x1fff and 0xc000_0000 to 0xc000_1fff; all others exit.
#[repr(C, align(4096))]
pub struct MsrBitmaps([u8; 4096]);

/// The kind of an MSR access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAccess {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

impl MsrBitmaps {
    /// Returns bitmaps from the heap with which all MSRs exit; `None` if there is no memory.
    #[must_use]
    pub fn try_new() -> Option<Box<Self>> {
        let mut page = Page::try_new()?;
        page.0.fill(u64::MAX);
        // SAFETY: both are 4 KiB of plain numbers with the same alignment.
        Some(unsafe { Box::from_raw(Box::into_raw(page).cast()) })
    }

    /// Sets whether `access` to `msr` exits. MSRs outside the bitmaps always do.
    pub fn set_exits(&mut self, msr: u32, access: MsrAccess, exits: bool) {
        let half = match msr {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 1024,
            _ => return,
        };
        let base = half + if access == MsrAccess::Write { 2048 } else { 0 };
        let bit = (msr & 0x1fff) as usize;
        let byte = &mut self.0[base + bit / 8];
        if exits {
            *byte |= 1 << (bit % 8);
        } else {
            *byte &= !(1 << (bit % 8));
        }
    }

    /// Lets the guest read and write `msr` without an exit.
    pub fn pass_through(&mut self, msr: u32) {
        self.set_exits(msr, MsrAccess::Read, false);
        self.set_exits(msr, MsrAccess::Write, false);
    }

    /// Returns whether `access` to `msr` exits.
    #[must_use]
    pub fn exits(&self, msr: u32, access: MsrAccess) -> bool {
        let half = match msr {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 1024,
            _ => return true,
        };
        let base = half + if access == MsrAccess::Write { 2048 } else { 0 };
        let bit = (msr & 0x1fff) as usize;
        self.0[base + bit / 8] >> (bit % 8) & 1 != 0
    }

    /// Returns the physical address (mapped one to one).
    #[must_use]
    pub fn address(&self) -> HostPhysAddr {
        HostPhysAddr(core::ptr::from_ref(self) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_one_msr_through_leaves_its_neighbors_intercepted() {
        let mut bitmaps = MsrBitmaps::try_new().unwrap();
        bitmaps.pass_through(0xc000_0100);
        for access in [MsrAccess::Read, MsrAccess::Write] {
            assert!(!bitmaps.exits(0xc000_0100, access));
            assert!(bitmaps.exits(0xc000_0101, access));
            assert!(bitmaps.exits(0x100, access));
            assert!(bitmaps.exits(0x4000_0000, access), "outside the bitmaps");
        }
        bitmaps.set_exits(0x10, MsrAccess::Read, false);
        assert!(!bitmaps.exits(0x10, MsrAccess::Read));
        assert!(bitmaps.exits(0x10, MsrAccess::Write));
    }
}
