//! Tables in README.md that commands fill, between markers.

use std::path::Path;

use anyhow::{Context, Result};

/// Replaces what is between `<!-- begin SECTION -->` and `<!-- end SECTION -->`.
///
/// # Errors
/// When the file cannot be read or written, or has no such markers.
pub fn replace(file: &Path, section: &str, content: &str) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    let text = replaced(&text, section, content)
        .with_context(|| format!("no markers `<!-- begin {section} -->` and end in it"))?;
    Ok(std::fs::write(file, text)?)
}

fn replaced(text: &str, section: &str, content: &str) -> Option<String> {
    let (before, rest) = text.split_once(&format!("<!-- begin {section} -->\n"))?;
    let end = format!("<!-- end {section} -->");
    let (_, after) = rest.split_once(&end)?;
    Some(format!(
        "{before}<!-- begin {section} -->\n\n{content}\n\n{end}{after}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = "# a\n<!-- begin t -->\nold\n<!-- end t -->\nrest\n";
        let new = replaced(text, "t", "new");
        let expected = "# a\n<!-- begin t -->\n\nnew\n\n<!-- end t -->\nrest\n";
        assert_eq!(new.as_deref(), Some(expected));
        assert_eq!(replaced(expected, "t", "new").as_deref(), Some(expected));
    }

    #[test]
    fn without_both_markers_nothing_is_written() {
        assert_eq!(replaced("# a\n<!-- begin t -->\n", "t", "new"), None);
        assert_eq!(replaced("# a\n", "t", "new"), None);
    }
}
