//! Hardware task switches (SDM vol. 3A, chapter 8, "Task Management").
//!
//! Task switches are not allowed in VMX non-root operation: the processor checks privileges,
//! and the descriptor of the new task, and then exits (SDM vol. 3C, 26.4.2). [`switch_task`]
//! does what it left undone: saves the old task into its task-state segment (TSS), loads the
//! new one, and pushes the error code if the switch delivers an event that has one.
//!
//! Until the new TSS is loaded ("commit"), a fault leaves everything as it was and belongs to
//! the old task. After that, it belongs to the new task, whose segment registers may be
//! partly loaded, as on hardware.
#![forbid(unsafe_code)]

mod descriptor;
mod memory;
mod segments;
mod tss;

#[cfg(test)]
mod tests;

use arch::{Cr0Flags, Cr4Flags, ExceptionVector, RFlags};
use vmx::segment::{AccessRights, Segment, SegmentRegister};

use crate::emulate::{Cpu, Fault};
use crate::guest_memory::{GuestMemory, NotRam};
use crate::guest_paging::read_pdptes;
use descriptor::{Descriptor, SystemType};
use memory::SystemMemory;
use tss::{Format, State};

/// RFLAGS.NT: the task is nested, and IRET goes back to the task of its back link.
const NESTED_TASK: u32 = RFlags::NESTED_TASK.bits() as u32;

/// The parts of a VCPU that a task switch needs besides the emulator's registers. All tasks run
/// outside of IA-32e mode.
pub(crate) trait TaskCpu: Cpu {
    /// Sets CR3, and the PDPTE registers with PAE paging. Translations of the old address
    /// space that the TLB holds are the VCPU's to invalidate.
    fn set_cr3(&mut self, cr3: u64, pdptes: Option<[u64; 4]>);
    /// Goes on at `rip` with all of `rflags` as the first instruction of a task: nothing that
    /// the last instruction blocked or left pending is left, CR0.TS is set, and the local
    /// breakpoints of DR7 are off.
    fn enter_task(&mut self, rip: u64, rflags: u64);
}

/// The cause of a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// CALL, to a TSS or a task gate.
    Call,
    /// JMP, to a TSS or a task gate.
    Jump,
    /// IRET with RFLAGS.NT set.
    Iret,
    /// An event that is delivered through a task gate of the IDT.
    Event {
        /// The error code that the new task finds on its stack.
        error_code: Option<u32>,
        /// Whether the event is anything but an INT instruction: EXT in the error codes of
        /// faults.
        external: bool,
    },
}

/// A task switch that has passed the processor's own checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The selector of the new TSS.
    pub selector: u16,
    /// The cause of the switch.
    pub cause: Cause,
    /// The address at which the old task goes on: behind the instruction that switches, or the RIP
    /// that an event's delivery would push.
    pub return_rip: u64,
}

/// The effects of a task switch besides the new task's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Switched {
    /// The T flag of the new TSS: #DB with DR6.BT, before the first instruction.
    pub debug_trap: bool,
}

/// The reason why a task switch is not done, or not quite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum SwitchError {
    /// A fault, for the guest.
    Fault(Fault),
    /// A structure that the switch needs and that is not in RAM.
    NotRam(NotRam),
}

/// The faults of a task switch.
#[derive(Clone, Copy)]
struct Faults {
    /// The EXT bit of their error codes.
    external: bool,
}

impl Faults {
    fn with(self, vector: ExceptionVector, code: u32) -> SwitchError {
        SwitchError::Fault(Fault {
            vector,
            error_code: Some(code | u32::from(self.external)),
            cr2: None,
        })
    }

    /// Returns a fault that names a selector.
    fn selector(self, vector: ExceptionVector, selector: u16) -> SwitchError {
        self.with(vector, u32::from(selector & !0b11))
    }
}

/// A TSS that is to become, or is, the current one.
struct Task {
    descriptor: Descriptor,
    format: Format,
}

/// Switches to another task.
///
/// # Errors
/// [`SwitchError::Fault`] is to be injected. [`SwitchError::NotRam`] if the guest has put a
/// structure outside of its RAM.
pub(crate) fn switch_task<C: TaskCpu, M: GuestMemory>(
    cpu: &mut C,
    memory: &M,
    request: &Request,
) -> Result<Switched, SwitchError> {
    let faults = Faults {
        external: matches!(request.cause, Cause::Event { external: true, .. }),
    };
    let old_space = SystemMemory::new(cpu, memory);
    let new = find_task(cpu, &old_space, request, faults)?;
    let old_tr = cpu.segment(SegmentRegister::Tr);
    let old_format = Format::of_type(old_tr.rights.bits());
    if old_tr.limit < old_format.least_limit() {
        return Err(faults.selector(ExceptionVector::InvalidTss, old_tr.selector));
    }

    // Everything that can fault in the old task does so before anything changes.
    let mut old_image = old_format.buffer();
    old_space.read_checked(old_tr.base, &mut old_image)?;
    old_space.check_writable(old_tr.base, old_image.len())?;
    let mut new_image = new.format.buffer();
    old_space.read_checked(new.descriptor.base, &mut new_image)?;
    let state = State::from_image(&new_image);
    let nests = matches!(request.cause, Cause::Call | Cause::Event { .. });
    if nests {
        old_space.check_writable(new.descriptor.base, 2)?;
    }
    let pdptes = pdptes_of(cpu, memory, &state, request, faults)?;
    let leaves = matches!(request.cause, Cause::Jump | Cause::Iret);
    if leaves {
        descriptor::set_busy(cpu, &old_space, old_tr.selector, false)?;
    }
    if request.cause != Cause::Iret {
        descriptor::set_busy(cpu, &old_space, request.selector, true)?;
    }

    let mut saved = State::of(cpu, request.return_rip);
    if request.cause == Cause::Iret {
        saved.eflags &= !NESTED_TASK;
    }
    saved.store_dynamic(&mut old_image);
    old_space.write(old_tr.base, &old_image)?;
    if nests {
        let back_link = old_tr.selector.to_le_bytes();
        old_space.write(new.descriptor.base, &back_link)?;
    }

    // The commit: from here on, it is the new task.
    cpu.set_segment(
        SegmentRegister::Tr,
        Segment {
            selector: request.selector,
            base: new.descriptor.base,
            limit: new.descriptor.limit,
            rights: new.descriptor.rights | AccessRights::from_bits_retain(descriptor::BUSY),
        },
    );
    if let Some(cr3) = state.cr3
        && cpu.cr0() & Cr0Flags::PAGING.bits() != 0
    {
        cpu.set_cr3(cr3.into(), pdptes);
    }
    let was_virtual_8086 = saved.is_virtual_8086();
    for (index, value) in state.gprs.into_iter().enumerate() {
        cpu.set_gpr(index, value.into());
    }
    let nested = if nests { NESTED_TASK } else { 0 };
    cpu.enter_task(state.eip.into(), u64::from(state.eflags | nested));

    let new_space = SystemMemory::new(cpu, memory);
    segments::load(cpu, &new_space, &state, faults, was_virtual_8086)?;
    if let Cause::Event {
        error_code: Some(code),
        ..
    } = request.cause
    {
        push_error_code(cpu, &new_space, new.format, code, faults)?;
    }
    Ok(Switched {
        debug_trap: state.debug_trap,
    })
}

/// Returns the descriptor of the new TSS. The processor has checked it, but another VCPU may have
/// changed it since.
fn find_task<C: TaskCpu, M: GuestMemory>(
    cpu: &C,
    space: &SystemMemory<'_, M>,
    request: &Request,
    faults: Faults,
) -> Result<Task, SwitchError> {
    let selector = request.selector;
    // SDM vol. 3A, table 8-1: #GP for CALL, JMP and events, #TS for IRET.
    let invalid = if request.cause == Cause::Iret {
        ExceptionVector::InvalidTss
    } else {
        ExceptionVector::GeneralProtection
    };
    let descriptor = descriptor::read_global(cpu, space, selector)?
        .ok_or_else(|| faults.selector(invalid, selector))?;
    let format = match (descriptor::system_type(&descriptor), request.cause) {
        (Some(SystemType::Tss { format, busy }), cause) if busy == (cause == Cause::Iret) => format,
        _ => return Err(faults.selector(invalid, selector)),
    };
    if !descriptor.is_present() {
        return Err(faults.selector(ExceptionVector::SegmentNotPresent, selector));
    }
    if descriptor.limit < format.least_limit() {
        return Err(faults.selector(ExceptionVector::InvalidTss, selector));
    }
    Ok(Task { descriptor, format })
}

/// Returns the PDPTEs of the new task's address space, if it has PAE paging.
fn pdptes_of<C: TaskCpu, M: GuestMemory>(
    cpu: &C,
    memory: &M,
    state: &State,
    request: &Request,
    faults: Faults,
) -> Result<Option<[u64; 4]>, SwitchError> {
    let Some(cr3) = state.cr3 else {
        return Ok(None);
    };
    if cpu.cr0() & Cr0Flags::PAGING.bits() == 0
        || cpu.cr4() & Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits() == 0
    {
        return Ok(None);
    }
    match read_pdptes(memory, cr3.into(), cpu.physical_address_bits()) {
        Some(pdptes) => Ok(Some(pdptes)),
        None => Err(faults.selector(ExceptionVector::InvalidTss, request.selector)),
    }
}

/// Pushes the error code of the event that started the task onto the task's stack.
fn push_error_code<C: TaskCpu, M: GuestMemory>(
    cpu: &mut C,
    space: &SystemMemory<'_, M>,
    format: Format,
    code: u32,
    faults: Faults,
) -> Result<(), SwitchError> {
    use crate::emulate::RSP;
    let stack = cpu.segment(SegmentRegister::Ss);
    let mask = if stack.rights.contains(AccessRights::DEFAULT_BIG) {
        0xffff_ffff
    } else {
        0xffff
    };
    let bytes = code.to_le_bytes();
    let bytes = &bytes[..format.word_size()];
    let pointer = cpu.gpr(RSP);
    let top = pointer.wrapping_sub(bytes.len() as u64) & mask;
    let last = top + bytes.len() as u64 - 1;
    let limit = u64::from(stack.limit);
    let within = if stack
        .rights
        .contains(AccessRights::EXPAND_DOWN_OR_CONFORMING)
    {
        top > limit && last <= mask
    } else {
        last <= limit
    };
    if !within {
        return Err(faults.with(ExceptionVector::Stack, 0));
    }
    let user = cpu.cpl() == 3;
    space.push(stack.base.wrapping_add(top), bytes, user)?;
    cpu.set_gpr(RSP, pointer & !mask | top);
    Ok(())
}
