//! `cargo xtask ctl`: one command for a tarpit that runs.

use std::fmt::Write;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

use crate::detector::{Address, Client, Record};

/// Where the tarpit is that a client talks to.
#[derive(Args, Clone, Debug)]
pub(super) struct Connection {
    /// Where its line for detectors (COM2) is: HOST:PORT, or the path of a socket, a serial port or a
    /// pseudo-terminal [default: that of `cargo xtask run --detector`]
    #[arg(long, value_name = "ADDR")]
    connect: Option<Address>,
}

impl Connection {
    /// Returns the address.
    pub(super) fn address(&self) -> Address {
        self.connect.clone().unwrap_or_default()
    }
}

/// What to say.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    #[command(flatten)]
    connection: Connection,
    /// Print the answer as JSON, an object a line
    #[arg(long)]
    json: bool,
    /// Print events as they happen, after the answer, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// A command of the console's; `help` lists them
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "follow"
    )]
    command: Vec<String>,
}

/// Sends the command and prints the answer.
///
/// # Errors
/// When nobody is there, or the command is refused.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut client = Client::connect(&options.connection.address())?;
    let mut out = std::io::stdout().lock();
    if !options.command.is_empty() {
        let answer = client.command(&line(&options.command)?)?;
        if options.json {
            for record in &answer {
                writeln!(out, "{record}")?;
            }
        } else {
            out.write_all(table(&answer).as_bytes())?;
        }
    }
    if !options.follow {
        return Ok(());
    }
    loop {
        if let Some(event) = client.event(Duration::from_secs(1))? {
            writeln!(out, "{event}")?;
        }
    }
}

/// Returns the words as tarpit's console takes them apart again.
fn line(words: &[String]) -> Result<String> {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        if !word.is_empty() && !word.contains([' ', '\t']) {
            line.push_str(word);
        } else if !word.contains('"') {
            write!(line, "\"{word}\"")?;
        } else if !word.contains('\'') {
            write!(line, "'{word}'")?;
        } else {
            bail!("`{word}` has spaces and both kinds of quotes: write it in hexadecimal digits");
        }
    }
    Ok(line)
}

/// Returns records as a table, with a heading wherever another kind of records begins.
fn table(answer: &[Record]) -> String {
    let mut text = String::new();
    let keys = |record: &Record| -> Vec<String> {
        let fields = record.as_object();
        fields.map_or_else(Vec::new, |fields| fields.keys().cloned().collect())
    };
    for group in answer.chunk_by(|one, next| keys(one) == keys(next)) {
        let heading = group.first().map(keys).unwrap_or_default();
        if let [only] = heading.as_slice() {
            // Words rather than a row.
            for record in group {
                let words = shown(&record[only]);
                text.push_str(&words);
                if !words.ends_with('\n') {
                    text.push('\n');
                }
            }
            continue;
        }
        let rows: Vec<Vec<String>> = std::iter::once(heading.clone())
            .chain(group.iter().map(|record| {
                let cells = heading.iter().map(|key| shown(&record[key]));
                cells.collect()
            }))
            .collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..heading.len()).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
    }
    text
}

/// Returns a value as a person reads it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_stay_words() -> Result<()> {
        let words =
            |words: &[&str]| line(&words.iter().map(|&it| it.to_owned()).collect::<Vec<_>>());
        assert_eq!(
            words(&["find", "web", "two words"])?,
            "find web \"two words\""
        );
        assert_eq!(words(&["find", "web", "a \"b\""])?, "find web 'a \"b\"'");
        assert_eq!(
            words(&["suppress", "web", "0x1", "--cap=5"])?,
            "suppress web 0x1 --cap=5"
        );
        assert!(words(&["a \" '"]).is_err());
        Ok(())
    }

    #[test]
    fn records_of_a_kind_share_a_heading() {
        let answer = [
            json!({"cr3": "0x1000", "aliases": ["0x2000", "0x3000"], "cpu": 7}),
            json!({"cr3": "0x40000", "aliases": [], "cpu": null}),
            json!({"done": "2 released"}),
            json!({"text": "two\nlines\n"}),
        ];
        // In the order in which tarpit tells them.
        assert_eq!(
            table(&answer),
            "cr3      aliases        cpu\n\
             0x1000   0x2000,0x3000  7\n\
             0x40000  -              -\n\
             2 released\n\
             two\nlines\n"
        );
        assert_eq!(table(&[]), "");
    }
}
