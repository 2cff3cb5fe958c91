//! The `log` crate's messages, on the console and the screen, and kept for the operator.
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::{log_ring, serial, text_screen};

struct ConsoleLogger;

/// Whether messages are kept and not shown.
static QUIET: AtomicBool = AtomicBool::new(false);

impl Log for ConsoleLogger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        take(format_args!("tarpit: {level}{}\n", record.args()));
    }

    fn flush(&self) {
        serial::flush();
    }
}

fn take(line: fmt::Arguments<'_>) {
    log_ring::keep(line);
    if !QUIET.load(Ordering::Relaxed) {
        serial::print(line);
        text_screen::print(line);
    }
}

/// Sends log messages of level Info and above to the console, one line each, with the level named unless
/// it is Info. Later calls change nothing.
pub(crate) fn init() {
    if log::set_logger(&ConsoleLogger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Keeps messages for the operator from now on, and shows none.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}
