//! What a terminal would show of a console: lines that are erased and written anew count once.

/// tarpit takes its prompt away with this before it prints a guest's line, and then writes the
/// prompt again below it.
const ERASE_LINE: &[u8] = b"\r\x1b[K";

/// Text as it stands on the screen. Carriage returns are left out.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    text: Vec<u8>,
    /// The number of bytes of [`ERASE_LINE`] that came last.
    matched: usize,
}

impl Screen {
    /// Shows these bytes.
    pub fn show(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if ERASE_LINE.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == ERASE_LINE.len() {
                    self.text.truncate(self.line_start());
                    self.matched = 0;
                }
                continue;
            }
            // It was something else: all but the carriage return belongs to the text.
            let withheld = ERASE_LINE.get(1..self.matched).unwrap_or_default();
            self.text.extend_from_slice(withheld);
            self.matched = usize::from(byte == b'\r');
            if byte != b'\r' {
                self.text.push(byte);
            }
        }
    }

    /// Returns all that is on the screen.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        self.text.clear();
    }

    /// Replaces what is on the screen.
    pub fn set(&mut self, text: &str) {
        self.text = text.as_bytes().to_vec();
    }

    /// Takes the finished lines away, with their line feeds.
    pub fn take_lines(&mut self) -> String {
        let rest = self.text.split_off(self.line_start());
        let lines = std::mem::replace(&mut self.text, rest);
        String::from_utf8_lossy(&lines).into_owned()
    }

    fn line_start(&self) -> usize {
        self.text
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&str]) -> String {
        let mut screen = Screen::default();
        pieces
            .iter()
            .for_each(|piece| screen.show(piece.as_bytes()));
        screen.text()
    }

    #[test]
    fn a_prompt_that_makes_room_for_a_guests_line_is_seen_once() {
        let said = "tarpit> v\r\x1b[K[debian 1.5] hello\r\ntarpit> v";
        assert_eq!(shown(&[said]), "[debian 1.5] hello\ntarpit> v");
    }

    #[test]
    fn an_erasure_may_arrive_in_pieces() {
        assert_eq!(
            shown(&["one\ntarpit> \r", "\x1b[", "Ktwo\r", "\n"]),
            "one\ntwo\n"
        );
    }

    #[test]
    fn other_control_sequences_and_returns_erase_nothing() {
        assert_eq!(shown(&["a\rb\r\x1b[31mred\r\r\n"]), "ab\x1b[31mred\n");
        assert_eq!(shown(&["a\r\r\x1b[Kb"]), "b");
        assert_eq!(shown(&["a\x1b[Kb"]), "a\x1b[Kb");
    }

    #[test]
    fn only_finished_lines_are_taken() {
        let mut screen = Screen::default();
        screen.show(b"one\r\ntwo\r\nthr");
        assert_eq!(screen.take_lines(), "one\ntwo\n");
        assert_eq!(screen.take_lines(), "");
        screen.show(b"ee\n");
        assert_eq!(screen.take_lines(), "three\n");
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::test_text::text;

    #[test]
    fn what_a_console_writes() {
        fuzzing::check!()
            .with_type::<(Vec<u8>, Vec<u8>)>()
            .for_each(|(bytes, cuts)| {
                let written = text(
                    bytes,
                    &["\r\x1b[K", "\r", "\x1b", "[", "K", "\n", "tarpit> "],
                );
                let mut whole = Screen::default();
                whole.show(written.as_bytes());
                // In however many pieces it comes.
                let mut pieces = Screen::default();
                let mut rest = written.as_bytes();
                for &cut in cuts {
                    let (piece, after) = rest.split_at(usize::from(cut).min(rest.len()));
                    pieces.show(piece);
                    rest = after;
                }
                pieces.show(rest);
                assert_eq!(pieces.text(), whole.text());
                assert!(!whole.text().contains("\r\x1b[K"));
                let all = whole.text();
                let lines = whole.take_lines();
                assert_eq!(lines.clone() + &whole.text(), all);
                assert!(lines.is_empty() || lines.ends_with('\n'));
                assert!(!whole.text().contains('\n'));
            });
    }
}
