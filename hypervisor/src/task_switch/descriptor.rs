//! Descriptors as a task switch reads and changes them.

use vmx::segment::AccessRights;

use super::memory::SystemMemory;
use super::tss::Format;
use super::{SwitchError, TaskCpu};
use crate::emulate::descriptor::{ACCESS_BYTE, TABLE_INDICATOR, find};
use crate::guest_memory::GuestMemory;

pub(super) use crate::emulate::descriptor::{BUSY, Descriptor, is_null};

/// The kinds of system segments that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SystemType {
    Ldt,
    Tss { format: Format, busy: bool },
}

/// Returns the kind of a system segment, if it is one that matters here.
pub(super) const fn system_type(descriptor: &Descriptor) -> Option<SystemType> {
    match descriptor.system_type() {
        Some(2) => Some(SystemType::Ldt),
        Some(kind @ (1 | 3 | 9 | 11)) => Some(SystemType::Tss {
            format: Format::of_type(kind),
            busy: kind & BUSY != 0,
        }),
        _ => None,
    }
}

/// Reads the descriptor of `selector`; `None` if its table has none for it.
pub(super) fn read<M: GuestMemory>(
    cpu: &impl TaskCpu,
    space: &SystemMemory<'_, M>,
    selector: u16,
) -> Result<Option<Descriptor>, SwitchError> {
    let Some(linear) = find(cpu, selector, 8) else {
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
