//! What the kernel command line asks of the workload.

/// The most processes a workload can have over its life: each has a slot in one shared page.
pub const MAX_PROCESSES: usize = 64;

/// The longest time between two reports, in milliseconds: keeps nanoseconds since boot within 64
/// bits.
pub const MAX_INTERVAL_MS: u64 = 3_600_000;

/// The mode of the workload: which processes it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CPU-bound processes.
    Cpu,
    /// No processes: the guest idles.
    Idle,
}

/// The `workload.NAME=VALUE` words of the command line.
///
/// The text of `workload.pattern` is deliberately not in here: see [`pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `workload.mode=cpu|idle`.
    pub mode: Mode,
    /// `workload.procs=N`: how many processes start, at most [`MAX_PROCESSES`].
    pub processes: usize,
    /// `workload.interval_ms=N`: guest milliseconds between two reports; 0 for none.
    pub interval_ms: u64,
    /// `workload.unit=N`: rounds of the computation in one unit of work, about four instructions
    /// each.
    pub unit: u64,
    /// `workload.priority=N`: the first process, which reports and takes commands, is in the
    /// real-time class, at this priority from 1 to 99; and gets on beside anybody with a lower one.
    pub priority: Option<u8>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            mode: Mode::Cpu,
            processes: 3,
            interval_ms: 200,
            unit: 10_000,
            priority: None,
        }
    }
}

/// A `workload.` word that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown<'a>(pub &'a str);

impl Parameters {
    /// Returns the parameters in `command_line`; what is not given has its default. Words of
    /// others are
    /// skipped, each `workload.` word that is not understood is handed to `complain`.
    pub fn parse<'a>(command_line: &'a str, mut complain: impl FnMut(Unknown<'a>)) -> Self {
        let mut parameters = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some(setting) = word.strip_prefix(PREFIX) else {
                continue;
            };
            if parameters.set(setting).is_none() {
                complain(Unknown(word));
            }
        }
        parameters
    }

    fn set(&mut self, setting: &str) -> Option<()> {
        let (name, value) = setting.split_once('=')?;
        match name {
            "mode" => {
                self.mode = match value {
                    "cpu" => Mode::Cpu,
                    "idle" => Mode::Idle,
                    _ => return None,
                }
            }
            "procs" => {
                self.processes = value.parse().ok().filter(|count| *count <= MAX_PROCESSES)?;
            }
            "interval_ms" => {
                self.interval_ms = value.parse().ok().filter(|ms| *ms <= MAX_INTERVAL_MS)?;
            }
            "priority" => {
                let priority = value.parse().ok().filter(|it| (1..=99).contains(it))?;
                self.priority = Some(priority);
            }
            "unit" => self.unit = value.parse().ok().filter(|rounds| *rounds > 0)?,
            "pattern" => {}
            _ => return None,
        }
        Some(())
    }
}

const PREFIX: &str = "workload.";

/// Returns the text of `workload.pattern=TEXT`, which process 0 alone is to hold in its memory.
///
/// Apart from [`Parameters`] because every process inherits those: the processes before process 0
/// must not keep a copy of the text.
#[must_use]
pub fn pattern(command_line: &str) -> Option<&str> {
    command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(PREFIX)?.strip_prefix("pattern="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(command_line: &str) -> (Parameters, Vec<&str>) {
        let mut unknown = Vec::new();
        let parameters = Parameters::parse(command_line, |word| unknown.push(word.0));
        (parameters, unknown)
    }

    #[test]
    fn words_of_others_are_skipped() {
        let (parameters, unknown) = parse("console=ttyS0 quiet workloads=3 procs=9");
        assert_eq!(parameters, Parameters::default());
        assert!(unknown.is_empty());
    }

    #[test]
    fn every_parameter_is_read() {
        let (parameters, unknown) = parse(
            "quiet workload.procs=5 workload.interval_ms=50 workload.unit=777 workload.mode=idle \
             workload.priority=99\n",
        );
        assert_eq!(
            parameters,
            Parameters {
                mode: Mode::Idle,
                processes: 5,
                interval_ms: 50,
                unit: 777,
                priority: Some(99),
            }
        );
        assert!(unknown.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_and_leaves_the_default() {
        let line = "workload.procs=65 workload.unit=0 workload.interval_ms=x workload.mode=rt workload.y=1 workload.procs workload.priority=0";
        let (parameters, unknown) = parse(line);
        assert_eq!(parameters, Parameters::default());
        assert_eq!(unknown, line.split(' ').collect::<Vec<_>>());
    }

    #[test]
    fn the_pattern_is_found_and_no_complaint() {
        let line = "quiet workload.pattern=EVIL-42 workload.procs=1";
        assert_eq!(pattern(line), Some("EVIL-42"));
        assert_eq!(pattern("pattern=x"), None);
        assert!(parse(line).1.is_empty());
    }
}
