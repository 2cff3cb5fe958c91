//! The end of tarpit when it cannot go on: the other CPUs are stopped, what happened is told on the
//! console, with the place where each CPU was, and then the machine stays as it is or is reset, as the
//! operator wants.
#![forbid(unsafe_code)]

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use devices::time::Hertz;

use super::cpu::PerCpu;
use crate::machine::host_time::host_now;
use crate::machine::{power, serial, smp, text_screen};

/// The fate of the machine after a fatal error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnFatal {
    /// A halt for good, with the report on the screen.
    #[default]
    Stay,
    /// A reset.
    Reboot {
        /// The time for which the report can be read first, in seconds.
        after: u32,
    },
}

/// The time that other CPUs may take to stop, in reads of a port of about a microsecond each.
const PATIENCE: u32 = 20_000;

/// The wait before the machine is reset, in ticks of the TSC, plus one; zero if it is to stay.
static RESET_AFTER: AtomicU64 = AtomicU64::new(0);

/// The number of the CPU that reports a fatal error, plus one.
static REPORTER: AtomicU32 = AtomicU32::new(0);

/// The CPU that was first to report a fatal error, seen from the one that is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// None before: this CPU is the first.
    First,
    /// This CPU, which has been reporting something already.
    Again,
    /// Another CPU, which reports something.
    Elsewhere,
}

/// Sets what becomes of the machine after a fatal error from now on. `tsc` is the frequency of the TSC.
pub(crate) fn set_action(action: OnFatal, tsc: Hertz) {
    let ticks = match action {
        OnFatal::Stay => 0,
        OnFatal::Reboot { after } => tsc.get().saturating_mul(after.into()).saturating_add(1),
    };
    RESET_AFTER.store(ticks, Ordering::Relaxed);
}

/// Reports a condition of the machine or its configuration that tarpit cannot run with, in a line
/// `tarpit: fatal: <cause and remedy>`, and where the other CPUs are, if any run.
///
/// `cause` names what is wrong and what to do about it, without a line break.
pub(crate) fn fatal(cause: fmt::Arguments<'_>) -> ! {
    report(format_args!("tarpit: fatal: {cause}\n"))
}

/// Reports a panic, which is always a bug of tarpit, and where the other CPUs are.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => report(format_args!(
            "tarpit: panic at {}:{}: {}\n",
            at.file(),
            at.line(),
            info.message()
        )),
        None => report(format_args!("tarpit: panic: {}\n", info.message())),
    }
}

/// Stops the other CPUs, writes `text`, which ends in a line break, and where they are, and does what
/// the operator wants done after a fatal error.
pub(super) fn report(text: fmt::Arguments<'_>) -> ! {
    match trouble(&REPORTER, own_number()) {
        Trouble::First => {
            smp::stop_others();
            say(text);
            report_others();
            end()
        }
        Trouble::Again => {
            say(format_args!("while reporting this: {text}"));
            end()
        }
        // It is told where this CPU is, by the NMI that stops it.
        Trouble::Elsewhere => loop {
            x86_64::instructions::hlt();
        },
    }
}

/// Writes to the console and to the screen.
fn say(text: fmt::Arguments<'_>) {
    serial::emergency_print(text);
    text_screen::print(text);
}

fn own_number() -> u32 {
    PerCpu::try_current().map_or(0, |cpu| cpu.index)
}

/// Enters CPU `own` as the one that reports, if none does yet.
fn trouble(reporter: &AtomicU32, own: u32) -> Trouble {
    match reporter.compare_exchange(0, own + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Trouble::First,
        Err(other) if other == own + 1 => Trouble::Again,
        Err(_) => Trouble::Elsewhere,
    }
}

/// Writes where each of the others was when it was stopped.
fn report_others() {
    let mut patience = PATIENCE;
    for other in smp::others() {
        let place = loop {
            let place = other.place();
            if place.is_some() || patience == 0 {
                break place;
            }
            patience -= 1;
            power::delay();
        };
        match place {
            Some(place) => say(format_args!("  {other}: {place}\n")),
            None => say(format_args!("  {other}: does not answer\n")),
        }
    }
}

fn end() -> ! {
    let ticks = RESET_AFTER.load(Ordering::Relaxed);
    if ticks == 0 {
        power::halt()
    }
    say(format_args!("tarpit: resetting the machine\n"));
    let start = host_now();
    while host_now().since(start) < ticks {
        core::hint::spin_loop();
    }
    power::reset()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cpu_in_trouble_reports_alone() {
        let reporter = AtomicU32::new(0);
        assert_eq!(trouble(&reporter, 3), Trouble::First);
        assert_eq!(trouble(&reporter, 0), Trouble::Elsewhere);
        assert_eq!(trouble(&reporter, 3), Trouble::Again);
        assert_eq!(trouble(&reporter, 4), Trouble::Elsewhere);
    }
}
