//! A VCPU's state for the engineer who has to find out why its guest died.

use core::fmt;

use vmx::fields;
use vmx::segment::SegmentRegister;

use super::registers::Registers;
use crate::emulate::Cpu;
use crate::guest_memory::GuestMemory;
use crate::guest_paging::{Access, AccessKind, Paging, PagingRegisters};
use vmx::addr::GuestVirtAddr;

/// Writes the registers of the VCPU whose VMCS is current, the code at RIP, and what of the
/// guest state a processor would not take.
///
/// # Errors
/// If `out` fails.
pub fn write_dump(
    registers: &Registers,
    memory: &impl GuestMemory,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    for (index, name) in NAMES.iter().enumerate() {
        let end = if index % 4 == 3 { "\n" } else { "  " };
        write!(out, "{name} {:016x}{end}", registers.gpr(index))?;
    }
    let vmcs = &registers.vmcs;
    writeln!(
        out,
        "rip {:016x}  rflags {:08x}  cpl {}",
        registers.rip(),
        registers.rflags(),
        registers.cpl()
    )?;
    writeln!(
        out,
        "cr0 {:08x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}",
        registers.cr0(),
        registers.cr3(),
        registers.cr4(),
        registers.efer()
    )?;
    for register in SegmentRegister::ALL {
        let segment = vmcs.segment(register);
        writeln!(
            out,
            "{:<4} {:04x}  base {:016x}  limit {:08x}  rights {:05x}",
            name(register),
            segment.selector,
            segment.base,
            segment.limit,
            segment.rights.bits()
        )?;
    }
    for (name, table) in [("gdtr", vmcs.gdtr()), ("idtr", vmcs.idtr())] {
        writeln!(
            out,
            "{name} base {:016x}  limit {:04x}",
            table.base, table.limit
        )?;
    }
    writeln!(
        out,
        "activity {}  interruptibility {:#x}  exit reason {:#x}  qualification {:#x}  gpa {:#x}  \
         idt-vectoring {:#x}  injected {:#x}",
        vmcs.read(fields::GUEST_ACTIVITY_STATE),
        vmcs.read(fields::GUEST_INTERRUPTIBILITY),
        vmcs.read(fields::EXIT_REASON),
        vmcs.read(fields::EXIT_QUALIFICATION),
        vmcs.read(fields::GUEST_PHYSICAL_ADDRESS),
        vmcs.read(fields::IDT_VECTORING_INFORMATION),
        vmcs.read(fields::ENTRY_INTERRUPTION_INFORMATION),
    )?;
    write_code(registers, memory, out)?;
    let mut result = Ok(());
    vmx::diagnosis::check_guest_state(vmcs, |failed| {
        if result.is_ok() {
            result = writeln!(out, "guest-state check failed: {failed}");
        }
    });
    result
}

const fn name(register: SegmentRegister) -> &'static str {
    match register {
        SegmentRegister::Es => "es",
        SegmentRegister::Cs => "cs",
        SegmentRegister::Ss => "ss",
        SegmentRegister::Ds => "ds",
        SegmentRegister::Fs => "fs",
        SegmentRegister::Gs => "gs",
        SegmentRegister::Ldtr => "ldtr",
        SegmentRegister::Tr => "tr",
    }
}

fn write_code(
    registers: &Registers,
    memory: &impl GuestMemory,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    let start = registers
        .segment_base(crate::emulate::SegmentRegister::Cs)
        .wrapping_add(registers.rip());
    write!(out, "code at {start:#x}:")?;
    let paging = Paging::new(registers);
    // As a supervisor's read: the dump is to show what is there, not what is allowed.
    let access = Access {
        kind: AccessKind::Read,
        user: false,
        smap_override: true,
    };
    for offset in 0..16 {
        let address = GuestVirtAddr(start.wrapping_add(offset));
        let mut byte = [0];
        let fetched = paging
            .translate(memory, address, access)
            .ok()
            .and_then(|physical| memory.read(physical, &mut byte).ok());
        match fetched {
            Some(()) => write!(out, " {:02x}", byte[0])?,
            None => write!(out, " ??")?,
        }
    }
    writeln!(out)
}
