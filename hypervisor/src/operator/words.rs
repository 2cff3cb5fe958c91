//! A command line's words.

/// Splits `line` into words at spaces. A word in quotes, `"` or `'`, may hold some; its
/// quotes stay with it. A quote that is not closed is as any other character.
pub(super) fn words(line: &str) -> impl Iterator<Item = &str> + Clone {
    Words(line)
}

#[derive(Clone)]
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_ascii_start();
        if rest.is_empty() {
            return None;
        }
        let length = quoted_length(rest)
            .or_else(|| rest.find(|c: char| c.is_ascii_whitespace()))
            .unwrap_or(rest.len());
        let (word, rest) = rest.split_at(length);
        self.0 = rest;
        Some(word)
    }
}

/// Returns the length of the word in quotes that `rest` begins with: to the first such quote that
/// a space or the end follows.
fn quoted_length(rest: &str) -> Option<usize> {
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let ends = |after: &str| after.chars().next().is_none_or(|c| c.is_ascii_whitespace());
    rest.match_indices(quote)
        .skip(1)
        .map(|(at, quote)| at + quote.len())
        .find(|&end| ends(&rest[end..]))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn split(line: &str) -> Vec<&str> {
        words(line).collect()
    }

    #[test]
    fn spaces_part_words_but_not_within_quotes() {
        assert_eq!(split("  ps \t web "), ["ps", "web"]);
        assert_eq!(
            split("find web \"two words\" --json"),
            ["find", "web", "\"two words\"", "--json"]
        );
        assert_eq!(split("'it's one' x"), ["'it's one'", "x"]);
    }

    #[test]
    fn a_lone_quote_is_a_character() {
        assert_eq!(split("find web \"a b"), ["find", "web", "\"a", "b"]);
        assert_eq!(split("\""), ["\""]);
    }
}
