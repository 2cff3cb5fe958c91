//! The interrupt controllers: local APIC in both modes, I/O APIC, and the pair of 8259s.
//!
//! The word `keep-enabled` on the command line leaves out what disables the local APIC: Bochs and
//! QEMU cannot enable it again. `no-nmi` leaves out NMIs: Bochs 2.7 takes the blocking of NMIs along
//! from one VMCS to the next that is entered, so that they come late under two hypervisors.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod delivery;
mod io_apic;
mod legacy;
mod record;
mod registers;
mod x2apic;

use kernels::lapic::{Lapic, Mode};
use kernels::{Report, interrupts, ioapic, lapic, multiboot, platform, println};

fn run(report: &mut Report) {
    ioapic::mask_all();
    // A spurious interrupt is legal wherever a request is withdrawn or a priority raised. It is not
    // ended.
    interrupts::set_handler(lapic::SPURIOUS, |_| println!("spurious interrupt"));
    registers::test(report);
    delivery::test(report, Lapic::enable(Mode::XApic));
    io_apic::test(report);
    legacy::test(report);
    if lapic::has_x2apic() {
        x2apic::test(report);
    } else {
        report.skip("x2APIC", "the CPU has none");
    }
}

/// Whether the local APIC can be disabled and enabled again.
fn can_disable() -> bool {
    !platform::is_tcg() && !multiboot::has_word("keep-enabled")
}

kernels::kernel!(run);
