//! The `log` crate's messages, on the serial console.

use super::serial;
use log::{Level, LevelFilter, Log, Metadata, Record};

struct SerialLogger;

impl Log for SerialLogger {
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
        serial::print(format_args!("tarpit: {level}{}\n", record.args()));
    }

    fn flush(&self) {
        serial::flush();
    }
}

/// Sends log messages of level Info and above to the serial console, one line each, with
/// the level named unless it is Info. Later calls change nothing.
pub fn init() {
    if log::set_logger(&SerialLogger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
