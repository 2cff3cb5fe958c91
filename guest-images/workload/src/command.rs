//! The commands that the workload takes on its console, and the lines they come in.

use crate::parameters::MAX_INTERVAL_MS;
use crate::start::Start;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `dmesg [new]`: print the kernel's log; `new` just what came since it was last asked for so.
    Dmesg {
        /// Whether it is `new`.
        new: bool,
    },
    /// `clocks`: print what time it is and what the kernel tells it by.
    Clocks,
    /// `counts`: report now.
    Counts,
    /// `interval MS`: report so often from now on.
    Interval(u64),
    /// `fork`: start one more process, as those at the beginning.
    Fork,
    /// `start BEHAVIOR [n=N] [unit=N] [sched=CLASS] [nice=N] [cpu=N]`: start a process.
    Start(Start),
    /// `exit I`: end process I after its present unit.
    Exit(usize),
    /// `kill I`: end process I at once.
    Kill(usize),
    /// `forget`: end all processes at once, and begin anew with process 0.
    Forget,
    /// `shell`: run a shell until it ends.
    Shell,
    /// `reboot`: reset the machine.
    Reboot,
    /// `poweroff`: switch the machine off.
    PowerOff,
}

/// The commands that [`Command::parse`] understands, for the operator.
pub const SYNOPSIS: &str = "dmesg [new], clocks, counts, interval MS, fork, \
    start BEHAVIOR [n=N] [unit=N] [sched=CLASS] [nice=N] [cpu=N], exit I, kill I, forget, shell, \
    reboot, poweroff";

impl Command {
    /// Returns the command in `line`, or `None` where it is none of [`SYNOPSIS`].
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let command = match words.next()? {
            "dmesg" => Self::Dmesg {
                new: match words.next() {
                    None => false,
                    Some("new") => true,
                    Some(_) => return None,
                },
            },
            "clocks" => Self::Clocks,
            "counts" => Self::Counts,
            "interval" => {
                let ms = words.next()?.parse().ok()?;
                Self::Interval(Some(ms).filter(|ms| *ms <= MAX_INTERVAL_MS)?)
            }
            "fork" => Self::Fork,
            "start" => Self::Start(Start::parse(&mut words)?),
            "exit" => Self::Exit(words.next()?.parse().ok()?),
            "kill" => Self::Kill(words.next()?.parse().ok()?),
            "forget" => Self::Forget,
            "shell" => Self::Shell,
            "reboot" => Self::Reboot,
            "poweroff" => Self::PowerOff,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

/// Longest line that is taken, in bytes without its end.
const MAX_LINE: usize = 128;

/// A buffer that puts lines together from bytes that come in pieces.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: [u8; MAX_LINE],
    /// The length of the line so far; over `MAX_LINE` where the rest of it is dropped.
    length: usize,
}

impl LineBuffer {
    /// Returns an empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; MAX_LINE],
            length: 0,
        }
    }

    /// Takes one byte. Gives the line that it ends, if it ends one that is not blank: `Err` where it
    /// was too long or is not UTF-8.
    pub fn push(&mut self, byte: u8) -> Option<Result<&str, BadLine>> {
        if byte != b'\n' && byte != b'\r' {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
            }
            self.length = self.length.saturating_add(1);
            return None;
        }
        let length = core::mem::take(&mut self.length);
        let Some(line) = self.bytes.get(..length) else {
            return Some(Err(BadLine));
        };
        match core::str::from_utf8(line).map(str::trim) {
            Ok("") => None,
            Ok(line) => Some(Ok(line)),
            Err(_) => Some(Err(BadLine)),
        }
    }
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// A line that is too long or not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLine;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<Result<String, BadLine>> {
        let mut buffer = LineBuffer::new();
        input
            .iter()
            .filter_map(|byte| buffer.push(*byte).map(|line| line.map(str::to_owned)))
            .collect()
    }

    #[test]
    fn each_command_is_understood() {
        assert_eq!(Command::parse("dmesg"), Some(Command::Dmesg { new: false }));
        assert_eq!(Command::parse(" exit  2 "), Some(Command::Exit(2)));
        assert_eq!(Command::parse("interval 0"), Some(Command::Interval(0)));
        for usage in SYNOPSIS.split(", ") {
            // As it stands, with and without what may be left out.
            let line = usage
                .replace("BEHAVIOR", "threads")
                .replace("CLASS", "fifo")
                .replace("MS", "5")
                .replace("=N", "=5")
                .replace('I', "0");
            let whole = line.replace(['[', ']'], "");
            let bare = line.split('[').next().unwrap();
            for line in [whole.as_str(), bare] {
                assert!(Command::parse(line).is_some(), "{line}");
            }
        }
    }

    #[test]
    fn half_a_command_is_none() {
        for line in [
            "",
            "exit",
            "exit x",
            "exit -1",
            "dmesg 1",
            "dmesg new new",
            "exit 1 2",
            "DMESG",
            "start",
            "start nothing",
            "kill",
            "interval",
            "interval 3600001",
        ] {
            assert_eq!(Command::parse(line), None, "{line}");
        }
    }

    #[test]
    fn lines_end_with_either_end_and_blanks_are_skipped() {
        let expected = ["dmesg", "exit 1"].map(|line| Ok(line.to_owned()));
        assert_eq!(lines(b"dmesg\r\n\n  \nexit 1\nrest"), expected);
    }

    #[test]
    fn a_line_too_long_is_refused_and_the_next_one_taken() {
        let mut input = vec![b'x'; MAX_LINE + 1];
        input.extend_from_slice(b"\nfork\n");
        assert_eq!(lines(&input), [Err(BadLine), Ok("fork".to_owned())]);
        assert_eq!(lines(&[&[b'y'; MAX_LINE][..], b"\n"].concat()).len(), 1);
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        assert_eq!(lines(b"\xff\n"), [Err(BadLine)]);
    }
}
