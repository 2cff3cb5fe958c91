//! Tables in README.md that commands fill, between markers.

use std::path::Path;

use anyhow::{Context, Result};

/// Replaces what is between `<!-- SECTION:begin -->` and `<!-- SECTION:end -->`.
///
/// # Errors
/// When the file cannot be read or written, or has no such markers.
pub(in crate::experiment) fn replace(file: &Path, section: &str, content: &str) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    let text = replaced(&text, section, content)
        .with_context(|| format!("no markers `<!-- {section}:begin -->` and end in it"))?;
    Ok(std::fs::write(file, text)?)
}

/// Puts `rows` under `heading` into the table of a section: in the place of rows whose first
/// `keys` cells are the same, or behind the others, which stay.
///
/// # Errors
/// As [`replace`].
pub(in crate::experiment) fn update_rows(
    file: &Path,
    section: &str,
    heading: &str,
    rows: &[String],
    keys: usize,
) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    replace(file, section, &merged(&text, heading, rows, keys))
}

fn merged(text: &str, heading: &str, rows: &[String], keys: usize) -> String {
    let key = |row: &str| -> Vec<String> {
        row.split('|')
            .skip(1)
            .take(keys)
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let old = text
        .lines()
        .skip_while(|line| Some(*line) != heading.lines().next())
        .skip(heading.lines().count())
        .take_while(|line| line.starts_with('|'));
    let mut table: Vec<String> = old.map(str::to_owned).collect();
    for row in rows {
        match table.iter_mut().find(|known| key(known) == key(row)) {
            Some(known) => known.clone_from(row),
            None => table.push(row.clone()),
        }
    }
    table.insert(0, heading.to_owned());
    table.join("\n")
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
    fn a_row_takes_the_place_of_the_one_about_the_same() {
        let heading = "| a | b |\n| --- | --- |";
        let text = "x\n| a | b |\n| --- | --- |\n| 1 | old |\n| 2 | kept |\n\n| 9 | other |";
        let rows = ["| 1 | new |".to_owned(), "| 3 | more |".to_owned()];
        assert_eq!(
            merged(text, heading, &rows, 1),
            "| a | b |\n| --- | --- |\n| 1 | new |\n| 2 | kept |\n| 3 | more |"
        );
        assert_eq!(merged("x", heading, &[], 1), heading);
    }

    #[test]
    fn without_both_markers_nothing_is_written() {
        assert_eq!(replaced("# a\n<!-- t:begin -->\n", "t", "new"), None);
        assert_eq!(replaced("# a\n", "t", "new"), None);
    }
}
