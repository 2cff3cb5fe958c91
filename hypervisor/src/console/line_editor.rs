//! The operator's input line, on a terminal behind a serial line.
//!
//! Works in fixed buffers. The cursor is always at the end of the line; the arrows up and
//! down go through the last lines.

use super::output::Output;

/// The longest line in bytes.
pub(super) const LINE_CAPACITY: usize = 160;
/// The number of lines that are remembered.
const HISTORY: usize = 8;
/// The prompt that a line begins with.
pub(super) const PROMPT: &[u8] = b"tarpit> ";
/// The sequence that goes to the start of the terminal's line, and erases it.
const ERASE_LINE: &[u8] = b"\r\x1b[K";
const BELL: &[u8] = b"\x07";

const CTRL_C: u8 = 0x03;
const CTRL_U: u8 = 0x15;
const CTRL_W: u8 = 0x17;
const ESCAPE: u8 = 0x1b;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;

/// A line of text in a fixed buffer. Holds printable ASCII only.
#[derive(Clone, Copy, Debug)]
struct Line {
    bytes: [u8; LINE_CAPACITY],
    length: usize,
}

impl Line {
    const EMPTY: Self = Self {
        bytes: [0; LINE_CAPACITY],
        length: 0,
    };

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) -> bool {
        match self.bytes.get_mut(self.length) {
            Some(place) => {
                *place = byte;
                self.length += 1;
                true
            }
            None => false,
        }
    }
}

/// The part of an escape sequence that has come from the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Started,
    Bracket,
}

/// The effect of a byte of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edited {
    /// A line that goes on.
    Open,
    /// A tab: the line's last word is to be completed, see [`LineEditor::complete`].
    Complete,
    /// A finished line: see [`LineEditor::line`].
    Entered,
    /// A line dropped by Ctrl-C.
    Dropped,
}

/// The editor of the operator's line.
#[derive(Debug)]
pub(super) struct LineEditor {
    line: Line,
    /// The last lines, the latest at `newest`.
    history: [Line; HISTORY],
    newest: usize,
    /// The number of steps back in the history that the line was taken from; 0 for a new line.
    recalled: usize,
    escape: Escape,
    /// Whether the last byte was a carriage return: a line feed behind it belongs to it.
    after_return: bool,
}

impl Default for LineEditor {
    fn default() -> Self {
        Self::new()
    }
}

impl LineEditor {
    /// Makes an editor with an empty line, and without a history.
    #[must_use]
    pub(super) const fn new() -> Self {
        Self {
            line: Line::EMPTY,
            history: [Line::EMPTY; HISTORY],
            newest: 0,
            recalled: 0,
            escape: Escape::None,
            after_return: false,
        }
    }

    /// Returns the line as it is; after [`Edited::Entered`] the finished one, until
    /// [`LineEditor::clear`].
    #[must_use]
    pub(super) fn line(&self) -> &str {
        self.line.as_str()
    }

    /// Begins a new line, without showing it.
    pub(super) const fn clear(&mut self) {
        self.line.length = 0;
        self.recalled = 0;
    }

    /// Shows the prompt and the line.
    pub(super) fn show(&self, out: &mut (impl Output + ?Sized)) {
        out.write(PROMPT);
        out.write(self.line.as_bytes());
    }

    /// Takes the prompt and the line off the terminal.
    pub(super) fn hide(&self, out: &mut (impl Output + ?Sized)) {
        out.write(ERASE_LINE);
    }

    /// Takes a byte from the terminal. After [`Edited::Entered`] and [`Edited::Dropped`] the
    /// terminal is at the start of an empty line.
    pub(super) fn input(&mut self, byte: u8, out: &mut (impl Output + ?Sized)) -> Edited {
        let after_return = core::mem::take(&mut self.after_return);
        match (self.escape, byte) {
            (Escape::Started, b'[') => {
                self.escape = Escape::Bracket;
                return Edited::Open;
            }
            (Escape::Started, _) => {
                self.escape = Escape::None;
                return Edited::Open;
            }
            (Escape::Bracket, _) => {
                match byte {
                    b'A' => self.recall(self.recalled + 1, out),
                    b'B' => self.recall(self.recalled.saturating_sub(1), out),
                    // Parameters of a longer sequence.
                    b'0'..=b'9' | b';' => return Edited::Open,
                    _ => {}
                }
                self.escape = Escape::None;
                return Edited::Open;
            }
            (Escape::None, _) => {}
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                self.after_return = byte == b'\r';
                out.write(b"\r\n");
                self.remember();
                return Edited::Entered;
            }
            CTRL_C => {
                out.write(b"^C\r\n");
                self.clear();
                return Edited::Dropped;
            }
            CTRL_U => self.shorten(0, out),
            CTRL_W => {
                let text = self.line().trim_end_matches(' ');
                let keep = text.rfind(' ').map_or(0, |space| space + 1);
                self.shorten(keep, out);
            }
            BACKSPACE | DELETE => self.shorten(self.line.length.saturating_sub(1), out),
            b'\t' => return Edited::Complete,
            ESCAPE => self.escape = Escape::Started,
            b' '..=b'~' => {
                if self.line.push(byte) {
                    out.write(&[byte]);
                } else {
                    out.write(BELL);
                }
            }
            _ => out.write(BELL),
        }
        Edited::Open
    }

    /// Takes all but `keep` bytes off the line and the terminal.
    fn shorten(&mut self, keep: usize, out: &mut (impl Output + ?Sized)) {
        while self.line.length > keep {
            self.line.length -= 1;
            out.write(b"\x08 \x08");
        }
    }

    fn remember(&mut self) {
        let latest = self.history[self.newest].as_bytes();
        if self.line.length > 0 && latest != self.line.as_bytes() {
            self.newest = (self.newest + 1) % HISTORY;
            self.history[self.newest] = self.line;
        }
        self.recalled = 0;
    }

    /// Puts the line from `back` lines ago on the terminal; an empty one for 0.
    fn recall(&mut self, back: usize, out: &mut (impl Output + ?Sized)) {
        let line = match back {
            0 => Line::EMPTY,
            1..=HISTORY => self.history[(self.newest + HISTORY + 1 - back) % HISTORY],
            _ => return,
        };
        if back > 0 && line.length == 0 {
            return;
        }
        self.recalled = back;
        self.shorten(0, out);
        self.line = line;
        out.write(self.line.as_bytes());
    }

    /// Completes the line's last word as far as all those of `candidates` agree that begin
    /// with it; if it is as far already, lists them.
    pub(super) fn complete(
        &mut self,
        candidates: &[impl AsRef<str>],
        out: &mut (impl Output + ?Sized),
    ) {
        let line = self.line;
        let text = line.as_str();
        let word = text.rfind(' ').map_or(text, |space| &text[space + 1..]);
        let matching = candidates
            .iter()
            .map(AsRef::as_ref)
            .filter(|candidate| candidate.starts_with(word));
        let common = matching.clone().reduce(common_prefix);
        let more = common.and_then(|common| common.get(word.len()..));
        for byte in more.unwrap_or_default().bytes() {
            if self.line.push(byte) {
                out.write(&[byte]);
            }
        }
        match matching.clone().count() {
            0 => out.write(BELL),
            1 if self.line.push(b' ') => out.write(b" "),
            _ if more.is_none_or(str::is_empty) => {
                out.write(b"\r\n");
                for candidate in matching {
                    out.write(candidate.as_bytes());
                    out.write(b"  ");
                }
                out.write(b"\r\n");
                self.show(out);
            }
            _ => {}
        }
    }
}

/// Returns the longest text that both `a` and `b` begin with.
fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    let length = same.map(|(a, _)| a.len_utf8()).sum();
    a.get(..length).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    const WORDS: [&str; 3] = ["stats", "status", "suppress"];

    /// Types `keys`; returns the lines entered, and what the terminal received.
    fn typed(editor: &mut LineEditor, keys: &str) -> (Vec<String>, String) {
        let mut lines = Vec::new();
        let mut screen = Vec::new();
        for byte in keys.bytes() {
            match editor.input(byte, &mut screen) {
                Edited::Entered => {
                    lines.push(editor.line().into());
                    editor.clear();
                }
                Edited::Complete => editor.complete(&WORDS, &mut screen),
                Edited::Open | Edited::Dropped => {}
            }
        }
        (lines, String::from_utf8(screen).unwrap())
    }

    fn entered(keys: &str) -> Vec<String> {
        typed(&mut LineEditor::new(), keys).0
    }

    #[test]
    fn typing_echoes_and_enter_enters() {
        let (lines, screen) = typed(&mut LineEditor::new(), "ps web\r");
        assert_eq!(lines, ["ps web"]);
        assert_eq!(screen, "ps web\r\n");
    }

    #[test]
    fn every_line_end_ends_a_line_once() {
        assert_eq!(entered("a\rb\nc\r\nd\r"), ["a", "b", "c", "d"]);
        assert_eq!(entered("\n\n"), ["", ""]);
    }

    #[test]
    fn mistakes_are_taken_back() {
        assert_eq!(entered("px\x7fs wbe\x08\x08eb\r"), ["ps web"]);
        assert_eq!(entered("\x7f\x7fvms\r"), ["vms"]);
        assert_eq!(
            entered("release web all \x170x5000\r"),
            ["release web 0x5000"]
        );
        assert_eq!(entered("rubbish\x15vms\r"), ["vms"]);
        let (lines, screen) = typed(&mut LineEditor::new(), "shutdown\x03vms\r");
        assert_eq!(lines, ["vms"]);
        assert_eq!(screen, "shutdown^C\r\nvms\r\n");
    }

    #[test]
    fn the_terminal_shows_what_the_line_is() {
        let (_, screen) = typed(&mut LineEditor::new(), "ab\x7fc");
        assert_eq!(screen, "ab\x08 \x08c");
    }

    #[test]
    fn what_cannot_be_typed_is_refused() {
        assert_eq!(entered("a\x01b\u{e9}c\r"), ["abc"]);
        let long = "x".repeat(LINE_CAPACITY + 9) + "\r";
        assert_eq!(entered(&long), ["x".repeat(LINE_CAPACITY)]);
    }

    #[test]
    fn the_arrows_recall_lines() {
        let mut editor = LineEditor::new();
        typed(&mut editor, "one\rtwo\rtwo\r\rthree\r");
        assert_eq!(typed(&mut editor, "\x1b[A\x1b[A\r").0, ["two"]);
        assert_eq!(
            typed(&mut editor, "\x1b[A\x1b[A\x1b[A\x1b[A\x1b[B\r").0,
            ["two"]
        );
        assert_eq!(typed(&mut editor, "\x1b[A\x1b[Bnew\r").0, ["new"]);
        assert_eq!(entered("\x1b[Anothing\r"), ["nothing"]);
    }

    #[test]
    fn other_escape_sequences_are_swallowed() {
        assert_eq!(entered("a\x1b[1;5Cb\x1b[3~c\x1bOd\r"), ["abcd"]);
    }

    #[test]
    fn the_history_forgets_the_oldest() {
        let mut editor = LineEditor::new();
        for n in 0..20 {
            typed(&mut editor, &std::format!("line {n}\r"));
        }
        let up = "\x1b[A".repeat(30) + "\r";
        assert_eq!(typed(&mut editor, &up).0, ["line 12"]);
    }

    #[test]
    fn tab_completes() {
        assert_eq!(entered("su\t0x1\r"), ["suppress 0x1"]);
        assert_eq!(entered("st\ti\t\r"), ["stati"], "no candidate: nothing");
        let (lines, screen) = typed(&mut LineEditor::new(), "s\tt\t\t\r");
        assert_eq!(lines, ["stat"]);
        assert_eq!(
            screen,
            "s\r\nstats  status  suppress  \r\ntarpit> stat\r\nstats  status  \r\ntarpit> stat\r\n"
        );
    }
}
