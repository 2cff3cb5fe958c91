//! The interrupt controllers: local APIC in both modes, I/O APIC, and the pair of 8259s.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod delivery;
mod io_apic;
mod legacy;
mod record;
mod registers;
mod x2apic;

use kernels::lapic::{Lapic, Mode};
use kernels::{Report, ioapic, lapic};

fn run(report: &mut Report) {
    ioapic::mask_all();
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

kernels::kernel!(run);
