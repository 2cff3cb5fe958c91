//! Silences what firmware and the boot loader have left armed, apart from what each CPU has of its
//! own (see [`LocalApic::enable`](crate::machine::local_apic::LocalApic::enable)).

use crate::machine::acpi::Acpi;
use crate::machine::pci::Function;
use crate::machine::{io_apic, pci};

/// Masks all inputs of the machine's I/O APICs, and lets no PCI device but those in `leave` interrupt
/// or write to memory.
///
/// # Safety
/// Once, on the boot CPU; the devices are tarpit's, and all memory below 4 GiB is mapped one to one.
pub(super) unsafe fn silence_devices(acpi: &Acpi, leave: &[Function]) {
    for io_apic in &acpi.io_apics {
        // SAFETY: by the caller; firmware says that there is one. Its address has 32 bits.
        let open = unsafe { io_apic::mask_all(io_apic.address) };
        if open != 0 {
            log::info!(
                "I/O APIC at {:#x}: {open} inputs were open, and are masked",
                io_apic.address
            );
        }
    }
    // SAFETY: by the caller.
    let silenced = unsafe { pci::silence(leave) };
    log::info!(
        "PCI: {} functions, of which {} could write to memory and {} interrupted by messages, and do \
         so no more; {} left alone",
        silenced.functions,
        silenced.masters,
        silenced.message_interrupts,
        silenced.left
    );
}
