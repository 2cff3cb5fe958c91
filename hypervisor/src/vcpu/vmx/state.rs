//! The part of a guest's state that only the VMCS shows, for the engineer who has to find out why
//! the guest died.
#![forbid(unsafe_code)]

use core::fmt;

use vmx::fields;
use vmx::vmcs::Vmcs;

/// Writes the descriptor-table registers, what the last exit and entry were about, and what of the
/// guest state a processor would not take.
///
/// # Errors
/// If `out` fails.
pub(super) fn write(vmcs: &Vmcs, out: &mut dyn fmt::Write) -> fmt::Result {
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
    let mut result = Ok(());
    vmx::diagnosis::check_guest_state(vmcs, |failed| {
        if result.is_ok() {
            result = writeln!(out, "guest-state check failed: {failed}");
        }
    });
    result
}
