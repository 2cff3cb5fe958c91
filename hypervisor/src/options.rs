//! tarpit's own command line.

use alloc::string::{String, ToString};
use core::fmt;
use log::LevelFilter;

/// What tarpit does when the last VM has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnEnd {
    /// Stay with the console, so that the operator can look around or start VMs again.
    #[default]
    Stay,
    /// Power the machine off.
    PowerOff,
}

/// The options, each with its default where the command line is silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `loglevel=error|warn|info|debug`: the least important messages shown.
    pub log_level: LevelFilter,
    /// `on-end=stay|poweroff`.
    pub on_end: OnEnd,
    /// `virtual-apic=on|off`: whether to let the processor virtualise the guests' local APICs,
    /// if it can.
    pub virtual_apic: bool,
    /// `tsc-scaling=on|off`: whether to let the processor scale the guests' TSCs, if it can.
    pub tsc_scaling: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_level: LevelFilter::Info,
            on_end: OnEnd::Stay,
            virtual_apic: true,
            tsc_scaling: true,
        }
    }
}

/// Every option with its values, as shown to the operator.
const KNOWN: &str = "loglevel=error|warn|info|debug, on-end=stay|poweroff, \
     virtual-apic=on|off, tsc-scaling=on|off";

/// Why a command line was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionsError {
    /// No option of this name.
    Unknown {
        /// The word as written.
        word: String,
    },
    /// A known option with a value that it does not have.
    BadValue {
        /// The word as written.
        word: String,
        /// The values there are, separated by `|`.
        values: &'static str,
    },
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { word } => {
                write!(f, "unknown option `{word}`; the options are: {KNOWN}")
            }
            Self::BadValue { word, values } => {
                write!(f, "bad value in option `{word}`; use one of {values}")
            }
        }
    }
}

impl core::error::Error for OptionsError {}

fn on_off(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

impl Options {
    /// Parses a command line of words separated by white space. The last of several
    /// settings of one option counts.
    ///
    /// # Errors
    /// The first word that is not a known option with a known value.
    pub fn parse(command_line: &str) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let bad_value = |values| OptionsError::BadValue {
                word: word.to_string(),
                values,
            };
            match name {
                "loglevel" => {
                    options.log_level = match value {
                        "error" => LevelFilter::Error,
                        "warn" => LevelFilter::Warn,
                        "info" => LevelFilter::Info,
                        "debug" => LevelFilter::Debug,
                        _ => return Err(bad_value("error|warn|info|debug")),
                    }
                }
                "on-end" => {
                    options.on_end = match value {
                        "stay" => OnEnd::Stay,
                        "poweroff" => OnEnd::PowerOff,
                        _ => return Err(bad_value("stay|poweroff")),
                    }
                }
                "virtual-apic" => {
                    options.virtual_apic = on_off(value).ok_or_else(|| bad_value("on|off"))?;
                }
                "tsc-scaling" => {
                    options.tsc_scaling = on_off(value).ok_or_else(|| bad_value("on|off"))?;
                }
                _ => {
                    return Err(OptionsError::Unknown {
                        word: word.to_string(),
                    });
                }
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_command_line_gives_the_defaults() {
        let options = Options::parse("  \t ").unwrap();
        assert_eq!(options.log_level, LevelFilter::Info);
        assert_eq!(options.on_end, OnEnd::Stay);
    }

    #[test]
    fn options_are_taken_in_any_order_and_the_last_one_counts() {
        let options = Options::parse("on-end=poweroff loglevel=warn loglevel=debug").unwrap();
        assert_eq!(options.log_level, LevelFilter::Debug);
        assert_eq!(options.on_end, OnEnd::PowerOff);
    }

    #[test]
    fn an_unknown_option_is_named_and_the_known_ones_are_listed() {
        let message = Options::parse("loglevel=info verbose")
            .unwrap_err()
            .to_string();
        assert!(message.contains("`verbose`"), "{message}");
        assert!(message.contains("loglevel=") && message.contains("on-end="));
    }

    #[test]
    fn a_bad_or_missing_value_is_refused_with_the_good_ones() {
        for line in ["on-end=never", "on-end=", "on-end"] {
            let message = Options::parse(line).unwrap_err().to_string();
            assert!(message.contains(line) && message.contains("stay|poweroff"));
        }
    }

    #[test]
    fn option_names_are_not_matched_by_prefix() {
        assert!(matches!(
            Options::parse("loglevels=info"),
            Err(OptionsError::Unknown { .. })
        ));
    }
}
