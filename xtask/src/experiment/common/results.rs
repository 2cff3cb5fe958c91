//! `docs/results.md`: tables that commands fill, between markers.

use anyhow::{Context, Result};

use crate::testbed::paths;

/// A table in the file.
#[derive(Clone, Copy, Debug)]
pub(in crate::experiment) struct Table<'a> {
    /// The name of the table: its markers are `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
    pub name: &'a str,
    /// The title of its section, for when the file has none yet.
    pub title: &'a str,
    /// The two lines above its rows.
    pub heading: &'a str,
    /// The number of cells, from the first on, that say what a row is about.
    pub keys: usize,
}

impl Table<'_> {
    /// Puts rows into the table: in the place of those about the same, or behind the others, which
    /// stay.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(in crate::experiment) fn update(&self, rows: &[String]) -> Result<()> {
        let path = paths::workspace().join("docs/results.md");
        let update = || {
            let text = std::fs::read_to_string(&path)?;
            std::fs::write(&path, self.updated(&text, rows))
        };
        update().with_context(|| format!("cannot put a table into {}", path.display()))
    }

    fn updated(&self, text: &str, rows: &[String]) -> String {
        let [begin, end] = ["begin", "end"].map(|mark| format!("<!-- {}:{mark} -->", self.name));
        let parts = text.split_once(&begin).and_then(|(before, rest)| {
            let (content, after) = rest.split_once(&end)?;
            Some((before, content, after))
        });
        match parts {
            Some((before, content, after)) => {
                let table = self.merged(content, rows);
                format!("{before}{begin}\n\n{table}\n\n{end}{after}")
            }
            None => {
                let (title, table) = (self.title, self.merged("", rows));
                let text = text.trim_end();
                format!("{text}\n\n## {title}\n\n{begin}\n\n{table}\n\n{end}\n")
            }
        }
    }

    /// Returns the table with what was in its section before.
    fn merged(&self, content: &str, rows: &[String]) -> String {
        let key = |row: &str| -> Vec<String> {
            let cells = row.split('|').skip(1).take(self.keys);
            cells.map(|cell| cell.trim().to_owned()).collect()
        };
        let old = content.lines().filter(|line| line.starts_with('|'));
        // A table with other columns is of no use.
        let is_ours = content.contains(self.heading);
        let mut table: Vec<String> = match is_ours {
            true => old.skip(2).map(str::to_owned).collect(),
            false => Vec::new(),
        };
        for row in rows {
            match table.iter_mut().find(|known| key(known) == key(row)) {
                Some(known) => known.clone_from(row),
                None => table.push(row.clone()),
            }
        }
        table.insert(0, self.heading.to_owned());
        table.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table = Table {
        name: "t",
        title: "Of tests",
        heading: "| a | b |\n| --- | --- |",
        keys: 1,
    };

    fn rows(rows: &[&str]) -> Vec<String> {
        rows.iter().map(|&row| row.to_owned()).collect()
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = "# a\n<!-- t:begin -->\nold\n<!-- t:end -->\nrest\n";
        let new = TABLE.updated(text, &rows(&["| 1 | x |"]));
        let expected = "# a\n<!-- t:begin -->\n\n| a | b |\n| --- | --- |\n| 1 | x |\n\n\
                        <!-- t:end -->\nrest\n";
        assert_eq!(new, expected);
        assert_eq!(TABLE.updated(expected, &[]), expected);
    }

    #[test]
    fn a_row_takes_the_place_of_the_one_about_the_same_in_its_own_table() {
        let text = "<!-- other:begin -->\n| a | b |\n| --- | --- |\n| 1 | other's |\n<!-- other:end -->\n\
                    <!-- t:begin -->\n| a | b |\n| --- | --- |\n| 1 | old |\n| 2 | kept |\n<!-- t:end -->";
        let new = TABLE.updated(text, &rows(&["| 1 | new |", "| 3 | more |"]));
        assert!(new.contains("| 1 | other's |"), "{new}");
        assert!(
            new.contains(
                "| --- | --- |\n| 1 | new |\n| 2 | kept |\n| 3 | more |\n\n<!-- t:end -->"
            ),
            "{new}"
        );
    }

    #[test]
    fn rows_under_other_columns_are_not_kept() {
        let text = "<!-- t:begin -->\n| a |\n| --- |\n| 1 |\n<!-- t:end -->";
        let new = TABLE.updated(text, &rows(&["| 2 | x |"]));
        assert!(!new.contains("| 1 |"), "{new}");
    }

    #[test]
    fn a_table_that_the_file_does_not_have_yet_gets_a_section() {
        let once = TABLE.updated("# Results\n", &rows(&["| 1 | x |"]));
        assert!(once.starts_with("# Results\n\n## Of tests\n\n<!-- t:begin -->\n"));
        let twice = TABLE.updated(&once, &rows(&["| 1 | y |"]));
        assert_eq!(twice, once.replace("| 1 | x |", "| 1 | y |"));
    }
}
