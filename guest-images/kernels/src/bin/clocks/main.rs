//! All clocks against each other, for as long as one likes.
//!
//! Reads every clock over and over, and checks that none goes back and that all agree with the TSC
//! within a tick of theirs. Meanwhile it changes between two address spaces every few milliseconds
//! of its own time, so that a hypervisor can treat one of them differently.
//!
//! On the command line: `seconds=N` ends it after N seconds of its own time, `switch_us=N` sets how
//! long an address space stays (3000), `ppm=N` how far the clocks' frequencies may be off. A `q` on
//! the serial console ends it, too. Each second lines `clocks: t=...` show how things are, one for
//! each clock.
#![cfg_attr(target_os = "none", no_std, no_main)]

mod clock;

use arch::apic::{Register, divide, lvt};
use arch::msr::IA32_TIME_STAMP_COUNTER;
use kernels::hpet::{CONFIGURATION, COUNTER, ENABLE, Hpet};
use kernels::lapic::{Lapic, Mode};
use kernels::pm_timer::{self, PmTimer};
use kernels::{Report, memory, multiboot, pit, println, rtc, serial, tsc};

use clock::{Clock, Hertz, Reading};

/// The local APIC's timer counts this many ticks in a period: all that it can.
const LAPIC_PERIOD: u32 = u32::MAX;

fn start_hpet() -> Option<Hpet> {
    let hpet = Hpet::find()?;
    hpet.stop();
    hpet.write(COUNTER, 0);
    hpet.write(CONFIGURATION, ENABLE);
    Some(hpet)
}

/// Starts the local APIC's timer and measures its frequency, to the nearest MHz where it is near
/// one, because no register tells it.
fn start_lapic(lapic: Lapic, tsc_hertz: u64) -> u64 {
    lapic.write(Register::DIVIDE, divide::BY_1);
    lapic.write(Register::LVT_TIMER, lvt::MASKED | lvt::TIMER_PERIODIC);
    lapic.write(Register::INITIAL_COUNT, LAPIC_PERIOD);
    let start = tsc::now();
    let first = lapic.read(Register::CURRENT_COUNT);
    tsc::wait(tsc_hertz / 10);
    let counted = u64::from(first.wrapping_sub(lapic.read(Register::CURRENT_COUNT)));
    let ticks = tsc::now() - start;
    let hertz = (u128::from(counted) * u128::from(tsc_hertz) / u128::from(ticks)) as u64;
    let near = |goal: u64| hertz.abs_diff(goal) < goal / 1000;
    let rounded = (hertz + 500_000) / 1_000_000 * 1_000_000;
    if near(tsc_hertz) {
        tsc_hertz
    } else if rounded != 0 && near(rounded) {
        rounded
    } else {
        hertz
    }
}

/// The RTC's seconds, from 0 to 59, when they are not being updated.
fn rtc_seconds() -> u64 {
    loop {
        if rtc::read(rtc::A) & 0x80 == 0 {
            let bcd = rtc::read(0);
            if bcd == rtc::read(0) {
                return u64::from(bcd >> 4) * 10 + u64::from(bcd & 0xf);
            }
        }
    }
}

fn run(report: &mut Report) {
    let told = tsc::cpuid_hertz();
    let tsc_hertz = told.unwrap_or_else(tsc::measured_hertz);
    // A measured frequency is only as good as the measurement.
    let ppm = multiboot::number("ppm").unwrap_or(if told.is_some() { 1 } else { 300 });
    let hpet = start_hpet();
    let pm_timer = PmTimer::find();
    let lapic = Lapic::enable(Mode::XApic);
    let lapic_hertz = start_lapic(lapic, tsc_hertz);
    pit::start(0, 2, 0);
    rtc::write(rtc::B, 0x02);
    rtc::write(rtc::A, 0x26);
    println!("clocks: tsc_hz={tsc_hertz} lapic_hz={lapic_hertz} ppm={ppm}");

    let spaces = [memory::root(), memory::new_root()];
    println!("clocks: space A cr3={:#x}", spaces[0]);
    println!("clocks: space B cr3={:#x}", spaces[1]);
    let read_hpet = move || hpet.map_or(0, Hpet::counter);
    let read_pm_timer = move || pm_timer.map_or(0, |timer| u64::from(timer.read()));
    let read_pit = || u64::from(0_u16.wrapping_sub(pit::count(0)));
    // SAFETY: every 64-bit CPU has IA32_TIME_STAMP_COUNTER.
    let read_tsc_msr =
        || unsafe { x86_64::registers::model_specific::Msr::new(IA32_TIME_STAMP_COUNTER).read() };
    let read_lapic = move || u64::from(LAPIC_PERIOD - lapic.read(Register::CURRENT_COUNT));
    let pm_mask = pm_timer.map_or(1, |timer| timer.mask);
    let mut clocks = [
        // The femtoseconds of a period, as a frequency without rounding.
        Clock::new(
            "hpet",
            &read_hpet,
            0,
            Hertz(1_000_000_000_000_000, hpet.map_or(1, Hpet::period_fs)),
            hpet.is_some(),
        ),
        Clock::new(
            "pm",
            &read_pm_timer,
            u64::from(pm_mask) + 1,
            Hertz(pm_timer::HERTZ, 1),
            pm_timer.is_some(),
        ),
        Clock::new("pit", &read_pit, 1 << 16, Hertz(pit::HERTZ, 1), true),
        Clock::new(
            "lapic",
            &read_lapic,
            LAPIC_PERIOD.into(),
            Hertz(lapic_hertz, 1),
            true,
        ),
        Clock::new("rtc", &rtc_seconds, 60, Hertz(1, 1), true),
        Clock::new("tsc-msr", &read_tsc_msr, 0, Hertz(tsc_hertz, 1), true),
    ];
    println!("clocks: ready");

    let seconds = multiboot::number("seconds").unwrap_or(u64::MAX);
    let stay = multiboot::number("switch_us")
        .unwrap_or(3000)
        .saturating_mul(tsc_hertz)
        / 1_000_000;
    let start = tsc::now();
    let (mut last, mut backwards, mut rounds, mut switches) = (start, 0_u64, 0_u64, 0_usize);
    let (mut next_switch, mut next_report) = (start + stay, start + tsc_hertz);
    loop {
        let now = tsc::now();
        backwards += u64::from(now < last);
        last = now;
        for clock in &mut clocks {
            clock.check(tsc_hertz, ppm);
        }
        rounds += 1;
        if now >= next_switch {
            switches += 1;
            // SAFETY: both address spaces have all that the kernel needs.
            unsafe { memory::load_root(spaces[switches % 2]) };
            next_switch = tsc::now() + stay;
        }
        let quit = serial::receive() == Some(b'q') || (now - start) / tsc_hertz >= seconds;
        if now >= next_report || quit {
            println!("clocks: t={now} rounds={rounds} switches={switches} tsc_back={backwards}");
            for clock in &clocks {
                println!("clocks: t={now} {clock}");
            }
            next_report = tsc::now() + tsc_hertz;
        }
        if quit {
            break;
        }
    }
    report.equal("the TSC never goes back", backwards, 0);
    for clock in clocks {
        if !clock.is_there() {
            report.skip(clock.name(), "not there");
            continue;
        }
        let Reading { backwards, off, .. } = clock.reading();
        report.equal(
            format_args!("{} never goes back", clock.name()),
            backwards,
            0,
        );
        report.equal(format_args!("{} agrees with the TSC", clock.name()), off, 0);
    }
}

kernels::kernel!(run);
