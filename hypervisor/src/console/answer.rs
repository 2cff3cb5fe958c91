//! How answers are written: as a table for people, or as JSON, one object a line, for programs.

use alloc::string::String;
use core::fmt::{self, Display, Write};

use serde::Serialize;

use super::output::{Output, Text};

/// One line of an answer: in JSON the value's own form, in a table a row.
pub(crate) trait Record: Serialize {
    /// The headings of the columns; empty if there is nothing to be headed.
    const HEADING: &'static str;

    /// Writes the row, without a line end.
    ///
    /// # Errors
    /// If the formatter fails.
    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// The format of an answer, by its reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// A person: tables with a heading, errors in words.
    #[default]
    Table,
    /// A program: one JSON object a line.
    Json,
}

/// A program's name for a request of its own, which every line of the answer bears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum RequestId {
    /// A number.
    Number(u64),
    /// A word.
    Word(String),
}

/// A writer of the answer to a command.
pub(crate) struct Answer<'a> {
    out: &'a mut dyn Output,
    format: Format,
    /// The request that is answered, where answers to several share a line with other things. All is
    /// JSON then, text too.
    request: Option<&'a RequestId>,
}

impl<'a> Answer<'a> {
    /// Begins an answer that goes to `out` in the given format.
    #[must_use]
    pub(crate) fn new(out: &'a mut dyn Output, format: Format) -> Self {
        Self {
            out,
            format,
            request: None,
        }
    }

    /// Begins an answer in JSON to `request`, whose id is in each line, that goes to `out`.
    #[must_use]
    pub(crate) fn to_request(out: &'a mut dyn Output, request: &'a RequestId) -> Self {
        Self {
            out,
            format: Format::Json,
            request: Some(request),
        }
    }

    /// Returns the format of the answer.
    #[must_use]
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Returns the number of bytes of output that are still on their way: a long answer is
    /// written a little at a time.
    #[must_use]
    pub(crate) fn backlog(&self) -> u64 {
        self.out.backlog()
    }

    /// Writes a whole list: its heading, and a line for each record.
    pub(crate) fn records<R: Record>(&mut self, records: impl IntoIterator<Item = R>) {
        self.heading::<R>();
        for record in records {
            self.record(&record);
        }
    }

    /// Writes the heading of a list whose records follow one by one; nothing in JSON.
    pub(crate) fn heading<R: Record>(&mut self) {
        if self.format == Format::Table && !R::HEADING.is_empty() {
            self.text(format_args!("{}\n", R::HEADING));
        }
    }

    /// Writes one line of a list.
    pub(crate) fn record<R: Record>(&mut self, record: &R) {
        match self.format {
            Format::Table => self.text(format_args!("{}\n", Row(record))),
            Format::Json => self.json(record),
        }
    }

    /// Writes why a command was not carried out: `kind` is the error's name for programs,
    /// `message` tells people the cause and the remedy.
    pub(crate) fn error(&mut self, kind: &str, message: impl Display) {
        match self.format {
            Format::Table => self.text(format_args!("error: {message}\n")),
            Format::Json => {
                let id = self.request;
                self.line(&ErrorLine {
                    id,
                    error: kind,
                    message: &alloc::format!("{message}"),
                });
            }
        }
    }

    /// Writes text, whatever the format.
    pub(crate) fn text(&mut self, text: fmt::Arguments<'_>) {
        match self.request {
            Some(id) => self.line(&TextLine {
                id,
                text: &alloc::format!("{text}"),
            }),
            // An output takes everything.
            None => {
                let _ = Text(self.out).write_fmt(text);
            }
        }
    }

    /// Writes a value as an object of its own, whatever the format.
    pub(crate) fn json(&mut self, value: &impl Serialize) {
        match self.request {
            Some(id) => self.line(&RecordLine { id, record: value }),
            None => self.line(value),
        }
    }

    fn line(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(mut text) => {
                text.push_str("\r\n");
                self.out.write(text.as_bytes());
            }
            Err(error) => debug_assert!(false, "a record that JSON cannot hold: {error}"),
        }
    }
}

/// A record as a table's row.
pub(crate) struct Row<'a, R>(pub &'a R);

impl<R: Record> Display for Row<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.row(f)
    }
}

/// The reason why a command was not carried out, in JSON.
#[derive(Clone, Copy, Debug, Serialize)]
struct ErrorLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RequestId>,
    error: &'a str,
    message: &'a str,
}

/// A record of the answer to a request.
#[derive(Clone, Copy, Debug, Serialize)]
struct RecordLine<'a, R> {
    id: &'a RequestId,
    record: &'a R,
}

/// Text of the answer to a request.
#[derive(Clone, Copy, Debug, Serialize)]
struct TextLine<'a> {
    id: &'a RequestId,
    text: &'a str,
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    #[derive(Serialize)]
    struct Animal {
        name: &'static str,
        legs: u32,
    }

    impl Record for Animal {
        const HEADING: &'static str = "NAME   LEGS";

        fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:<6} {:>4}", self.name, self.legs)
        }
    }

    const ANIMALS: [Animal; 2] = [
        Animal {
            name: "ant",
            legs: 6,
        },
        Animal {
            name: "owl",
            legs: 2,
        },
    ];

    fn written(format: Format, write: impl FnOnce(&mut Answer<'_>)) -> String {
        let mut screen = Vec::new();
        write(&mut Answer::new(&mut screen, format));
        String::from_utf8(screen).unwrap()
    }

    #[test]
    fn people_get_a_table_and_programs_an_object_a_line() {
        assert_eq!(
            written(Format::Table, |answer| answer.records(ANIMALS)),
            "NAME   LEGS\r\nant       6\r\nowl       2\r\n"
        );
        assert_eq!(
            written(Format::Json, |answer| answer.records(ANIMALS)),
            "{\"name\":\"ant\",\"legs\":6}\r\n{\"name\":\"owl\",\"legs\":2}\r\n"
        );
    }

    #[test]
    fn answers_to_requests_bear_their_ids() {
        let id = RequestId::Word("a".into());
        let mut out = Vec::new();
        let mut answer = Answer::to_request(&mut out, &id);
        answer.records([&ANIMALS[0]].into_iter().map(|it| Animal { ..*it }));
        answer.text(format_args!("two\nlines"));
        answer.error("no_owl", "none");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"id\":\"a\",\"record\":{\"name\":\"ant\",\"legs\":6}}\r\n\
             {\"id\":\"a\",\"text\":\"two\\nlines\"}\r\n\
             {\"id\":\"a\",\"error\":\"no_owl\",\"message\":\"none\"}\r\n"
        );
    }

    #[test]
    fn errors_have_a_name_for_programs() {
        let write = |answer: &mut Answer<'_>| answer.error("no_owl", "no \"owl\" here");
        assert_eq!(written(Format::Table, write), "error: no \"owl\" here\r\n");
        assert_eq!(
            written(Format::Json, write),
            "{\"error\":\"no_owl\",\"message\":\"no \\\"owl\\\" here\"}\r\n"
        );
    }
}
