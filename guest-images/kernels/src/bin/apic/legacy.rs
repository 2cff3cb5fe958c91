//! The pair of 8259s, by way of LINT0. 8259A datasheet.

use arch::apic::{Register, delivery_mode, lvt};
use kernels::interrupts::{clear_handler, let_in, set_handler};
use kernels::lapic::{Lapic, Mode};
use kernels::pic::{self, BASE, Pic};
use kernels::{Report, pit, rtc};

use crate::record::{note, of, take};

/// The PIT's interrupt.
const PIT: u8 = 0;
/// The RTC's interrupt.
const RTC: u8 = rtc::IRQ;
const PIT_VECTOR: u8 = BASE + PIT;
const RTC_VECTOR: u8 = BASE + RTC;

/// OCW2: specific end of interrupt.
const SPECIFIC_END: u8 = 0x60;
/// OCW2: set priority: the interrupt named becomes the lowest.
const SET_PRIORITY: u8 = 0xc0;
/// OCW3: special mask mode on.
const SPECIAL_MASK: u8 = 0x68;
/// OCW3: special mask mode off.
const NO_SPECIAL_MASK: u8 = 0x48;

pub(crate) fn test(report: &mut Report) {
    let lapic = Lapic::enable(Mode::XApic);
    pic::init();
    report.equal("master: all masked", Pic::Master.mask(), 0xff);
    report.equal("slave: all masked", Pic::Slave.mask(), 0xff);
    for value in [0x5a, 0xff] {
        Pic::Master.data(value);
        report.equal("the mask holds", Pic::Master.mask(), value);
    }
    report.equal(
        "nothing in service",
        Pic::Master.in_service() | Pic::Slave.in_service(),
        0,
    );
    report.equal("a poll without a request", Pic::Master.poll() & 0x80, 0);
    lapic.write(Register::LVT_LINT0, delivery_mode::EXT_INT);
    test_request(report, lapic);
    test_automatic_end(report);
    test_cascade(report);
    test_special_mask(report);
    lapic.write(Register::LVT_LINT0, lvt::MASKED);
    pic::init();
    clear_handler(PIT_VECTOR);
    clear_handler(RTC_VECTOR);
}

fn test_request(report: &mut Report, lapic: Lapic) {
    set_handler(PIT_VECTOR, |_| note(PIT_VECTOR));
    lapic.write(Register::LVT_LINT0, lvt::MASKED | delivery_mode::EXT_INT);
    pic::unmask(PIT);
    pit::raise_line();
    report.equal(
        "IRR shows a request",
        Pic::Master.requests() & 1 << PIT,
        1 << PIT,
    );
    let_in();
    report.same("a masked LINT0 lets nothing in", take(), of([]));
    lapic.write(Register::LVT_LINT0, delivery_mode::EXT_INT);
    let_in();
    report.same("a request comes with its vector", take(), of([PIT_VECTOR]));
    report.equal(
        "ISR shows it until its end",
        Pic::Master.in_service(),
        1 << PIT,
    );
    report.equal(
        "IRR does not any more",
        Pic::Master.requests() & 1 << PIT,
        0,
    );
    Pic::Master.end();
    report.equal("ISR is clear after its end", Pic::Master.in_service(), 0);
    let_in();
    report.same("an edge comes once", take(), of([]));
    pit::raise_line();
    let_in();
    report.same("the next edge comes again", take(), of([PIT_VECTOR]));
    Pic::Master.command(SPECIFIC_END | 3);
    report.equal(
        "a specific end of another does nothing",
        Pic::Master.in_service(),
        1 << PIT,
    );
    Pic::Master.command(SPECIFIC_END | PIT);
    report.equal("a specific end", Pic::Master.in_service(), 0);
    pic::mask_all();
    pit::raise_line();
    let_in();
    report.same("a masked request does not come", take(), of([]));
    pic::unmask(PIT);
    report.equal("a poll answers the request", Pic::Master.poll(), 0x80 | PIT);
    report.equal("and puts it in service", Pic::Master.in_service(), 1 << PIT);
    Pic::Master.end();
    let_in();
    report.same("so that it does not come", take(), of([]));
}

/// Initializes the master with automatic end of interrupt.
fn test_automatic_end(report: &mut Report) {
    for (to_command, value) in [
        (true, 0x11),
        (false, BASE),
        (false, 4),
        (false, 0x03),
        (false, 0xfe),
    ] {
        if to_command {
            Pic::Master.command(value);
        } else {
            Pic::Master.data(value);
        }
    }
    pit::raise_line();
    let_in();
    report.same("automatic end: the request comes", take(), of([PIT_VECTOR]));
    report.equal(
        "automatic end: nothing in service",
        Pic::Master.in_service(),
        0,
    );
    pic::init();
}

/// Leaves a request of the RTC at the slave.
fn rtc_request() -> bool {
    rtc::drop_line();
    rtc::raise_line(|| Pic::Slave.requests() & 1 << (RTC - 8) != 0)
}

fn test_cascade(report: &mut Report) {
    set_handler(RTC_VECTOR, |_| note(RTC_VECTOR));
    set_handler(PIT_VECTOR, |_| note(PIT_VECTOR));
    pic::unmask(RTC);
    pic::unmask(PIT);
    report.holds("the RTC requests at the slave", rtc_request());
    report.equal(
        "the slave requests at the master",
        Pic::Master.requests() & 1 << 2,
        1 << 2,
    );
    let_in();
    report.same("the slave's request comes", take(), of([RTC_VECTOR]));
    report.equal("the slave's ISR", Pic::Slave.in_service(), 1);
    report.equal("the master's ISR", Pic::Master.in_service(), 1 << 2);
    pit::raise_line();
    let_in();
    report.same("IRQ 0 interrupts it", take(), of([PIT_VECTOR]));
    report.equal(
        "the master's ISR with both",
        Pic::Master.in_service(),
        1 << 2 | 1 << PIT,
    );
    Pic::Master.end();
    report.equal("an end ends the highest", Pic::Master.in_service(), 1 << 2);
    Pic::Slave.end();
    Pic::Master.end();

    // With IRQ 0 as the lowest, the slave is higher.
    Pic::Master.command(SET_PRIORITY | PIT);
    report.holds("the RTC requests again", rtc_request());
    pit::raise_line();
    let_in();
    report.same("rotated: the slave comes first", take(), of([RTC_VECTOR]));
    pic::end(RTC);
    let_in();
    report.same("rotated: IRQ 0 comes after it", take(), of([PIT_VECTOR]));
    Pic::Master.end();
    Pic::Master.command(SET_PRIORITY | 7);
    rtc::drop_line();
    report.equal(
        "nothing is left in service",
        Pic::Master.in_service() | Pic::Slave.in_service(),
        0,
    );
}

/// In special mask mode, an interrupt in service that is masked does not hold lower ones back.
fn test_special_mask(report: &mut Report) {
    pit::raise_line();
    let_in();
    report.same("IRQ 0 comes", take(), of([PIT_VECTOR]));
    report.holds("the RTC requests", rtc_request());
    let_in();
    report.same("the slave waits for IRQ 0's end", take(), of([]));
    Pic::Master.command(SPECIAL_MASK);
    Pic::Master.data(Pic::Master.mask() | 1 << PIT);
    let_in();
    report.same("it comes in special mask mode", take(), of([RTC_VECTOR]));
    Pic::Master.command(NO_SPECIAL_MASK);
    Pic::Slave.end();
    Pic::Master.command(SPECIFIC_END | 2);
    Pic::Master.command(SPECIFIC_END | PIT);
    rtc::drop_line();
    report.equal(
        "nothing is left in service",
        Pic::Master.in_service() | Pic::Slave.in_service(),
        0,
    );
    pic::mask_all();
}
