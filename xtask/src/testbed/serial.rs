//! A conversation with a machine over its serial line, as a person would have it at a terminal.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::testbed::machine::{End, Kind, Machine, Spec};
use crate::testbed::paths;
use crate::testbed::screen::Screen;

/// The prompt that tarpit prints before it waits for a command.
pub const PROMPT: &str = "tarpit> ";

/// The beginnings of the lines in which tarpit says why it cannot run, before it halts; or that it
/// has found a bug of its own.
const FATAL: [&str; 2] = ["tarpit: fatal: ", "tarpit: panic"];

/// The longest time to wait for an answer unless told otherwise: an emulated PC on a busy machine
/// is slow.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The fatal error of a tarpit that found that it cannot run and halted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal(
    /// The whole line.
    pub String,
);

impl std::fmt::Display for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fatal {}

/// A command and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// All that was said since something was last waited for: by guests, before the command and
    /// between the lines of the answer, and by tarpit.
    pub said: String,
    /// The objects of the answer.
    pub answer: Vec<serde_json::Value>,
}

/// A machine and its console. All that it says is kept in `target/logs/NAME.console`.
#[derive(Debug)]
pub struct Session {
    machine: Machine,
    transcript: File,
    /// The output that was not asked for yet, as a terminal shows it.
    heard: Screen,
    hung_up: bool,
    patience: Duration,
}

impl Session {
    /// Starts a machine and listens to it.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub fn start(kind: Kind, spec: &Spec) -> Result<Self> {
        Self::with(Machine::start(kind, spec)?)
    }

    /// Listens to a machine that has been started.
    ///
    /// # Errors
    /// When the transcript cannot be written.
    pub fn with(machine: Machine) -> Result<Self> {
        let path = &machine.files().console;
        let transcript =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            machine,
            transcript,
            heard: Screen::default(),
            hung_up: false,
            patience: PATIENCE,
        })
    }

    /// Gives this session another limit for every wait.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the machine.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Waits for this text and gives all that was said up to its end.
    ///
    /// # Errors
    /// When it is not said in time, the machine ends before, or tarpit dies ([`Fatal`]). The
    /// error quotes the last lines.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        self.wait_for_within(text, self.patience)
    }

    /// Waits as [`Self::wait_for`] does, with a limit of its own.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_for_within(&mut self, text: &str, limit: Duration) -> Result<String> {
        let end = self.wait_until(&format!("`{text}`"), limit, |heard| {
            heard.find(text).map(|at| (at + text.len(), ()))
        })?;
        Ok(end.0)
    }

    /// Waits for a line that matches a regular expression, and gives the expression's groups
    /// (group 0, the whole match, first). In the expression, `^` and `$` are ends of lines.
    ///
    /// # Errors
    /// As [`Self::wait_for`], or when the expression is not valid.
    pub fn wait_for_match(&mut self, pattern: &str) -> Result<Vec<String>> {
        let regex = Regex::new(&format!("(?m){pattern}"))?;
        let found = self.wait_until(&format!("/{pattern}/"), self.patience, |heard| {
            // The last line may not be whole.
            let whole = &heard[..heard.rfind('\n').map_or(0, |at| at + 1)];
            let captures = regex.captures(whole)?;
            let groups = captures
                .iter()
                .map(|group| group.map_or(String::new(), |group| group.as_str().to_owned()))
                .collect();
            Some((captures.get(0)?.end(), groups))
        })?;
        Ok(found.1)
    }

    /// Waits for tarpit to say why it cannot run, and gives the whole line.
    ///
    /// # Errors
    /// When it does not in time, or the machine ends before.
    pub fn wait_for_fatal(&mut self) -> Result<String> {
        let found = self.wait_until("a fatal error", self.patience, |heard| {
            let line = fatal_line(heard)?;
            Some((heard.find(line)? + line.len(), line.to_owned()))
        })?;
        Ok(found.1)
    }

    /// Types a line and presses Enter.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        self.send(line.as_bytes())?;
        self.send(b"\r")
    }

    /// Types these bytes.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.machine
            .serial()
            .write_all(bytes)
            .context("the machine has ended")
    }

    /// Goes from tarpit's console to that of a VM. Returns what is said until it is there.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn attach(&mut self, vm: &str) -> Result<String> {
        self.send_line(&format!("attach {vm}"))?;
        self.wait_for("Ctrl-] comes back\n")
    }

    /// Goes back from a VM's console to tarpit's. Returns what is said until it is there.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn detach(&mut self) -> Result<String> {
        /// The key that does so (Ctrl-]).
        const KEY: u8 = 0x1d;
        self.send(&[KEY])?;
        self.wait_for(PROMPT)
    }

    /// Gives a command to tarpit's console and returns the answer: what it says until it is
    /// ready for the next one.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn command(&mut self, line: &str) -> Result<String> {
        self.send_line(line)?;
        // The echo, ended by Enter: the answer begins after it.
        self.wait_for(&format!("{line}\n"))?;
        let mut answer = self.wait_for(PROMPT)?;
        answer.truncate(answer.len() - PROMPT.len());
        Ok(answer)
    }

    /// Gives a command its `--json` and returns the objects of the answer, one a line.
    ///
    /// # Errors
    /// As [`Self::wait_for`], and when a line that begins like an object is none.
    pub fn query(&mut self, line: &str) -> Result<Vec<serde_json::Value>> {
        Ok(self.exchange(line)?.answer)
    }

    /// Returns what [`Self::query`] does, with all that was said until then, by guests too.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn exchange(&mut self, line: &str) -> Result<Exchange> {
        let line = format!("{line} --json");
        self.send_line(&line)?;
        let mut said = self.wait_for(&format!("{line}\n"))?;
        let answer = self.wait_for(PROMPT)?;
        said.push_str(&answer);
        let answer =
            objects(&answer).with_context(|| format!("the answer to `{line}`:\n{answer}"))?;
        Ok(Exchange { said, answer })
    }

    /// Waits for the machine to end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait_for_end(&mut self) -> Result<End> {
        let until = Instant::now() + self.patience;
        while !self.hung_up && Instant::now() < until {
            self.listen(Duration::from_millis(200))?;
        }
        self.machine.wait(
            until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_secs(5)),
        )
    }

    /// Gives what is said within this time, byte for byte, for a terminal. It cannot be waited for
    /// any more, and neither can what was said before.
    ///
    /// # Errors
    /// When the connection or the transcript fails.
    pub fn hear(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let said = self.listen(limit)?;
        self.heard.clear();
        Ok(said)
    }

    fn listen(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let mut buffer = vec![0; 4096];
        let mut serial = self.machine.serial();
        serial.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        let length = match serial.read(&mut buffer) {
            Ok(0) => {
                self.hung_up = true;
                0
            }
            Ok(length) => length,
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset => {
                    self.hung_up = true;
                    0
                }
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => 0,
                _ => return Err(error.into()),
            },
        };
        buffer.truncate(length);
        self.transcript.write_all(&buffer)?;
        self.heard.show(&buffer);
        Ok(buffer)
    }

    /// Returns whether the machine has closed the line.
    pub fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl Fn(&str) -> Option<(usize, T)>,
    ) -> Result<(String, T)> {
        let until = Instant::now() + limit;
        loop {
            let heard = self.heard.text();
            if let Some((end, found)) = find(&heard) {
                let (said, rest) = heard.split_at(end);
                self.heard.set(rest);
                return Ok((said.to_owned(), found));
            }
            if let Some(line) = fatal_line(&heard) {
                return Err(Fatal(line.to_owned()).into());
            }
            let now = Instant::now();
            if self.hung_up {
                let end = self.machine.wait(Duration::from_secs(5))?;
                bail!("waiting for {what}: {end}\n{}", self.last_lines(&heard));
            }
            if now >= until {
                bail!(
                    "waiting for {what}: not within {} s\n{}",
                    limit.as_secs(),
                    self.last_lines(&heard)
                );
            }
            self.listen((until - now).min(Duration::from_millis(500)))?;
        }
    }

    fn last_lines(&self, heard: &str) -> String {
        const LINES: usize = 20;
        let lines: Vec<&str> = heard.lines().collect();
        let from = lines.len().saturating_sub(LINES);
        format!(
            "The last lines (all of them: {}):\n{}",
            paths::shown(&self.machine.files().console),
            lines.get(from..).unwrap_or_default().join("\n")
        )
    }
}

/// Returns the whole line in which tarpit says why it halted, if it did.
pub fn fatal_line(said: &str) -> Option<&str> {
    let (whole, _) = said.rsplit_once('\n')?;
    let begins = |line: &str| FATAL.iter().filter_map(|words| line.find(words)).min();
    // tarpit may be in the middle of a line when it happens, but a guest can only write lines
    // that tarpit puts its name in front of.
    let own = whole.lines().filter(|line| !line.starts_with('['));
    own.filter_map(|line| Some(line.get(begins(line)?..)?.trim_end()))
        .next()
}

/// Returns the JSON objects among these lines: guests' output may lie between them.
fn objects(answer: &str) -> Result<Vec<serde_json::Value>> {
    answer
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_line_counts_once_it_is_whole() {
        assert_eq!(fatal_line("boot\ntarpit: fatal: no VMX"), None);
        assert_eq!(
            fatal_line("boot\ntarpit: fatal: no VMX\r\nhalted"),
            Some("tarpit: fatal: no VMX")
        );
        assert_eq!(
            fatal_line("tarpit: panic at a.rs:1: no\n"),
            Some("tarpit: panic at a.rs:1: no")
        );
        assert_eq!(fatal_line("all is well\n"), None);
        assert_eq!(
            fatal_line("tarpit> tarpit: fatal: no more memory\n"),
            Some("tarpit: fatal: no more memory")
        );
    }

    #[test]
    fn a_guest_cannot_stop_the_machine_with_words() {
        assert_eq!(fatal_line("[evil   1.5] tarpit: fatal: ha\n"), None);
    }

    #[test]
    fn an_answer_in_json_is_told_from_what_guests_say() -> Result<()> {
        let answer = "[1.5] debian: {not ours}\n{\"vm\": \"debian\", \"vcpus\": 1}\n";
        let objects = objects(answer)?;
        assert_eq!(objects.len(), 1);
        assert_eq!(objects[0]["vm"], "debian");
        assert!(super::objects("{\"vm\": ").is_err());
        Ok(())
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::test_text::text;

    #[test]
    fn lines_of_the_console() {
        fuzzing::check!().for_each(|bytes: &[u8]| {
            let words = [
                "tarpit: fatal: ",
                "\n",
                "[web",
                "{",
                "}",
                "\"vm\":",
                "\"a\"",
                ",",
                "\r",
            ];
            let said = text(bytes, &words);
            if let Some(line) = fatal_line(&said) {
                // Spaces at its end are not kept, even where no reason follows.
                assert!(
                    FATAL.iter().any(|words| line.starts_with(words.trim_end())),
                    "{line}"
                );
                assert!(said.contains(line) && !line.contains('\n'));
            }
            if let Ok(objects) = objects(&said) {
                let lines = said.lines().filter(|line| line.starts_with('{'));
                assert_eq!(objects.len(), lines.count());
                assert!(objects.iter().all(serde_json::Value::is_object));
            }
        });
    }
}
