//! Segment descriptors (SDM vol. 3A, 3.4.5, 3.5 and 5.2.1), and the tables that they are in.

use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};

use super::context::Context;
use super::cpu::Cpu;
use super::{Bus, Stop};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::AccessKind;

/// TI of a selector: it is for the LDT.
pub(crate) const TABLE_INDICATOR: u16 = 1 << 2;
/// The access byte's offset in a descriptor.
pub(crate) const ACCESS_BYTE: u64 = 5;
/// The busy flag in the type of a TSS.
pub(crate) const BUSY: u32 = 1 << 1;

/// A segment descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// The linear address of the descriptor.
    pub linear: u64,
    /// The segment's base.
    pub base: u64,
    /// The segment's limit, in bytes.
    pub limit: u32,
    /// The access rights, where the VMCS has them.
    pub rights: AccessRights,
}

impl Descriptor {
    /// Decodes the 8 bytes of a descriptor at `linear`.
    #[must_use]
    pub(crate) fn decode(linear: u64, bytes: [u8; 8]) -> Self {
        let raw = u64::from_le_bytes(bytes);
        // Type, S, DPL, P; then AVL, L, D/B and G.
        let rights = AccessRights::from_bits_retain((raw >> 40) as u32 & 0xf0ff);
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        Self {
            linear,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: if rights.contains(AccessRights::GRANULARITY) {
                limit << 12 | 0xfff
            } else {
                limit
            },
            rights,
        }
    }

    /// Returns whether the segment is present.
    #[must_use]
    pub(crate) const fn is_present(&self) -> bool {
        self.rights.contains(AccessRights::PRESENT)
    }

    /// Returns whether it is a segment of code or data, not of the system.
    #[must_use]
    pub(crate) const fn is_code_or_data(&self) -> bool {
        self.rights.contains(AccessRights::CODE_OR_DATA)
    }

    /// Returns whether it is code.
    #[must_use]
    pub(crate) const fn is_code(&self) -> bool {
        self.is_code_or_data() && self.rights.is_code()
    }

    /// Returns whether it is conforming code.
    #[must_use]
    pub(crate) const fn is_conforming(&self) -> bool {
        self.is_code()
            && self
                .rights
                .contains(AccessRights::EXPAND_DOWN_OR_CONFORMING)
    }

    /// Returns whether it is data that can be written.
    #[must_use]
    pub(crate) const fn is_writable(&self) -> bool {
        self.is_code_or_data() && self.rights.is_writable()
    }

    /// Returns whether it is data, or code that can be read.
    #[must_use]
    pub(crate) const fn is_readable(&self) -> bool {
        self.is_code_or_data() && self.rights.is_readable()
    }

    /// Returns the type of a system segment; `None` for code and data.
    #[must_use]
    pub(crate) const fn system_type(&self) -> Option<u32> {
        if self.is_code_or_data() {
            None
        } else {
            Some(self.rights.bits() & 0xf)
        }
    }

    /// Returns the segment register that is loaded with it.
    #[must_use]
    pub(crate) fn segment(&self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base,
            limit: self.limit,
            rights: self.rights,
        }
    }
}

/// Returns whether `selector` names no segment.
#[must_use]
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !0b11 == 0
}

/// Returns where the descriptor of `selector`, which has `size` bytes, is; `None` if its table ends before
/// it does, or is not there.
#[must_use]
pub(crate) fn find(cpu: &impl Cpu, selector: u16, size: u64) -> Option<u64> {
    let table = if selector & TABLE_INDICATOR == 0 {
        cpu.gdtr()
    } else {
        let ldtr = cpu.segment(SegmentRegister::Ldtr);
        if ldtr.rights.is_unusable() {
            return None;
        }
        DescriptorTable {
            base: ldtr.base,
            limit: ldtr.limit,
        }
    };
    let offset = u64::from(selector & !0b111);
    (offset + size - 1 <= u64::from(table.limit)).then(|| table.base.wrapping_add(offset))
}

impl<C: Cpu, M: GuestMemory> Context<'_, C, M> {
    /// Reads the descriptor of `selector`; `None` if its table has none for it.
    pub(super) fn descriptor(
        &self,
        bus: &mut impl Bus,
        selector: u16,
    ) -> Result<Option<Descriptor>, Stop> {
        let Some(linear) = find(self.cpu, selector, 8) else {
            return Ok(None);
        };
        let bytes = self.read_system_quadword(bus, linear)?;
        Ok(Some(Descriptor::decode(self.wrap(linear), bytes)))
    }

    /// Sets bits of a descriptor's access byte, in memory and in `descriptor`: the accessed flag of code and
    /// data, the busy flag of a TSS.
    pub(super) fn set_access_bits(
        &self,
        bus: &mut impl Bus,
        descriptor: &mut Descriptor,
        bits: AccessRights,
    ) -> Result<(), Stop> {
        if !descriptor.rights.contains(bits) {
            let linear = self.wrap(descriptor.linear.wrapping_add(ACCESS_BYTE));
            let address = self.translate_system(linear, AccessKind::Write)?;
            descriptor.rights |= bits;
            self.write_piece(bus, address, &[descriptor.rights.bits() as u8]);
        }
        Ok(())
    }

    /// Reads 8 bytes at `linear` as the processor does for itself.
    pub(super) fn read_system_quadword(
        &self,
        bus: &mut impl Bus,
        linear: u64,
    ) -> Result<[u8; 8], Stop> {
        // Located first, as they may lie on two pages.
        let linear = self.wrap(linear);
        let last = self.wrap(linear.wrapping_add(7));
        let first = self.translate_system(linear, AccessKind::Read)?;
        let second = self.translate_system(last & !0xfff, AccessKind::Read)?;
        let mut bytes = [0; 8];
        if linear >> 12 == last >> 12 {
            self.read_piece(bus, first, &mut bytes);
        } else {
            let split = 7 - (last & 0xfff) as usize;
            let (low, high) = bytes.split_at_mut(split);
            self.read_piece(bus, first, low);
            self.read_piece(bus, second, high);
        }
        Ok(bytes)
    }
}
