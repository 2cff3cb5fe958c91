//! tarpit's own command line.
#![forbid(unsafe_code)]

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use log::LevelFilter;

use crate::machine::console_line::ConsoleLine;
use crate::machine::fatal::OnFatal;
use crate::machine::pci::Function;
use crate::numbers::decimal;

/// The action of tarpit when the last VM has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnEnd {
    /// A stay with the console, so that the operator can look around or start VMs again.
    #[default]
    Stay,
    /// A power-off of the machine.
    PowerOff,
}

/// The options, each with its default where the command line is silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// `loglevel=error|warn|info|debug`: the least important messages shown.
    pub log_level: LevelFilter,
    /// `console=com1|com2|com3|com4|0xPORT[,BAUD]`: the serial line of the console.
    pub console: Option<ConsoleLine>,
    /// `quiet`: whether log messages are kept for the command `log`, and not shown.
    pub quiet: bool,
    /// `on-end=stay|poweroff`: the action when the last VM has ended.
    pub on_end: OnEnd,
    /// `on-fatal=stay|reboot[:SECONDS]`: the action after a fatal error.
    pub on_fatal: OnFatal,
    /// `virtual-apic=on|off`: whether to let the processor virtualize the guests' local APICs, if
    /// it can.
    pub virtual_apic: bool,
    /// `tsc-scaling=on|off`: whether to let the processor scale the guests' TSCs, if it can.
    pub tsc_scaling: bool,
    /// `smt=on|off`: whether VCPUs of different VMs may run on the threads of one core at the same
    /// time. If not, one thread of each core is used.
    pub smt: bool,
    /// `pci-leave=BUS:DEVICE.FUNCTION[,...]`: PCI functions that may go on writing to memory and
    /// interrupting.
    pub pci_leave: Vec<Function>,
    /// `detector=on|off`: whether detectors may talk to tarpit by COM2.
    pub detector: bool,
    /// `exit-cost=TICKS`: the additional cost of each round trip into a guest and back, in ticks of
    /// the host's TSC. A model for measuring what an emulator hides, by default 0: see
    /// [`vmx::entry::GuestRegisters::new`].
    pub exit_cost: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_level: LevelFilter::Info,
            console: None,
            quiet: false,
            on_end: OnEnd::Stay,
            on_fatal: OnFatal::Stay,
            virtual_apic: true,
            tsc_scaling: true,
            smt: false,
            pci_leave: Vec::new(),
            detector: false,
            exit_cost: 0,
        }
    }
}

/// Every option with its values, as shown to the operator.
const KNOWN: &str = "loglevel=error|warn|info|debug, console=com1|com2|com3|com4|0xPORT[,BAUD], \
     quiet, on-end=stay|poweroff, \
     on-fatal=stay|reboot[:SECONDS], virtual-apic=on|off, tsc-scaling=on|off, detector=on|off, exit-cost=TICKS, smt=on|off, pci-leave=BUS:DEVICE.FUNCTION[,...]";

/// The values that stand for a serial line, as shown to the operator.
const CONSOLES: &str = "com1|com2|com3|com4|0xPORT[,BAUD]";

/// The form of a list of PCI functions, as shown to the operator.
const PCI_FUNCTIONS: &str = "a list like 00:1f.2,03:00.0";

/// The most ticks that an exit may cost: a hundredth of a second where the TSC is slow.
const MOST_EXIT_COST: u64 = 10_000_000;
/// The range of the cost of an exit, as shown to the operator.
const EXIT_COSTS: &str = "0 to 10000000";

/// The reason why a command line was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OptionsError {
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

/// The seconds before a reset where none are said: time to read a screen.
const REBOOT_AFTER: u32 = 10;

fn on_fatal(value: &str) -> Option<OnFatal> {
    let (action, seconds) = match value.split_once(':') {
        Some((action, seconds)) => (action, Some(seconds)),
        None => (value, None),
    };
    match (action, seconds) {
        ("stay", None) => Some(OnFatal::Stay),
        ("reboot", None) => Some(OnFatal::Reboot {
            after: REBOOT_AFTER,
        }),
        ("reboot", Some(seconds)) => {
            let after = decimal(seconds)?;
            Some(OnFatal::Reboot { after })
        }
        _ => None,
    }
}

impl Options {
    /// Parses a command line of words separated by white space. The last of several
    /// settings of one option counts. A first word without `=` that is no option is taken for the
    /// name of tarpit's file.
    ///
    /// # Errors
    /// The first word that is not a known option with a known value.
    pub(crate) fn parse(command_line: &str) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        for (index, word) in command_line.split_ascii_whitespace().enumerate() {
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
                "console" => {
                    let line = value.parse().map_err(|_| bad_value(CONSOLES))?;
                    options.console = Some(line);
                }
                "quiet" if word == name => options.quiet = true,
                "on-end" => {
                    options.on_end = match value {
                        "stay" => OnEnd::Stay,
                        "poweroff" => OnEnd::PowerOff,
                        _ => return Err(bad_value("stay|poweroff")),
                    }
                }
                "on-fatal" => {
                    let action = on_fatal(value);
                    options.on_fatal = action.ok_or_else(|| bad_value("stay|reboot[:SECONDS]"))?;
                }
                "virtual-apic" => {
                    options.virtual_apic = on_off(value).ok_or_else(|| bad_value("on|off"))?;
                }
                "tsc-scaling" => {
                    options.tsc_scaling = on_off(value).ok_or_else(|| bad_value("on|off"))?;
                }
                "smt" => {
                    options.smt = on_off(value).ok_or_else(|| bad_value("on|off"))?;
                }
                "detector" => {
                    options.detector = on_off(value).ok_or_else(|| bad_value("on|off"))?;
                }
                "pci-leave" => {
                    let functions = value.split(',').map(str::parse);
                    let functions = functions.collect::<Result<_, _>>();
                    options.pci_leave = functions.map_err(|_| bad_value(PCI_FUNCTIONS))?;
                }
                "exit-cost" => {
                    options.exit_cost = decimal(value)
                        .filter(|&ticks| ticks <= MOST_EXIT_COST)
                        .ok_or_else(|| bad_value(EXIT_COSTS))?;
                }
                // Some boot loaders put the name of tarpit's file first.
                _ if index == 0 && !word.contains('=') => {}
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
    fn a_file_name_in_front_is_no_option() {
        let options = Options::parse("/boot/tarpit loglevel=debug").unwrap();
        assert_eq!(options.log_level, LevelFilter::Debug);
        assert_eq!(Options::parse("tarpit").unwrap(), Options::default());
        assert!(Options::parse("loglevel=debug /boot/tarpit").is_err());
        assert!(Options::parse("color=blue").is_err());
        assert!(Options::parse("on-end").is_err());
    }

    #[test]
    fn after_a_fatal_error_the_machine_stays_or_is_reset_after_a_time() {
        let parsed = |line| Options::parse(line).map(|options| options.on_fatal);
        assert_eq!(parsed(""), Ok(OnFatal::Stay));
        assert_eq!(parsed("on-fatal=stay"), Ok(OnFatal::Stay));
        let reboot = |after| Ok(OnFatal::Reboot { after });
        assert_eq!(parsed("on-fatal=reboot"), reboot(REBOOT_AFTER));
        assert_eq!(parsed("on-fatal=reboot:0"), reboot(0));
        assert_eq!(parsed("on-fatal=reboot:90"), reboot(90));
        for line in [
            "on-fatal=reboot:",
            "on-fatal=reboot:+1",
            "on-fatal=reboot:x",
            "on-fatal=reboot:5000000000",
            "on-fatal=stay:5",
            "on-fatal",
        ] {
            let message = parsed(line).unwrap_err().to_string();
            assert!(message.contains("stay|reboot[:SECONDS]"), "{message}");
        }
    }

    #[test]
    fn the_console_may_be_on_another_line_and_quiet() {
        let options = Options::parse("quiet console=com2,9600").unwrap();
        assert!(options.quiet);
        assert_eq!(options.console, ConsoleLine::new(0x2f8, 9600));
        assert_eq!(Options::default().console, None);
        for line in ["console=", "console=com9", "console=tty0"] {
            let message = Options::parse(line).unwrap_err().to_string();
            assert!(
                message.contains(line) && message.contains("com1|com2"),
                "{message}"
            );
        }
        assert!(Options::parse("loglevel=info quiet=yes").is_err());
    }

    #[test]
    fn pci_functions_that_are_left_alone_are_listed() {
        let options = Options::parse("pci-leave=00:1f.2,3:0.1 smt=on").unwrap();
        let functions: Vec<_> = options.pci_leave.iter().map(Function::to_string).collect();
        assert_eq!(functions, ["00:1f.2", "03:00.1"]);
        assert!(options.smt);
        for line in ["pci-leave=", "pci-leave=1", "pci-leave=0:0.0,"] {
            let message = Options::parse(line).unwrap_err().to_string();
            assert!(
                message.contains(line) && message.contains("00:1f.2"),
                "{message}"
            );
        }
    }

    #[test]
    fn the_cost_of_an_exit_is_a_number_of_ticks_within_bounds() {
        assert_eq!(Options::default().exit_cost, 0);
        assert_eq!(Options::parse("exit-cost=1500").unwrap().exit_cost, 1500);
        for line in [
            "exit-cost=",
            "exit-cost=-1",
            "exit-cost=+1",
            "exit-cost=10000001",
        ] {
            let message = Options::parse(line).unwrap_err().to_string();
            assert!(message.contains("0 to 10000000"), "{message}");
        }
    }

    #[test]
    fn detectors_have_no_door_unless_it_is_opened() {
        assert!(!Options::default().detector);
        assert!(Options::parse("detector=on").unwrap().detector);
        assert!(!Options::parse("detector=on detector=off").unwrap().detector);
        assert!(Options::parse("detector").is_err());
    }

    #[test]
    fn option_names_are_not_matched_by_prefix() {
        assert!(matches!(
            Options::parse("loglevels=info"),
            Err(OptionsError::Unknown { .. })
        ));
    }
}

#[cfg(test)]
mod fuzz {
    use alloc::format;

    use super::*;
    use crate::test_text::{Piece, line};

    const WORDS: [&str; 34] = [
        "loglevel=",
        "error",
        "warn",
        "info",
        "debug",
        "console=",
        "com1",
        "com4",
        "0x3f8",
        ",",
        "115200",
        "9600",
        "quiet",
        "on-end=",
        "stay",
        "poweroff",
        "on-fatal=",
        "reboot",
        ":",
        "virtual-apic=",
        "tsc-scaling=",
        "on",
        "off",
        "smt=",
        "pci-leave=",
        "00:1f.2",
        ".",
        "detector=",
        "exit-cost=",
        "10000000",
        "+",
        "-",
        "\t",
        "=",
    ];

    #[test]
    fn options_of_the_command_line() {
        fuzzing::check!()
            .with_type::<alloc::vec::Vec<Piece>>()
            .for_each(|pieces| {
                let line = line(pieces, &WORDS);
                match Options::parse(&line) {
                    Ok(options) => {
                        assert!(options.exit_cost <= MOST_EXIT_COST);
                        // What is shown can be given again.
                        for function in &options.pci_leave {
                            assert_eq!(function.to_string().parse(), Ok(*function));
                        }
                        if let Some(console) = options.console {
                            assert_eq!(console.to_string().parse(), Ok(console));
                        }
                        let more = Options::parse(&format!("{line} loglevel=debug"));
                        let expected = Options {
                            log_level: LevelFilter::Debug,
                            ..options
                        };
                        assert_eq!(more, Ok(expected));
                        // Numbers are digits and nothing else.
                        let words = line.split_ascii_whitespace();
                        let signed = words.filter(|word| word.contains("=+"));
                        assert_eq!(signed.count(), 0, "{line}");
                    }
                    Err(error) => {
                        let (OptionsError::Unknown { word } | OptionsError::BadValue { word, .. }) =
                            &error;
                        assert!(line.split_ascii_whitespace().any(|it| it == word));
                        assert!(error.to_string().contains(word.as_str()));
                    }
                }
            });
    }
}
