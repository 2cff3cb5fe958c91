//! The guest's page tables, walked as its CPU would walk them: from a linear to a
//! guest-physical address, with permission checks, accessed and dirty flags, and page
//! faults (SDM vol. 3A, chapter 4). Paging structures that are not in RAM are read as all ones.
//!
//! Protection keys, shadow stacks and HLAT paging are not offered to guests, and not
//! known here. 1 GiB pages and PSE-36 are taken to be there.
#![forbid(unsafe_code)]

use arch::paging::{ADDRESS, ADDRESS_32, PDPT_ADDRESS};
use arch::{Cr0Flags, Cr4Flags, EferFlags, PageFaultErrorCode, PageTableFlags};
use vmx::addr::{GuestPhysAddr, GuestVirtAddr};

use crate::guest_memory::{GuestMemory, NotRam};

mod flags;
#[cfg(test)]
mod fuzz;
pub(crate) mod tables;
#[cfg(test)]
mod tests;

// Entries are looked at as integers: a walk takes the AND and the OR of them.
const PRESENT: u64 = PageTableFlags::PRESENT.bits();
const WRITABLE: u64 = PageTableFlags::WRITABLE.bits();
const USER: u64 = PageTableFlags::USER_ACCESSIBLE.bits();
const ACCESSED: u64 = PageTableFlags::ACCESSED.bits();
const DIRTY: u64 = PageTableFlags::DIRTY.bits();
const LARGE: u64 = PageTableFlags::HUGE_PAGE.bits();
const NO_EXECUTE: u64 = PageTableFlags::NO_EXECUTE.bits();

/// The most attempts at a walk whose entries another VCPU changes under it, before the walk's
/// outcome is used with its accessed and dirty flags unset.
const WALK_ATTEMPTS: u32 = 8;

/// The registers that paging depends on.
pub trait PagingRegisters {
    /// Returns CR0.
    fn cr0(&self) -> u64;
    /// Returns CR3.
    fn cr3(&self) -> u64;
    /// Returns CR4.
    fn cr4(&self) -> u64;
    /// Returns IA32_EFER.
    fn efer(&self) -> u64;
    /// Returns the PDPTE register `index` (0 to 3); asked for with PAE paging only.
    fn pdpte(&self, index: usize) -> u64;
    /// Returns the guest's MAXPHYADDR: CPUID leaf 0x80000008, EAX bits 7:0.
    fn physical_address_bits(&self) -> u32;
}

/// Reads the four PDPTEs that `cr3` refers to with PAE paging, as a load of CR3 does. `None`
/// if one of them is present with a reserved bit set, or they are not in RAM: then none are
/// to be loaded (SDM vol. 3A, 4.4.1).
pub fn read_pdptes(
    memory: &impl GuestMemory,
    cr3: u64,
    physical_address_bits: u32,
) -> Option<[u64; 4]> {
    /// Bits of a PDPTE that must be zero, besides those above the address (SDM vol. 3A,
    /// table 4-8).
    const RESERVED: u64 = 0x1e6;
    let mut bytes = [0; 32];
    memory
        .read(GuestPhysAddr(cr3 & PDPT_ADDRESS), &mut bytes)
        .ok()?;
    let mut pdptes = [0; 4];
    for (pdpte, bytes) in pdptes.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *pdpte = u64::from_le_bytes(*bytes);
    }
    let reserved = RESERVED | !0 << physical_address_bits.clamp(32, 52);
    let is_valid = |pdpte: &u64| pdpte & PRESENT == 0 || pdpte & reserved == 0;
    pdptes.iter().all(is_valid).then_some(pdptes)
}

/// The kind of access that the page tables are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// An access that needs permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: AccessKind,
    /// Whether it is a user-mode access: CPL 3, and not one that the CPU itself makes to
    /// a system structure.
    pub user: bool,
    /// Whether SMAP lets a supervisor-mode access pass to a user page: RFLAGS.AC is set
    /// and the access is an explicit one.
    pub smap_override: bool,
}

/// A page fault to be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The error code (SDM vol. 3A, 4.7).
    pub error_code: PageFaultErrorCode,
    /// The linear address, for CR2.
    pub address: GuestVirtAddr,
}

/// The reason why a walk has no address to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// A page fault, for the guest.
    Fault(PageFault),
    /// An entry whose flags were to be set, and that is not in the guest's RAM any more.
    NotRam(NotRam),
}

impl From<NotRam> for WalkError {
    fn from(error: NotRam) -> Self {
        Self::NotRam(error)
    }
}

/// The paging mode (SDM vol. 3A, 4.1.1), and what the walk needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    ThirtyTwoBit { large_pages: bool },
    Pae { pdptes: [u64; 4] },
    FourLevel,
    FiveLevel,
}

/// One address space of the guest: paging mode, root and the control bits that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    mode: Mode,
    /// CR3; its low 12 bits and its bits above the address are ignored.
    root: u64,
    /// Bits that must be clear in every entry of 8 bytes.
    reserved: u64,
    physical_address_bits: u32,
    write_protect: bool,
    no_execute: bool,
    smep: bool,
    smap: bool,
}

impl Paging {
    /// Makes paging as `registers` have it.
    pub fn new(registers: &impl PagingRegisters) -> Self {
        let cr0 = Cr0Flags::from_bits_retain(registers.cr0());
        let cr4 = Cr4Flags::from_bits_retain(registers.cr4());
        let efer = EferFlags::from_bits_retain(registers.efer());
        let mode = if !cr0.contains(Cr0Flags::PAGING) {
            Mode::Off
        } else if efer.contains(EferFlags::LONG_MODE_ACTIVE) {
            if cr4.contains(Cr4Flags::L5_PAGING) {
                Mode::FiveLevel
            } else {
                Mode::FourLevel
            }
        } else if cr4.contains(Cr4Flags::PHYSICAL_ADDRESS_EXTENSION) {
            Mode::Pae {
                pdptes: [0, 1, 2, 3].map(|index| registers.pdpte(index)),
            }
        } else {
            Mode::ThirtyTwoBit {
                large_pages: cr4.contains(Cr4Flags::PAGE_SIZE_EXTENSION),
            }
        };
        let physical_address_bits = registers.physical_address_bits().clamp(32, 52);
        let no_execute = efer.contains(EferFlags::NO_EXECUTE_ENABLE);
        // With PAE paging bits 62:52 are reserved too, with four and five levels ignored.
        let top = if matches!(mode, Mode::Pae { .. }) {
            63
        } else {
            52
        };
        let mut reserved = (1 << top) - (1 << physical_address_bits);
        if !no_execute {
            reserved |= NO_EXECUTE;
        }
        Self {
            mode,
            root: registers.cr3(),
            reserved,
            physical_address_bits,
            write_protect: cr0.contains(Cr0Flags::WRITE_PROTECT),
            no_execute,
            smep: cr4.contains(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
            smap: cr4.contains(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
        }
    }

    /// Returns the guest-physical address that `linear` means for `access`. Sets the accessed flags
    /// of the entries used, and the dirty flag of the last one for a write.
    ///
    /// In legacy modes only the low 32 bits of `linear` count. With four or five levels
    /// `linear` must be canonical: that is the caller's check, its failure being #GP or #SS.
    ///
    /// # Errors
    /// [`WalkError::Fault`] if the CPU would raise #PF, [`WalkError::NotRam`] if an entry
    /// that is to be written is not in RAM.
    pub fn translate(
        &self,
        memory: &impl GuestMemory,
        linear: GuestVirtAddr,
        access: Access,
    ) -> Result<GuestPhysAddr, WalkError> {
        for _ in 0..WALK_ATTEMPTS {
            let walk = self.walk(memory, linear, access)?;
            let wanted = walk.flags_wanted(access);
            if wanted == 0 || self.set_flags(memory, linear, &walk, wanted)? {
                return Ok(walk.address);
            }
        }
        Ok(self.walk(memory, linear, access)?.address)
    }

    /// Returns the guest-physical address that `linear` means for a read by the guest's kernel, if
    /// it is mapped. Sets no flags: the guest does not notice.
    #[must_use]
    pub fn peek(&self, memory: &impl GuestMemory, linear: GuestVirtAddr) -> Option<GuestPhysAddr> {
        let access = Access {
            kind: AccessKind::Read,
            user: false,
            smap_override: true,
        };
        let walk = self.walk(memory, linear, access).ok()?;
        Some(walk.address)
    }

    /// Calls `visit` with the level and the value of each entry on the way to `linear`, the first that leads
    /// nowhere included, whatever it allows. Level 1 is that of page tables. Sets no flags.
    pub fn visit_entries(
        &self,
        memory: &impl GuestMemory,
        linear: GuestVirtAddr,
        mut visit: impl FnMut(u32, u64),
    ) {
        let (mut entry, levels, is_narrow) = match self.mode {
            Mode::Off => return,
            Mode::ThirtyTwoBit { .. } => (self.root, 2, true),
            Mode::Pae { pdptes } => {
                let pdpte = pdptes[((linear.0 >> 30) & 3) as usize];
                visit(3, pdpte);
                if pdpte & PRESENT == 0 {
                    return;
                }
                (pdpte, 2, false)
            }
            Mode::FourLevel => (self.root, 4, false),
            Mode::FiveLevel => (self.root, 5, false),
        };
        for level in (1..=levels).rev() {
            entry = if is_narrow {
                let shift = 12 + 10 * (level - 1);
                narrow_entry(memory, narrow_slot(entry & ADDRESS_32, linear, shift))
            } else {
                let shift = 12 + 9 * (level - 1);
                wide_entry(memory, wide_slot(entry & ADDRESS, linear, shift))
            };
            visit(level, entry);
            if entry & PRESENT == 0 || level > 1 && entry & LARGE != 0 {
                return;
            }
        }
    }

    /// Returns the bits of a canonical linear address, in 64-bit mode.
    #[must_use]
    pub const fn linear_address_bits(&self) -> u32 {
        match self.mode {
            Mode::FiveLevel => 57,
            _ => 48,
        }
    }

    #[inline]
    fn walk(
        &self,
        memory: &impl GuestMemory,
        linear: GuestVirtAddr,
        access: Access,
    ) -> Result<Walk, WalkError> {
        let (table, shift) = match self.mode {
            Mode::FourLevel => (self.root, 39),
            Mode::FiveLevel => (self.root, 48),
            Mode::Pae { pdptes } => {
                let pdpte = pdptes[((linear.0 >> 30) & 3) as usize];
                if pdpte & PRESENT == 0 {
                    return Err(self.fault(linear, access, PageFaultErrorCode::empty()));
                }
                (pdpte, 21)
            }
            Mode::ThirtyTwoBit { large_pages } => {
                return self.walk_narrow(memory, linear, access, large_pages);
            }
            Mode::Off => {
                return Ok(Walk {
                    address: GuestPhysAddr(linear.0 & 0xffff_ffff),
                    common: ACCESSED,
                    leaf: DIRTY,
                });
            }
        };
        self.walk_wide(memory, linear, access, table, shift)
    }

    /// Walks entries of 8 bytes from the table that `entry` refers to, whose entries span
    /// `1 << shift` bytes each.
    ///
    /// Every access to device memory comes through here: the usual case is one loop with one
    /// test for all that is unusual.
    #[inline]
    fn walk_wide(
        &self,
        memory: &impl GuestMemory,
        linear: GuestVirtAddr,
        access: Access,
        mut entry: u64,
        mut shift: u32,
    ) -> Result<Walk, WalkError> {
        let mut common = !0;
        let mut no_execute = 0;
        loop {
            entry = wide_entry(memory, wide_slot(entry & ADDRESS, linear, shift));
            if entry & (self.reserved | PRESENT) != PRESENT {
                return Err(self.unusable(linear, access, entry));
            }
            common &= entry;
            no_execute |= entry;
            if shift == 12 {
                break;
            }
            if entry & LARGE != 0 {
                // Bit 12 of a large page's entry is its PAT bit, those up to the address are
                // reserved; and so is PS itself above 1 GiB.
                if shift > 30 || entry & ((1 << shift) - 1) & !0x1fff != 0 {
                    let bits = PageFaultErrorCode::PROTECTION_VIOLATION
                        | PageFaultErrorCode::MALFORMED_TABLE;
                    return Err(self.fault(linear, access, bits));
                }
                break;
            }
            shift -= 9;
        }
        self.check(linear, access, common, no_execute & NO_EXECUTE != 0)?;
        let offset = (1 << shift) - 1;
        Ok(Walk {
            address: GuestPhysAddr((entry & ADDRESS & !offset) | (linear.0 & offset)),
            common,
            leaf: entry,
        })
    }

    /// Returns the fault of an entry that is not present or has a reserved bit set.
    #[cold]
    fn unusable(&self, linear: GuestVirtAddr, access: Access, entry: u64) -> WalkError {
        let bits = if entry & PRESENT == 0 {
            PageFaultErrorCode::empty()
        } else {
            PageFaultErrorCode::PROTECTION_VIOLATION | PageFaultErrorCode::MALFORMED_TABLE
        };
        self.fault(linear, access, bits)
    }

    /// Walks the entries of 4 bytes of 32-bit paging.
    fn walk_narrow(
        &self,
        memory: &impl GuestMemory,
        linear: GuestVirtAddr,
        access: Access,
        large_pages: bool,
    ) -> Result<Walk, WalkError> {
        let directory = self.root & ADDRESS_32;
        let pde = narrow_entry(memory, narrow_slot(directory, linear, 22));
        if pde & PRESENT == 0 {
            return Err(self.fault(linear, access, PageFaultErrorCode::empty()));
        }
        if large_pages && pde & LARGE != 0 {
            // PSE-36: bits 20:13 are bits 39:32 of the address, as far as the CPU has them
            // (SDM vol. 3A, table 4-4).
            let high_bits = self.physical_address_bits.min(40) - 32;
            let reserved = (1 << 22) - (1 << (13 + high_bits));
            if pde & reserved != 0 {
                let bits =
                    PageFaultErrorCode::PROTECTION_VIOLATION | PageFaultErrorCode::MALFORMED_TABLE;
                return Err(self.fault(linear, access, bits));
            }
            self.check(linear, access, pde, false)?;
            let frame = (pde >> 13 & 0xff) << 32 | (pde & 0xffc0_0000);
            return Ok(Walk {
                address: GuestPhysAddr(frame | (linear.0 & 0x3f_ffff)),
                common: pde,
                leaf: pde,
            });
        }
        let pte = narrow_entry(memory, narrow_slot(pde & ADDRESS_32, linear, 12));
        if pte & PRESENT == 0 {
            return Err(self.fault(linear, access, PageFaultErrorCode::empty()));
        }
        self.check(linear, access, pde & pte, false)?;
        Ok(Walk {
            address: GuestPhysAddr((pte & ADDRESS_32) | (linear.0 & 0xfff)),
            common: pde & pte,
            leaf: pte,
        })
    }

    /// Access rights (SDM vol. 3A, 4.6.1), from the AND of all entries used.
    #[inline]
    fn check(
        &self,
        linear: GuestVirtAddr,
        access: Access,
        common: u64,
        no_execute: bool,
    ) -> Result<(), WalkError> {
        let user_page = common & USER != 0;
        let writable = common & WRITABLE != 0;
        let allowed = if access.user {
            user_page
                && match access.kind {
                    AccessKind::Read => true,
                    AccessKind::Write => writable,
                    AccessKind::Fetch => !no_execute,
                }
        } else {
            let smap_denies = user_page && self.smap && !access.smap_override;
            match access.kind {
                AccessKind::Read => !smap_denies,
                AccessKind::Write => !smap_denies && (writable || !self.write_protect),
                AccessKind::Fetch => !(no_execute || user_page && self.smep),
            }
        };
        if allowed {
            Ok(())
        } else {
            Err(self.fault(linear, access, PageFaultErrorCode::PROTECTION_VIOLATION))
        }
    }

    #[cold]
    fn fault(
        &self,
        linear: GuestVirtAddr,
        access: Access,
        mut error_code: PageFaultErrorCode,
    ) -> WalkError {
        match access.kind {
            AccessKind::Read => {}
            AccessKind::Write => error_code |= PageFaultErrorCode::CAUSED_BY_WRITE,
            AccessKind::Fetch if self.smep || self.no_execute_applies() => {
                error_code |= PageFaultErrorCode::INSTRUCTION_FETCH;
            }
            AccessKind::Fetch => {}
        }
        if access.user {
            error_code |= PageFaultErrorCode::USER_MODE;
        }
        WalkError::Fault(PageFault {
            error_code,
            address: linear,
        })
    }

    /// Returns whether EFER.NXE has its effect: it says nothing to 32-bit paging, which has no bit
    /// for it.
    fn no_execute_applies(&self) -> bool {
        self.no_execute && !matches!(self.mode, Mode::ThirtyTwoBit { .. } | Mode::Off)
    }
}

/// Returns where the code at `linear` is that the CPU has just fetched in 64-bit mode, with the
/// roots in `cr3` and `cr4`. The CPU has checked all rights and set all flags, so this is the bare
/// walk; `None` if tables have changed meanwhile so that there is nothing to be found.
#[inline]
pub fn locate_fetched_code(
    memory: &impl GuestMemory,
    cr3: u64,
    cr4: u64,
    linear: u64,
) -> Option<GuestPhysAddr> {
    let five_levels = cr4 & Cr4Flags::L5_PAGING.bits() != 0;
    let mut shift = if five_levels { 48 } else { 39 };
    let mut entry = cr3;
    loop {
        let slot = wide_slot(entry & ADDRESS, GuestVirtAddr(linear), shift);
        entry = memory.read_u64(slot).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        if shift == 12 || entry & LARGE != 0 {
            let offset = (1 << shift) - 1;
            return Some(GuestPhysAddr(
                (entry & ADDRESS & !offset) | (linear & offset),
            ));
        }
        shift -= 9;
    }
}

/// A walk that ended at a page.
struct Walk {
    address: GuestPhysAddr,
    /// The AND of all entries used.
    common: u64,
    /// The entry that maps the page.
    leaf: u64,
}

/// Returns the entry of 8 bytes at `slot`. Where there is no RAM all bits are set, as on a bus that nobody drives;
/// some of them are reserved.
#[inline]
fn wide_entry(memory: &impl GuestMemory, slot: GuestPhysAddr) -> u64 {
    memory.read_u64(slot).unwrap_or(!0)
}

/// Returns the entry of 4 bytes at `slot`, as [`wide_entry`] does.
fn narrow_entry(memory: &impl GuestMemory, slot: GuestPhysAddr) -> u64 {
    memory.read_u32(slot).unwrap_or(!0).into()
}

fn wide_slot(table: u64, linear: GuestVirtAddr, shift: u32) -> GuestPhysAddr {
    GuestPhysAddr(table | (linear.0 >> shift & 0x1ff) << 3)
}

fn narrow_slot(table: u64, linear: GuestVirtAddr, shift: u32) -> GuestPhysAddr {
    GuestPhysAddr(table | (linear.0 >> shift & 0x3ff) << 2)
}
