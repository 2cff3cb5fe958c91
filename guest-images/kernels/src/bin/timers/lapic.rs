//! The local APIC's timer. SDM vol. 3A, 11.5.4.

use core::arch::asm;

use arch::apic::{Register, divide, lvt};
use arch::msr::IA32_TSC_DEADLINE;
use kernels::interrupts::{clear_handler, let_in, set_handler};
use kernels::lapic::{self, Lapic, Mode};
use kernels::{Report, println, tsc};
use x86_64::registers::model_specific::Msr;

use crate::arrivals::{self, Time};

const VECTOR: u8 = 0x60;
const ONE_SHOT: u32 = VECTOR as u32;
/// Divide configurations for 2, 4, 8, 16, 32, 64 and 128.
const DIVISORS: [u32; 7] = [0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010];

pub(crate) fn test(report: &mut Report, time: Time) {
    set_handler(VECTOR, arrivals::note_lapic);
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(Register::LVT_TIMER, lvt::MASKED | ONE_SHOT);
    let hertz = frequency(lapic, time);
    println!("LAPIC timer: {hertz} Hz");
    test_counts(report, lapic, time, hertz);
    test_modes(report, lapic, time, hertz);
    if lapic::has_tsc_deadline() {
        test_deadline(report, lapic, time);
    } else {
        report.skip("TSC-deadline mode", "the CPU has none");
    }
    lapic.write(Register::LVT_TIMER, lvt::MASKED);
    clear_handler(VECTOR);
}

/// Measures the timer's input frequency, which no register tells.
fn frequency(lapic: Lapic, time: Time) -> u64 {
    lapic.write(Register::DIVIDE, divide::BY_1);
    lapic.write(Register::INITIAL_COUNT, u32::MAX);
    let before = tsc::now();
    let first = lapic.read(Register::CURRENT_COUNT);
    tsc::wait(time.ticks(1, 50));
    let ticks = tsc::now() - before;
    let counted = u64::from(first.wrapping_sub(lapic.read(Register::CURRENT_COUNT)));
    lapic.write(Register::INITIAL_COUNT, 0);
    (u128::from(counted) * u128::from(time.ticks(1, 1)) / u128::from(ticks)) as u64
}

fn test_counts(report: &mut Report, lapic: Lapic, time: Time, hertz: u64) {
    lapic.write(Register::INITIAL_COUNT, u32::MAX);
    time.expect_rate(report, "the current count goes down", hertz, 100, || {
        u64::from(u32::MAX - lapic.read(Register::CURRENT_COUNT))
    });
    for (divisor, configuration) in DIVISORS.into_iter().enumerate() {
        lapic.write(Register::DIVIDE, configuration);
        lapic.write(Register::INITIAL_COUNT, u32::MAX);
        time.expect_rate(
            report,
            "the current count goes down, divided",
            hertz >> (divisor + 1),
            200,
            || u64::from(u32::MAX - lapic.read(Register::CURRENT_COUNT)),
        );
    }
    lapic.write(Register::INITIAL_COUNT, 0);
    report.equal(
        "an initial count of 0 stops the timer",
        lapic.read(Register::CURRENT_COUNT),
        0,
    );
    lapic.write(Register::DIVIDE, divide::BY_1);
}

fn test_modes(report: &mut Report, lapic: Lapic, time: Time, hertz: u64) {
    let millisecond = (hertz / 1000) as u32;
    let period = (u64::from(millisecond), hertz);
    for _ in 0..3 {
        time.expect(report, "one-shot", period, 1, || {
            lapic.write(Register::LVT_TIMER, ONE_SHOT);
            lapic.write(Register::INITIAL_COUNT, millisecond);
        });
        report.equal(
            "one-shot: the count is through",
            lapic.read(Register::CURRENT_COUNT),
            0,
        );
    }
    time.expect_none(report, "one-shot: once", (3, 1000));
    time.expect(report, "periodic", period, 20, || {
        lapic.write(Register::LVT_TIMER, lvt::TIMER_PERIODIC | ONE_SHOT);
        lapic.write(Register::INITIAL_COUNT, millisecond);
    });
    lapic.write(
        Register::LVT_TIMER,
        lvt::MASKED | lvt::TIMER_PERIODIC | ONE_SHOT,
    );
    time.expect_none(report, "periodic, masked", (3, 1000));
    report.holds(
        "periodic, masked: it runs on",
        lapic.read(Register::CURRENT_COUNT) != 0,
    );
    lapic.write(Register::LVT_TIMER, lvt::TIMER_PERIODIC | ONE_SHOT);
    arrivals::drain();
    let came = tsc::wait_until(time.ticks(3, 1000) + time.slack(), || {
        let_in();
        arrivals::count() > 0
    });
    report.holds("periodic, unmasked again: it comes", came);
    lapic.write(Register::INITIAL_COUNT, 0);
    let_in();
    time.expect_none(report, "periodic, initial count 0: stopped", (3, 1000));
    // A shorter count written while a longer one runs counts from there.
    time.expect(report, "one-shot, written again", period, 1, || {
        lapic.write(Register::LVT_TIMER, ONE_SHOT);
        lapic.write(Register::INITIAL_COUNT, millisecond.saturating_mul(50));
        lapic.write(Register::INITIAL_COUNT, millisecond);
    });
    arrivals::drain();
    let start = tsc::now();
    lapic.write(Register::INITIAL_COUNT, millisecond);
    // SAFETY: the handler keeps all registers.
    unsafe { asm!("sti", "hlt", "cli") };
    let halted = tsc::now() - start;
    let due = time.ticks(1, 1000);
    report.equal("one-shot ends HLT", arrivals::count(), 1);
    report.within(
        "one-shot ends HLT in time",
        halted,
        due - due / 500..=due + due / 500 + time.slack(),
    );
    // From periodic to one-shot while it runs: the present count ends it.
    arrivals::drain();
    lapic.write(Register::LVT_TIMER, lvt::TIMER_PERIODIC | ONE_SHOT);
    lapic.write(Register::INITIAL_COUNT, millisecond);
    lapic.write(Register::LVT_TIMER, ONE_SHOT);
    let _ = tsc::wait_until(time.ticks(4, 1000) + time.slack(), || {
        let_in();
        false
    });
    report.equal("from periodic to one-shot: once", arrivals::count(), 1);
}

fn armed() -> u64 {
    // SAFETY: the CPU has the MSR.
    unsafe { Msr::new(IA32_TSC_DEADLINE).read() }
}

fn arm(deadline: u64) {
    // SAFETY: the CPU has the MSR.
    unsafe { Msr::new(IA32_TSC_DEADLINE).write(deadline) }
}

fn test_deadline(report: &mut Report, lapic: Lapic, time: Time) {
    let millisecond = time.ticks(1, 1000);
    arm(tsc::now() + millisecond);
    report.equal("a deadline outside of its mode is not taken", armed(), 0);
    lapic.write(
        Register::LVT_TIMER,
        lvt::TIMER_TSC_DEADLINE | u32::from(VECTOR),
    );
    for _ in 0..5 {
        arrivals::drain();
        let deadline = tsc::now() + millisecond;
        arm(deadline);
        let shown = armed();
        let _ = tsc::wait_until(millisecond * 2 + time.slack(), || {
            let_in();
            arrivals::count() > 0
        });
        let now = tsc::now();
        let left = armed();
        report.equal("the armed deadline can be read", shown, deadline);
        report.equal("a deadline comes", arrivals::count(), 1);
        report.within(
            "a deadline comes in time",
            now.wrapping_sub(deadline),
            0..=2 * time.slack(),
        );
        report.equal("the deadline is 0 after it", left, 0);
    }
    arrivals::drain();
    arm(tsc::now() - 1);
    let came = tsc::wait_until(time.slack(), || {
        let_in();
        arrivals::count() > 0
    });
    report.holds("a deadline in the past comes at once", came);
    arm(tsc::now() + millisecond);
    arm(0);
    time.expect_none(report, "a deadline of 0 disarms", (3, 1000));
    lapic.write(Register::INITIAL_COUNT, 1000);
    report.equal(
        "the initial count is not taken in this mode",
        lapic.read(Register::CURRENT_COUNT),
        0,
    );
    lapic.write(
        Register::LVT_TIMER,
        lvt::MASKED | lvt::TIMER_TSC_DEADLINE | u32::from(VECTOR),
    );
    arm(tsc::now() + millisecond);
    tsc::wait(2 * millisecond + time.slack());
    report.holds(
        "a masked deadline requests nothing",
        !lapic.bit(Register::IRR, VECTOR),
    );
    lapic.write(
        Register::LVT_TIMER,
        lvt::TIMER_TSC_DEADLINE | u32::from(VECTOR),
    );
    arm(tsc::now() + millisecond);
    lapic.write(Register::LVT_TIMER, ONE_SHOT);
    report.equal("leaving the mode disarms", armed(), 0);
    time.expect_none(report, "leaving the mode: nothing comes", (3, 1000));
}
