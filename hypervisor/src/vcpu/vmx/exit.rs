//! Decodes VM exits: exit reasons and qualifications (SDM vol. 3D, app. C, and vol. 3C, 28.2.1).
#![forbid(unsafe_code)]

use arch::ExceptionVector;
use vmx::addr::GuestPhysAddr;
use vmx::event::{Event, EventKind};
use vmx::exit::{ENTRY_FAILURE, basic};
use vmx::fields;
use vmx::vmcs::Vmcs;

use crate::emulate::{SegmentRegister, Width};
use crate::vcpu::backend::ExitReason;
use crate::vcpu::backend::exit::{
    ApicAccess, ControlRegisterAccess, Exit, InterceptedException, IoAccess, NestedPageFault,
    StringIoAccess, TaskSwitch, TaskSwitchSource,
};

/// Decodes the exit that has just happened on the current VMCS.
///
/// Inlined where the result is matched on, it does not exist: one jump leads from the exit reason to
/// the exit's handler.
#[inline(always)]
pub(super) fn decode(vmcs: &Vmcs, reason: ExitReason) -> Exit {
    if reason.0 & ENTRY_FAILURE != 0 {
        return Exit::EntryFailure;
    }
    let qualification = || vmcs.read(fields::EXIT_QUALIFICATION);
    match reason.number() {
        basic::CPUID => Exit::Cpuid,
        basic::WRMSR => Exit::Wrmsr,
        basic::RDMSR => Exit::Rdmsr,
        basic::IO => io(vmcs, qualification()),
        basic::PREEMPTION_TIMER => Exit::TimeLimit,
        basic::HLT => Exit::Hlt,
        basic::INTERRUPT_WINDOW => Exit::InterruptWindow,
        basic::APIC_WRITE => Exit::ApicWrite {
            offset: qualification() as u16 & 0xfff,
        },
        basic::CR_ACCESS => Exit::ControlRegister(control_register(qualification())),
        basic::EPT_VIOLATION => Exit::NestedPageFault(nested_page_fault(
            qualification(),
            GuestPhysAddr(vmcs.read(fields::GUEST_PHYSICAL_ADDRESS)),
        )),
        basic::APIC_ACCESS => Exit::ApicAccess(apic_access(qualification())),
        basic::VIRTUALIZED_EOI => Exit::EndOfInterrupt {
            vector: qualification() as u8,
        },
        basic::EXTERNAL_INTERRUPT => Exit::HostInterrupt,
        basic::MOV_DR => Exit::DebugRegister,
        basic::VMCALL => Exit::Hypercall,
        basic::EXCEPTION_OR_NMI => exception_or_nmi(vmcs),
        basic::TRIPLE_FAULT => Exit::TripleFault,
        basic::NMI_WINDOW => Exit::NmiWindow,
        basic::TASK_SWITCH => Exit::TaskSwitch(task_switch(qualification())),
        basic::INVD | basic::WBINVD => Exit::CacheInvalidation,
        basic::RDTSC => Exit::Rdtsc,
        basic::RDTSCP => Exit::Rdtscp,
        basic::RDPMC => Exit::Rdpmc,
        basic::XSETBV => Exit::Xsetbv,
        basic::PAUSE => Exit::Pause,
        basic::TPR_BELOW_THRESHOLD => Exit::TprBelowThreshold,
        basic::EPT_MISCONFIGURATION => {
            Exit::NestedPageTableInvalid(GuestPhysAddr(vmcs.read(fields::GUEST_PHYSICAL_ADDRESS)))
        }
        number if is_undefined_instruction(number) => Exit::UndefinedInstruction,
        _ => Exit::Unexpected,
    }
}

/// Returns whether the exits of this number are instructions that guests are not told they have. Most exit
/// only where a control asks for it, and none does; SEAMCALL and TDCALL exit whatever a hypervisor wants,
/// and so would what processors to come have beyond them. Out of line: it is looked for after all others.
#[cold]
#[inline(never)]
const fn is_undefined_instruction(number: u16) -> bool {
    matches!(
        number,
        basic::GETSEC
            | 19..=27
            | basic::MWAIT
            | basic::MONITOR
            | basic::INVEPT
            | basic::INVVPID
            | basic::VMFUNC
            | basic::ENCLS
            | basic::XSAVES
            | basic::XRSTORS
            | basic::PCONFIG
            | basic::UMWAIT
            | basic::TPAUSE
            | basic::LOADIWKEY
            | basic::ENCLV
            | basic::SEAMCALL..
    )
}

/// Returns an exit by port I/O (table 28-5).
#[inline]
fn io(vmcs: &Vmcs, qualification: u64) -> Exit {
    const STRING: u64 = 1 << 4;
    let io = io_access(qualification);
    if qualification & STRING == 0 {
        return Exit::Io(io);
    }
    Exit::StringIo(string_io(
        io,
        qualification,
        vmcs.read(fields::EXIT_INSTRUCTION_INFORMATION),
        vmcs.read(fields::EXIT_INSTRUCTION_LENGTH),
    ))
}

#[inline]
const fn io_access(qualification: u64) -> IoAccess {
    IoAccess {
        port: (qualification >> 16) as u16,
        width: match qualification & 7 {
            0 => Width::BYTE,
            1 => Width::WORD,
            _ => Width::DOUBLEWORD,
        },
        input: qualification >> 3 & 1 != 0,
    }
}

/// Decodes INS or OUTS; `information` is the VM-exit instruction-information field (table 28-8).
const fn string_io(
    io: IoAccess,
    qualification: u64,
    information: u32,
    length: u32,
) -> StringIoAccess {
    StringIoAccess {
        io,
        repeated: qualification >> 5 & 1 != 0,
        address_size: match information >> 7 & 7 {
            0 => Width::WORD,
            1 => Width::DOUBLEWORD,
            _ => Width::QUADWORD,
        },
        segment: match information >> 15 & 7 {
            0 => SegmentRegister::Es,
            1 => SegmentRegister::Cs,
            2 => SegmentRegister::Ss,
            4 => SegmentRegister::Fs,
            5 => SegmentRegister::Gs,
            _ => SegmentRegister::Ds,
        },
        length: length as u8,
    }
}

/// Decodes the exit qualification of table 28-3.
const fn control_register(qualification: u64) -> ControlRegisterAccess {
    let register = (qualification & 15) as u8;
    let gpr = (qualification >> 8 & 15) as u8;
    match qualification >> 4 & 3 {
        0 => ControlRegisterAccess::Write { register, gpr },
        1 => ControlRegisterAccess::Read { register, gpr },
        2 => ControlRegisterAccess::Clts,
        _ => ControlRegisterAccess::Lmsw((qualification >> 16) as u16),
    }
}

/// Decodes the exit qualification of table 28-7.
#[inline]
const fn nested_page_fault(qualification: u64, address: GuestPhysAddr) -> NestedPageFault {
    let linear_valid = qualification >> 7 & 1 != 0;
    NestedPageFault {
        address,
        write: qualification >> 1 & 1 != 0,
        fetch: qualification >> 2 & 1 != 0,
        final_access: linear_valid && qualification >> 8 & 1 != 0,
        nmi_unblocked: qualification >> 12 & 1 != 0,
    }
}

/// Decodes the exit qualification of table 28-6.
const fn apic_access(qualification: u64) -> ApicAccess {
    let kind = qualification >> 12 & 15;
    ApicAccess {
        offset: qualification as u16 & 0xfff,
        read: kind == 0,
        write: kind == 1,
    }
}

/// Decodes the exit qualification of table 28-2.
const fn task_switch(qualification: u64) -> TaskSwitch {
    TaskSwitch {
        selector: qualification as u16,
        source: match qualification >> 30 & 3 {
            0 => TaskSwitchSource::Call,
            1 => TaskSwitchSource::Iret,
            2 => TaskSwitchSource::Jump,
            _ => TaskSwitchSource::Event,
        },
    }
}

fn exception_or_nmi(vmcs: &Vmcs) -> Exit {
    /// NMI unblocking due to IRET, which came before the exception (SDM vol. 3C, 28.2.2).
    const NMI_UNBLOCKING_DUE_TO_IRET: u32 = 1 << 12;
    /// The bits of DR6 that are in the qualification of a #DB (table 28-1).
    const DEBUG_CAUSES: u64 = 0xe00f;
    let information = vmcs.read(fields::EXIT_INTERRUPTION_INFORMATION);
    let event = Event::from_information(
        information,
        vmcs.read(fields::EXIT_INTERRUPTION_ERROR_CODE),
        vmcs.read(fields::EXIT_INSTRUCTION_LENGTH),
    );
    match event {
        Some(event) if event.kind == EventKind::Nmi => Exit::HostNmi,
        Some(event) => Exit::Exception(InterceptedException {
            event,
            nmi_unblocked: information & NMI_UNBLOCKING_DUE_TO_IRET != 0,
            debug_causes: if event.vector == ExceptionVector::Debug as u8 {
                vmcs.read(fields::EXIT_QUALIFICATION) & DEBUG_CAUSES
            } else {
                0
            },
        }),
        None => Exit::Unexpected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_out_to_the_debug_exit_port_is_decoded() {
        let access = io_access(0x00f4_0000);
        assert_eq!(
            access,
            IoAccess {
                port: 0xf4,
                width: Width::BYTE,
                input: false,
            }
        );
        assert_eq!(io_access(0x0cf8_0003).width, Width::DOUBLEWORD);
    }

    #[test]
    fn a_repeated_input_is_decoded_with_its_operand() {
        let qualification = 0x03f8_0038;
        let io = io_access(qualification);
        assert!(io.input);
        let access = string_io(io, qualification, 1 << 7, 2);
        assert!(access.repeated);
        assert_eq!(access.address_size, Width::DOUBLEWORD);
        assert_eq!((access.segment, access.length), (SegmentRegister::Es, 2));
        assert_eq!(
            string_io(io, qualification, 3 << 15, 2).segment,
            SegmentRegister::Ds
        );
    }

    #[test]
    fn control_register_accesses_are_told_apart() {
        assert_eq!(
            control_register(0x0503),
            ControlRegisterAccess::Write {
                register: 3,
                gpr: 5
            }
        );
        assert_eq!(
            control_register(0x0010),
            ControlRegisterAccess::Read {
                register: 0,
                gpr: 0
            }
        );
        assert_eq!(control_register(0x0020), ControlRegisterAccess::Clts);
        assert_eq!(
            control_register(0x0001_0030),
            ControlRegisterAccess::Lmsw(1)
        );
    }

    #[test]
    fn only_a_fault_on_the_operand_itself_is_a_final_access() {
        let fault = |qualification| nested_page_fault(qualification, GuestPhysAddr(0xfee0_0000));
        assert!(fault(0x182).final_access && fault(0x182).write);
        assert!(!fault(0x082).final_access, "a paging structure");
        assert!(!fault(0x101).final_access, "no linear address");
        assert!(fault(0x184).fetch);
    }

    #[test]
    fn instructions_that_guests_are_not_told_of_are_undefined_and_other_exits_are_not() {
        let named: [u16; 6] = [
            basic::SEAMCALL,
            basic::TDCALL,
            basic::ENCLS,
            basic::PCONFIG,
            basic::LOADIWKEY,
            basic::URDMSR,
        ];
        assert!(named.into_iter().all(is_undefined_instruction));
        assert!(
            (78..100).all(is_undefined_instruction),
            "of processors to come"
        );
        // Not instructions: INIT, an SMI, a full page-modification log, an event of sub-page permissions, a
        // bus lock, a notification that no instruction boundary came.
        for event in [basic::INIT, 5, 62, 66, 74, 75] {
            assert!(!is_undefined_instruction(event), "{event}");
        }
    }

    #[test]
    fn task_switches_tell_their_source_and_tss() {
        assert_eq!(
            task_switch(0x4000_0028),
            TaskSwitch {
                selector: 0x28,
                source: TaskSwitchSource::Iret
            }
        );
        assert_eq!(task_switch(0xc000_0030).source, TaskSwitchSource::Event);
    }
}
