//! Segment descriptors (SDM vol. 3A, 3.4.5 and 3.5), and the tables that they are in.

use vmx::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};

use super::memory::SystemMemory;
use super::tss::Format;
use super::{SwitchError, TaskCpu};
use crate::guest_memory::GuestMemory;

/// The busy flag in the type of a TSS.
pub(super) const BUSY: u32 = 1 << 1;
/// The access byte's offset in a descriptor.
const ACCESS_BYTE: u64 = 5;
/// TI of a selector: it is for the LDT.
const TABLE_INDICATOR: u16 = 1 << 2;

/// A descriptor of 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// The linear address of the descriptor.
    pub(super) linear: u64,
    pub(super) base: u32,
    /// The segment's limit, in bytes.
    pub(super) limit: u32,
    pub(super) rights: AccessRights,
}

/// The kinds of system segments that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SystemType {
    Ldt,
    Tss { format: Format, busy: bool },
}

impl Descriptor {
    fn decode(linear: u64, bytes: [u8; 8]) -> Self {
        let raw = u64::from_le_bytes(bytes);
        // Type, S, DPL, P; then AVL, L, D/B and G, where the VMCS has them.
        let rights = AccessRights::from_bits_retain((raw >> 40) as u32 & 0xf0ff);
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        Self {
            linear,
            base: (raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000) as u32,
            limit: if rights.contains(AccessRights::GRANULARITY) {
                limit << 12 | 0xfff
            } else {
                limit
            },
            rights,
        }
    }

    pub(super) const fn is_present(&self) -> bool {
        self.rights.contains(AccessRights::PRESENT)
    }

    pub(super) const fn is_code_or_data(&self) -> bool {
        self.rights.contains(AccessRights::CODE_OR_DATA)
    }

    pub(super) const fn is_code(&self) -> bool {
        self.is_code_or_data() && self.rights.is_code()
    }

    /// Returns whether it is conforming code.
    pub(super) const fn is_conforming(&self) -> bool {
        self.is_code()
            && self
                .rights
                .contains(AccessRights::EXPAND_DOWN_OR_CONFORMING)
    }

    /// Returns whether it is data that can be written.
    pub(super) const fn is_writable(&self) -> bool {
        self.is_code_or_data() && self.rights.is_writable()
    }

    /// Returns whether it is data, or code that can be read.
    pub(super) const fn is_readable(&self) -> bool {
        self.is_code_or_data() && self.rights.is_readable()
    }

    pub(super) const fn system_type(&self) -> Option<SystemType> {
        if self.is_code_or_data() {
            return None;
        }
        match self.rights.bits() & 0xf {
            2 => Some(SystemType::Ldt),
            kind @ (1 | 3 | 9 | 11) => Some(SystemType::Tss {
                format: Format::of_type(kind),
                busy: kind & BUSY != 0,
            }),
            _ => None,
        }
    }

    /// Returns the segment register that is loaded with it.
    pub(super) fn segment(&self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base.into(),
            limit: self.limit,
            rights: self.rights,
        }
    }
}

/// Returns whether `selector` names no segment.
pub(super) const fn is_null(selector: u16) -> bool {
    selector & !0b11 == 0
}

/// Returns where the descriptor of `selector` is; `None` if its table ends before it, or is not
/// there.
fn find(cpu: &impl TaskCpu, selector: u16) -> Option<u64> {
    let table = if selector & TABLE_INDICATOR == 0 {
        cpu.gdtr()
    } else {
        let ldtr = cpu.segment(SegmentRegister::Ldtr);
        if ldtr.rights.contains(AccessRights::UNUSABLE) {
            return None;
        }
        DescriptorTable {
            base: ldtr.base,
            limit: ldtr.limit,
        }
    };
    let offset = u64::from(selector & !0b111);
    (offset + 7 <= u64::from(table.limit)).then(|| table.base.wrapping_add(offset))
}

/// Reads the descriptor of `selector`; `None` if its table has none for it.
pub(super) fn read<M: GuestMemory>(
    cpu: &impl TaskCpu,
    space: &SystemMemory<'_, M>,
    selector: u16,
) -> Result<Option<Descriptor>, SwitchError> {
    let Some(linear) = find(cpu, selector) else {
        return Ok(None);
    };
    let mut bytes = [0; 8];
    space.read_checked(linear, &mut bytes)?;
    Ok(Some(Descriptor::decode(linear, bytes)))
}

/// Reads the descriptor of `selector` in the GDT; `None` if it is null, for the LDT, or behind
/// the GDT's end.
pub(super) fn read_global<M: GuestMemory>(
    cpu: &impl TaskCpu,
    space: &SystemMemory<'_, M>,
    selector: u16,
) -> Result<Option<Descriptor>, SwitchError> {
    if is_null(selector) || selector & TABLE_INDICATOR != 0 {
        return Ok(None);
    }
    read(cpu, space, selector)
}

/// Sets or clears the busy flag of the TSS of `selector`, in the GDT. A GDT that no longer has
/// it is left alone.
pub(super) fn set_busy<M: GuestMemory>(
    cpu: &impl TaskCpu,
    space: &SystemMemory<'_, M>,
    selector: u16,
    busy: bool,
) -> Result<(), SwitchError> {
    let Some(descriptor) = read_global(cpu, space, selector)? else {
        return Ok(());
    };
    let rights = descriptor.rights.bits();
    let rights = if busy { rights | BUSY } else { rights & !BUSY };
    write_access_byte(space, &descriptor, rights)
}

/// Sets the accessed flag of a code or data segment, if it is not set.
pub(super) fn set_accessed<M: GuestMemory>(
    space: &SystemMemory<'_, M>,
    descriptor: &mut Descriptor,
) -> Result<(), SwitchError> {
    if !descriptor.rights.contains(AccessRights::ACCESSED) {
        descriptor.rights |= AccessRights::ACCESSED;
        write_access_byte(space, descriptor, descriptor.rights.bits())?;
    }
    Ok(())
}

fn write_access_byte<M: GuestMemory>(
    space: &SystemMemory<'_, M>,
    descriptor: &Descriptor,
    rights: u32,
) -> Result<(), SwitchError> {
    space.write(
        descriptor.linear.wrapping_add(ACCESS_BYTE),
        &[rights.to_le_bytes()[0]],
    )
}
