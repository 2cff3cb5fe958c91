//! What is looked for.
#![forbid(unsafe_code)]

use core::fmt;

/// A few bytes to be found in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern {
    bytes: [u8; Self::MAX],
    length: usize,
}

/// The reason why a word is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatternError {
    /// An empty word.
    Empty,
    /// A pattern longer than [`Pattern::MAX`] bytes.
    TooLong,
    /// A word whose characters behind `0x` are not pairs of hexadecimal digits.
    BadHex,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it must have one byte at least"),
            Self::TooLong => write!(f, "it must have {} bytes at most", Pattern::MAX),
            Self::BadHex => f.write_str(
                "behind 0x must be pairs of hexadecimal digits; for text that begins so, use \
                 quotes",
            ),
        }
    }
}

impl Pattern {
    /// The most bytes of a pattern.
    pub(crate) const MAX: usize = 64;

    /// Returns the pattern that `word` stands for: bytes in hexadecimal digits behind `0x`, or text,
    /// in quotes or plain.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn parse(word: &str) -> Result<Self, PatternError> {
        let mut pattern = Self {
            bytes: [0; Self::MAX],
            length: 0,
        };
        match (quoted(word), word.strip_prefix("0x")) {
            (None, Some(digits)) => {
                let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
                if !rest.is_empty() {
                    return Err(PatternError::BadHex);
                }
                for pair in pairs {
                    let [Some(high), Some(low)] = pair.map(hex) else {
                        return Err(PatternError::BadHex);
                    };
                    pattern.push(high << 4 | low)?;
                }
            }
            (text, _) => {
                for byte in text.unwrap_or(word).bytes() {
                    pattern.push(byte)?;
                }
            }
        }
        if pattern.length == 0 {
            return Err(PatternError::Empty);
        }
        Ok(pattern)
    }

    fn push(&mut self, byte: u8) -> Result<(), PatternError> {
        let place = self.bytes.get_mut(self.length);
        *place.ok_or(PatternError::TooLong)? = byte;
        self.length += 1;
        Ok(())
    }

    /// Returns the bytes.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Display for Pattern {
    /// Writes it as it can be given again: as text where that is plain, else as bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b',');
        let text = core::str::from_utf8(self.bytes()).ok();
        match text
            .filter(|text| text.bytes().all(|byte| is_plain(&byte)) && !text.starts_with("0x"))
        {
            Some(text) => f.write_str(text),
            None => {
                f.write_str("0x")?;
                self.bytes()
                    .iter()
                    .try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x?}", self.bytes())
    }
}

/// Returns what is in the quotes of `word`; `None` if it is not in quotes.
fn quoted(word: &str) -> Option<&str> {
    ['"', '\'']
        .into_iter()
        .find_map(|quote| word.strip_prefix(quote)?.strip_suffix(quote))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn bytes(word: &str) -> Result<Vec<u8>, PatternError> {
        Pattern::parse(word).map(|pattern| pattern.bytes().to_vec())
    }

    #[test]
    fn text_is_itself_and_quotes_come_off() {
        assert_eq!(bytes("EVIL-42").unwrap(), b"EVIL-42");
        assert_eq!(bytes("\"two words\"").unwrap(), b"two words");
        assert_eq!(bytes("'0x00'").unwrap(), b"0x00");
        assert_eq!(bytes("\u{e9}").unwrap(), [0xc3, 0xa9]);
    }

    #[test]
    fn quotes_come_off_in_pairs() {
        assert_eq!(quoted("\"a b\""), Some("a b"));
        assert_eq!(quoted("''"), Some(""));
        assert_eq!(quoted("\"a'"), None);
        assert_eq!(quoted("\""), None);
        assert_eq!(quoted("plain"), None);
    }

    #[test]
    fn hexadecimal_digits_are_bytes() {
        assert_eq!(bytes("0x7f454C46").unwrap(), b"\x7fELF");
        assert_eq!(bytes("0x123"), Err(PatternError::BadHex));
        assert_eq!(bytes("0x+1"), Err(PatternError::BadHex));
    }

    #[test]
    fn it_is_shown_as_it_can_be_given() {
        for word in ["EVIL-42", "0x7f454c46", "0x2030", "0x"] {
            let word = if word == "0x" { "'0x'" } else { word };
            let pattern = Pattern::parse(word).unwrap();
            assert_eq!(
                Pattern::parse(&std::format!("{pattern}")),
                Ok(pattern),
                "{word}"
            );
        }
        assert_eq!(
            std::format!("{}", Pattern::parse("EVIL-42").unwrap()),
            "EVIL-42"
        );
        assert_eq!(
            std::format!("{}", Pattern::parse("'a b'").unwrap()),
            "0x612062"
        );
    }

    #[test]
    fn patterns_have_one_to_64_bytes() {
        assert_eq!(bytes("0x"), Err(PatternError::Empty));
        assert_eq!(bytes("''"), Err(PatternError::Empty));
        assert_eq!(bytes(&"x".repeat(64)).unwrap().len(), 64);
        assert_eq!(bytes(&"x".repeat(65)), Err(PatternError::TooLong));
        let digits = std::format!("0x{}", "00".repeat(65));
        assert_eq!(bytes(&digits), Err(PatternError::TooLong));
    }
}

#[cfg(test)]
mod fuzz {
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;
    use crate::test_text::{Piece, line};

    #[test]
    fn patterns_as_words() {
        fuzzing::check!()
            .with_type::<(Vec<Piece>, Vec<u8>)>()
            .for_each(|(pieces, bytes)| {
                let words = ["0x", "\"", "'", "7f", "EVIL", ",", "--json"];
                check(&line(pieces, &words));
                check(&std::string::String::from_utf8_lossy(bytes));
                let digits: std::string::String = bytes
                    .iter()
                    .map(|byte| std::format!("{byte:02X}"))
                    .collect();
                let pattern = Pattern::parse(&std::format!("0x{digits}"));
                assert_eq!(pattern.is_ok(), (1..=Pattern::MAX).contains(&bytes.len()));
                if let Ok(pattern) = pattern {
                    assert_eq!(pattern.bytes(), bytes);
                    check(&pattern.to_string());
                }
            });
    }

    /// A pattern is some bytes, and is shown as a word that stands for it.
    fn check(word: &str) {
        if let Ok(pattern) = Pattern::parse(word) {
            assert!((1..=Pattern::MAX).contains(&pattern.bytes().len()));
            let shown = pattern.to_string();
            assert_eq!(Pattern::parse(&shown), Ok(pattern), "{word}");
            assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
