//! Timers of periods so short that nobody could serve them: where nobody hears them they cost nothing, and where their
//! interrupts wait for RFLAGS.IF the CPU gets on all the same.

use arch::apic::{Register, divide, lvt};
use kernels::hpet::{
    CONFIGURATION, COUNTER, ENABLE, Hpet, TIMER_ENABLE, TIMER_PERIODIC, TIMER_SET,
};
use kernels::lapic::{Lapic, Mode};
use kernels::{Report, ioapic, pic, pit, tsc, work};

const VECTOR: u32 = 0x63;
/// The turns of the work, of two instructions each: a few milliseconds.
const TURNS: u32 = 200_000;
/// How much longer the loop may take, in thousandths.
const SLOWER: u64 = 100;
/// How many times as long it may take at most while each expiry ends the guest's stay.
const GETS_ON: u64 = 10;

/// Returns how long the CPU computes for the same work, in ticks of the TSC.
fn time_of_work() -> u64 {
    let start = tsc::now();
    work::turn(TURNS);
    tsc::now() - start
}

pub(crate) fn test(report: &mut Report) {
    ioapic::mask_all();
    pic::mask_all();
    let alone = time_of_work();
    let mut beside = |what: &str, most: u64| report.within(what, time_of_work(), 0..=most);
    let hardly_more = alone + alone * SLOWER / 1000;

    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(Register::DIVIDE, divide::BY_1);
    for (masked, most, what) in [
        (
            lvt::MASKED,
            hardly_more,
            "LAPIC, every 50 counts or each, masked: it costs nothing",
        ),
        (
            0,
            alone * GETS_ON,
            "LAPIC, every 50 counts or each, held back by RFLAGS.IF: work gets on",
        ),
    ] {
        for count in [50, 1] {
            lapic.write(Register::LVT_TIMER, masked | lvt::TIMER_PERIODIC | VECTOR);
            lapic.write(Register::INITIAL_COUNT, count);
            beside(what, most);
            lapic.write(Register::INITIAL_COUNT, 0);
        }
    }
    lapic.write(Register::LVT_TIMER, lvt::MASKED);

    // Mode 2 takes no count of 1.
    pit::start(0, 2, 2);
    beside("PIT, every 2 counts, masked: it costs nothing", hardly_more);
    pit::raise_line();

    if let Some(hpet) = Hpet::find() {
        hpet.stop();
        hpet.write(COUNTER, 0);
        hpet.write(Hpet::timer(0), TIMER_ENABLE | TIMER_PERIODIC | TIMER_SET);
        for _ in 0..2 {
            hpet.write(Hpet::comparator(0), 1);
        }
        hpet.write(CONFIGURATION, ENABLE);
        beside("HPET, every count, masked: it costs nothing", hardly_more);
        hpet.stop();
        hpet.write(Hpet::timer(0), 0);
    }
}
