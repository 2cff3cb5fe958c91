//! Tables of what was measured: in columns for people, and as those of `docs/results.md`.

use std::fmt;

/// Titles, and rows of as many cells.
#[derive(Clone, Debug)]
pub(in crate::experiment) struct Cells<const N: usize> {
    /// The titles of the columns.
    pub titles: [&'static str; N],
    /// The rows.
    pub rows: Vec<[String; N]>,
}

impl<const N: usize> Cells<N> {
    /// Returns the two lines above the rows in Markdown.
    pub(in crate::experiment) fn heading(&self) -> String {
        format!("| {} |\n|{}", self.titles.join(" | "), " --- |".repeat(N))
    }

    /// Returns the rows in Markdown.
    pub(in crate::experiment) fn lines(&self) -> Vec<String> {
        let line = |row: &[String; N]| format!("| {} |", row.join(" | "));
        self.rows.iter().map(line).collect()
    }
}

impl<const N: usize> fmt::Display for Cells<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = self.titles.map(str::to_owned);
        let rows: Vec<_> = std::iter::once(&heading).chain(&self.rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        for (at, row) in rows.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            for (column, cell) in row.iter().enumerate() {
                write!(f, "{cell:<0$}  ", width(column).unwrap_or(0))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let cells = Cells {
            titles: ["Name", "ms"],
            rows: vec![["a".to_owned(), "1000".to_owned()]],
        };
        assert_eq!(cells.to_string(), "Name  ms    \na     1000  ");
        assert_eq!(cells.heading(), "| Name | ms |\n| --- | --- |");
        assert_eq!(cells.lines(), ["| a | 1000 |"]);
    }
}
