//! The segment registers of a new task (SDM vol. 3A, table 8-1: the checks that follow the
//! load of the TSS).

use arch::ExceptionVector;
use vmx::segment::{AccessRights, Segment, SegmentRegister};

use super::descriptor::{self, SystemType, is_null, set_accessed};
use super::memory::SystemMemory;
use super::tss::{SEGMENTS, State};
use super::{Faults, SwitchError, TaskCpu};
use crate::guest_memory::GuestMemory;

/// The data segment registers, with their places in [`State::segments`].
const DATA: [(usize, SegmentRegister); 4] = [
    (0, SegmentRegister::Es),
    (3, SegmentRegister::Ds),
    (4, SegmentRegister::Fs),
    (5, SegmentRegister::Gs),
];

/// Rights of every segment in virtual-8086 mode (SDM vol. 3C, 27.3.1.2).
const VIRTUAL_8086_RIGHTS: u32 = 0xf3;
/// Code and data at CPL 3, for a task that has neither yet.
const PLACEHOLDER_CODE: u32 = 0xfb;
const PLACEHOLDER_DATA: u32 = 0xf3;

/// Loads the segment registers of the task `state`.
///
/// If a selector is wrong, the fault is the new task's. The registers then hold the new
/// selectors, but those that were not reached have no segments: CS and SS, without which no
/// processor runs, keep the old task's.
pub(super) fn load<C: TaskCpu, M: GuestMemory>(
    cpu: &mut C,
    space: &SystemMemory<'_, M>,
    state: &State,
    faults: Faults,
    was_virtual_8086: bool,
) -> Result<(), SwitchError> {
    show_selectors(cpu, state, was_virtual_8086);
    load_ldtr(cpu, space, state.ldt, faults)?;
    if state.is_virtual_8086() {
        for (register, selector) in SEGMENTS.into_iter().zip(state.segments) {
            cpu.set_segment(
                register,
                Segment {
                    selector,
                    base: u64::from(selector) << 4,
                    limit: 0xffff,
                    rights: AccessRights::from_bits_retain(VIRTUAL_8086_RIGHTS),
                },
            );
        }
        return Ok(());
    }
    let [_, code, stack, ..] = state.segments;
    let cpl = (code & 0b11) as u8;
    let code = code_segment(cpu, space, code, faults)?;
    let stack = stack_segment(cpu, space, stack, cpl, faults)?;
    cpu.set_segment(SegmentRegister::Cs, code);
    cpu.set_segment(SegmentRegister::Ss, stack);
    for (index, register) in DATA {
        let segment = data_segment(cpu, space, state.segments[index], cpl, faults)?;
        cpu.set_segment(register, segment);
    }
    Ok(())
}

/// Returns a register that holds a selector but no segment.
fn without_segment(selector: u16) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0,
        rights: AccessRights::UNUSABLE,
    }
}

/// Puts the new selectors into the registers, ahead of the segments.
fn show_selectors(cpu: &mut impl TaskCpu, state: &State, was_virtual_8086: bool) {
    for (register, selector) in SEGMENTS.into_iter().zip(state.segments) {
        let segment = match register {
            SegmentRegister::Cs | SegmentRegister::Ss => {
                let mut segment = cpu.segment(register);
                segment.selector = selector;
                if was_virtual_8086 {
                    segment.rights =
                        AccessRights::from_bits_retain(if register == SegmentRegister::Cs {
                            PLACEHOLDER_CODE
                        } else {
                            PLACEHOLDER_DATA
                        });
                }
                segment
            }
            _ => without_segment(selector),
        };
        cpu.set_segment(register, segment);
    }
}

fn load_ldtr<C: TaskCpu, M: GuestMemory>(
    cpu: &mut C,
    space: &SystemMemory<'_, M>,
    selector: u16,
    faults: Faults,
) -> Result<(), SwitchError> {
    cpu.set_segment(SegmentRegister::Ldtr, without_segment(selector));
    if is_null(selector) {
        return Ok(());
    }
    let descriptor = descriptor::read_global(cpu, space, selector)?
        .filter(|it| descriptor::system_type(it) == Some(SystemType::Ldt) && it.is_present())
        .ok_or_else(|| faults.selector(ExceptionVector::InvalidTss, selector))?;
    cpu.set_segment(SegmentRegister::Ldtr, descriptor.segment(selector));
    Ok(())
}

fn code_segment<C: TaskCpu, M: GuestMemory>(
    cpu: &C,
    space: &SystemMemory<'_, M>,
    selector: u16,
    faults: Faults,
) -> Result<Segment, SwitchError> {
    let invalid = || faults.selector(ExceptionVector::InvalidTss, selector);
    if is_null(selector) {
        return Err(invalid());
    }
    let mut descriptor = descriptor::read(cpu, space, selector)?.ok_or_else(invalid)?;
    let rpl = (selector & 0b11) as u8;
    let dpl = descriptor.rights.dpl();
    let privilege_fits = if descriptor.is_conforming() {
        dpl <= rpl
    } else {
        dpl == rpl
    };
    if !descriptor.is_code() || !privilege_fits {
        return Err(invalid());
    }
    if !descriptor.is_present() {
        return Err(faults.selector(ExceptionVector::SegmentNotPresent, selector));
    }
    set_accessed(space, &mut descriptor)?;
    Ok(descriptor.segment(selector))
}

fn stack_segment<C: TaskCpu, M: GuestMemory>(
    cpu: &C,
    space: &SystemMemory<'_, M>,
    selector: u16,
    cpl: u8,
    faults: Faults,
) -> Result<Segment, SwitchError> {
    let invalid = || faults.selector(ExceptionVector::InvalidTss, selector);
    if is_null(selector) {
        return Err(invalid());
    }
    let mut descriptor = descriptor::read(cpu, space, selector)?.ok_or_else(invalid)?;
    let rpl = (selector & 0b11) as u8;
    if !descriptor.is_writable() || rpl != cpl || descriptor.rights.dpl() != cpl {
        return Err(invalid());
    }
    if !descriptor.is_present() {
        return Err(faults.selector(ExceptionVector::Stack, selector));
    }
    set_accessed(space, &mut descriptor)?;
    Ok(descriptor.segment(selector))
}

fn data_segment<C: TaskCpu, M: GuestMemory>(
    cpu: &C,
    space: &SystemMemory<'_, M>,
    selector: u16,
    cpl: u8,
    faults: Faults,
) -> Result<Segment, SwitchError> {
    if is_null(selector) {
        return Ok(without_segment(selector));
    }
    let invalid = || faults.selector(ExceptionVector::InvalidTss, selector);
    let mut descriptor = descriptor::read(cpu, space, selector)?.ok_or_else(invalid)?;
    let rpl = (selector & 0b11) as u8;
    let privilege_fits = descriptor.is_conforming() || cpl.max(rpl) <= descriptor.rights.dpl();
    if !descriptor.is_readable() || !privilege_fits {
        return Err(invalid());
    }
    if !descriptor.is_present() {
        return Err(faults.selector(ExceptionVector::SegmentNotPresent, selector));
    }
    set_accessed(space, &mut descriptor)?;
    Ok(descriptor.segment(selector))
}
