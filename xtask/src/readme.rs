//! Tables in README.md that commands fill, between markers.

use std::path::Path;

use anyhow::{Context, Result};

/// Replaces what is between `<!-- SECTION:begin -->` and `<!-- SECTION:end -->`.
///
/// # Errors
/// When the file cannot be read or written, or has no such markers.
pub fn replace(file: &Path, section: &str, content: &str) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    let text = replaced(&text, section, content)
        .with_context(|| format!("no markers `<!-- {section}:begin -->` and end in it"))?;
    Ok(std::fs::write(file, text)?)
}

fn replaced(text: &str, section: &str, content: &str) -> Option<String> {
    let (before, rest) = text.split_once(&format!("<!-- {section}:begin -->\n"))?;
    let end = format!("<!-- {section}:end -->");
    let (_, after) = rest.split_once(&end)?;
    Some(format!(
        "{before}<!-- {section}:begin -->\n\n{content}\n\n{end}{after}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = "# a\n<!-- t:begin -->\nold\n<!-- t:end -->\nrest\n";
        let new = replaced(text, "t", "new");
        let expected = "# a\n<!-- t:begin -->\n\nnew\n\n<!-- t:end -->\nrest\n";
        assert_eq!(new.as_deref(), Some(expected));
        assert_eq!(replaced(expected, "t", "new").as_deref(), Some(expected));
    }

    #[test]
    fn without_both_markers_nothing_is_written() {
        assert_eq!(replaced("# a\n<!-- t:begin -->\n", "t", "new"), None);
        assert_eq!(replaced("# a\n", "t", "new"), None);
    }
}
