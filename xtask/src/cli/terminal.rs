//! The user's terminal as the machine's console.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::testbed::screen::Screen;
use crate::testbed::serial::Session;

/// The escape key, as in QEMU.
const CTRL_A: u8 = 1;

/// Standard input, raw if it is a terminal, until dropped.
struct Keyboard {
    cooked: Option<Termios>,
}

impl Keyboard {
    fn open() -> Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { cooked: None });
        }
        let cooked = tcgetattr(&stdin)?;
        let mut raw = cooked.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self {
            cooked: Some(cooked),
        })
    }

    /// Keys typed within this time; none where nobody types.
    fn read(&self, limit: Duration) -> Result<Vec<u8>> {
        if self.cooked.is_none() {
            return Ok(Vec::new());
        }
        let stdin = std::io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        let limit = Timespec::try_from(limit)?;
        if poll(&mut ready, Some(&limit))? == 0 {
            return Ok(Vec::new());
        }
        let mut keys = [0; 256];
        let count = rustix::io::read(&stdin, &mut keys)?;
        Ok(keys.get(..count).unwrap_or_default().to_vec())
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Some(cooked) = &self.cooked {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, cooked);
        }
    }
}

/// The state of the escape key, which says what becomes of the keys that follow it.
#[derive(Debug, Default)]
struct Escape {
    pending: bool,
}

impl Escape {
    /// Returns the keys for the machine, or nothing when the user wants to quit.
    fn filter(&mut self, keys: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(keys.len());
        for &key in keys {
            match (std::mem::take(&mut self.pending), key) {
                (false, CTRL_A) => self.pending = true,
                (true, b'x' | b'X') => return None,
                (true, b'a') => out.push(CTRL_A),
                (_, key) => out.push(key),
            }
        }
        Some(out)
    }
}

/// The reason why the console was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The end of the machine.
    Ended,
    /// Ctrl-A x, typed by the user.
    Quit,
    /// The output that was looked for.
    Seen,
}

/// Connects the user's terminal with the machine until it ends, the user quits, or `seen` finds
/// what it looks for in a line (which it gets with its line feed).
///
/// # Errors
/// When the terminal or the machine's line fails.
pub(super) fn relay(session: &mut Session, mut seen: impl FnMut(&str) -> bool) -> Result<Left> {
    let keyboard = Keyboard::open()?;
    let mut escape = Escape::default();
    let mut screen = Screen::default();
    let mut stdout = std::io::stdout();
    let is_terminal = stdout.is_terminal();
    loop {
        let Some(keys) = escape.filter(&keyboard.read(Duration::from_millis(1))?) else {
            return Ok(Left::Quit);
        };
        if !keys.is_empty() {
            // The machine may just have ended, which we are about to hear.
            let _ = session.send(&keys);
        }
        let said = session.hear(Duration::from_millis(20))?;
        screen.show(&said);
        let lines = screen.take_lines();
        // A file or a pipe gets whole lines, without prompts that come and go.
        stdout.write_all(if is_terminal { &said } else { lines.as_bytes() })?;
        stdout.flush()?;
        if lines.split_inclusive('\n').any(&mut seen) {
            return Ok(Left::Seen);
        }
        if session.has_hung_up() {
            if !is_terminal {
                stdout.write_all(screen.text().as_bytes())?;
            }
            return Ok(Left::Ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_quits_even_in_two_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"vms\r").as_deref(), Some(&b"vms\r"[..]));
        assert_eq!(escape.filter(b"\x01").as_deref(), Some(&b""[..]));
        assert_eq!(escape.filter(b"x"), None);
    }

    #[test]
    fn ctrl_a_a_types_ctrl_a() {
        assert_eq!(
            Escape::default().filter(b"\x01ab").as_deref(),
            Some(&b"\x01b"[..])
        );
    }

    #[test]
    fn ctrl_c_goes_to_the_machine() {
        assert_eq!(
            Escape::default().filter(b"\x03x").as_deref(),
            Some(&b"\x03x"[..])
        );
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;

    #[test]
    fn keys_of_the_user() {
        fuzzing::check!()
            .with_type::<Vec<Vec<u8>>>()
            .for_each(|reads| {
                // The escape often.
                let key = |&key: &u8| match key {
                    0xc0.. => CTRL_A,
                    0xb0..0xc0 => b'a',
                    _ => key,
                };
                let reads: Vec<Vec<u8>> = reads
                    .iter()
                    .map(|keys| keys.iter().map(key).collect())
                    .collect();
                let mut escape = Escape::default();
                let pieces: Option<Vec<_>> = reads.iter().map(|keys| escape.filter(keys)).collect();
                let whole = Escape::default().filter(&reads.concat());
                assert_eq!(pieces.map(|it| it.concat()), whole, "in however many reads");
                let quits = reads
                    .concat()
                    .windows(2)
                    .any(|keys| matches!(keys, [CTRL_A, b'x' | b'X']));
                assert!(whole.is_some() || quits);
            });
    }
}
