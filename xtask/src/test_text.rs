//! Text for tests: of words that a parser knows, and of anything else.

/// Makes text of bytes: the lower half are characters, and the upper half words.
pub(crate) fn text(bytes: &[u8], words: &[&str]) -> String {
    let piece = |&byte: &u8| match byte {
        0..128 => char::from(byte).to_string(),
        _ => words[usize::from(byte - 128) % words.len()].to_owned(),
    };
    bytes.iter().map(piece).collect()
}
