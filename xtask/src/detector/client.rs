//! One end of the conversation.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::address::{Address, Ends};

/// The version of the protocol that is spoken here.
const PROTOCOL: u32 = 1;

/// The longest wait for an answer unless told otherwise: an emulated machine on a busy host is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most events that are kept for who asks for them later.
const KEPT_EVENTS: usize = 10_000;

/// An object of an answer: the fields of a row of the table that the console shows.
pub type Record = Value;

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The error's name, for programs.
    pub kind: String,
    /// The cause and the remedy, for people.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

/// A connection to a tarpit.
pub struct Client {
    writer: Box<dyn Write + Send>,
    lines: Receiver<Value>,
    /// The beginning of this client's ids: others may be at the same line.
    prefix: String,
    next_id: u64,
    events: VecDeque<Value>,
    patience: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("prefix", &self.prefix)
            .field("next_id", &self.next_id)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects, and makes sure that a tarpit answers.
    ///
    /// # Errors
    /// When nobody is there, does not answer, or speaks another version.
    pub fn connect(address: &Address) -> Result<Self> {
        Self::connect_within(address, PATIENCE)
    }

    /// Connects as [`Client::connect`] does. No answer may take longer than `patience`.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_within(address: &Address, patience: Duration) -> Result<Self> {
        Self::over(address.connect()?, patience)
            .with_context(|| format!("no tarpit answers at {address}"))
    }

    pub(super) fn over((reader, writer): Ends, patience: Duration) -> Result<Self> {
        let (sender, lines) = channel();
        // Not every kind of connection can be waited on for a limited time.
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                // The first one may be half a line.
                if let Ok(value) = serde_json::from_slice(&line)
                    && sender.send(value).is_err()
                {
                    return;
                }
            }
        });
        let mut client = Self {
            writer,
            lines,
            prefix: prefix(),
            next_id: 0,
            events: VecDeque::new(),
            patience,
        };
        // Ends what somebody may have begun to say on the line.
        client.writer.write_all(b"\n")?;
        client.ask("hello", json!(PROTOCOL))?;
        Ok(client)
    }

    /// Has a command carried out, any of the console's, and returns the records of its answer.
    ///
    /// # Errors
    /// [`Refused`] when the answer is an error; when the connection fails.
    pub fn command(&mut self, line: &str) -> Result<Vec<Record>> {
        self.ask("command", json!(line))
    }

    /// Reads a guest's memory: `length` bytes from `address` on, in the address space of `cr3` as
    /// `ps` shows it, or guest-physical ones. Bytes that are not there are `None`.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn read(
        &mut self,
        vm: &str,
        cr3: Option<&str>,
        address: u64,
        length: u64,
    ) -> Result<Vec<Option<u8>>> {
        let address = format!("{address:#x}");
        let request = json!({"vm": vm, "cr3": cr3, "address": address, "length": length});
        let mut bytes = Vec::new();
        for piece in self.ask("read", request)? {
            let length = piece["length"].as_u64().context("a piece without length")?;
            let length = usize::try_from(length)?;
            match piece["data"].as_str() {
                None => bytes.resize(bytes.len() + length, None),
                Some(digits) => {
                    for pair in digits.as_bytes().chunks(2) {
                        let pair = std::str::from_utf8(pair)?;
                        bytes.push(Some(u8::from_str_radix(pair, 16)?));
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Returns the registers of a VCPU.
    ///
    /// # Errors
    /// As [`Client::command`].
    pub fn registers(&mut self, vm: &str, vcpu: u32) -> Result<Record> {
        let answer = self.ask("registers", json!({"vm": vm, "vcpu": vcpu}))?;
        answer.into_iter().next().context("an empty answer")
    }

    /// Returns the next event, if there is one within `limit`.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn event(&mut self, limit: Duration) -> Result<Option<Value>> {
        let until = Instant::now() + limit;
        while self.events.is_empty() {
            let Some(line) = self.next_line(until)? else {
                return Ok(None);
            };
            self.keep_event(line);
        }
        Ok(self.events.pop_front())
    }

    /// Asks for something, and returns the records of the answer; text is a record with a field
    /// `text`.
    fn ask(&mut self, wish: &str, of: Value) -> Result<Vec<Record>> {
        let id = format!("{}-{}", self.prefix, self.next_id);
        self.next_id += 1;
        let mut request = Map::new();
        request.insert("id".to_owned(), json!(id));
        request.insert(wish.to_owned(), of);
        let line = format!("{}\n", Value::Object(request));
        self.writer
            .write_all(line.as_bytes())
            .context("the connection is closed")?;
        self.writer.flush()?;
        let until = Instant::now() + self.patience;
        let mut answer = Vec::new();
        let mut refused = None;
        loop {
            let Some(mut line) = self.next_line(until)? else {
                bail!("no answer within {} s", self.patience.as_secs());
            };
            if line["id"] != id.as_str() {
                self.keep_event(line);
            } else if line["end"] == true {
                return match refused {
                    Some(refused) => Err(anyhow::Error::new(refused)),
                    None => Ok(answer),
                };
            } else if let Some(kind) = line["error"].as_str() {
                refused = Some(Refused {
                    kind: kind.to_owned(),
                    message: line["message"].as_str().unwrap_or_default().to_owned(),
                });
            } else if line.get("record").is_some() {
                answer.push(line["record"].take());
            } else {
                answer.push(json!({"text": line["text"].take()}));
            }
        }
    }

    /// Keeps an event; answers to others are not of interest.
    fn keep_event(&mut self, line: Value) {
        if line.get("event").is_some() {
            if self.events.len() == KEPT_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(line);
        }
    }

    fn next_line(&mut self, until: Instant) -> Result<Option<Value>> {
        let left = until.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("tarpit has closed the connection"),
        }
    }
}

/// Returns a beginning for ids that no other client has: of this process, or before it.
fn prefix() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static CLIENTS: AtomicU32 = AtomicU32::new(0);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!(
        "{}.{}.{}",
        std::process::id(),
        CLIENTS.fetch_add(1, Ordering::Relaxed),
        since.as_micros() % 1_000_000_000
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A tarpit that answers each request with what `answer` makes of it: lines without ids.
    pub(crate) fn fake(
        mut answer: impl FnMut(&Value) -> Vec<Value> + Send + 'static,
    ) -> Result<Client> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut writer = theirs.try_clone()?;
        std::thread::spawn(move || -> Result<()> {
            // What was said before we came.
            writer.write_all(b"f a line\"}\n{\"event\":\"vm_state\",\"vm\":\"web\"}\n")?;
            for line in BufReader::new(theirs).lines() {
                let line = line?;
                if line.is_empty() {
                    continue;
                }
                let request: Value = serde_json::from_str(&line)?;
                let mut answer = match request.get("hello") {
                    Some(_) => vec![json!({"record": {"hello": "tarpit"}})],
                    None => answer(&request),
                };
                answer.push(json!({"end": true}));
                for mut line in answer {
                    writer.write_all(b"{\"id\":\"another\",\"record\":{}}\n")?;
                    line["id"] = request["id"].clone();
                    writer.write_all(format!("{line}\r\n").as_bytes())?;
                }
            }
            Ok(())
        });
        let ends: Ends = (Box::new(ours.try_clone()?), Box::new(ours));
        Client::over(ends, Duration::from_secs(10))
    }

    #[test]
    fn an_answer_is_its_records_and_nobody_elses() -> Result<()> {
        let mut client = fake(|request| {
            assert_eq!(request["command"], "vms");
            vec![
                json!({"record": {"vm": "web"}}),
                json!({"text": "and so on\n"}),
            ]
        })?;
        let answer = client.command("vms")?;
        assert_eq!(
            answer,
            [json!({"vm": "web"}), json!({"text": "and so on\n"})]
        );
        let event = client.event(Duration::ZERO)?;
        assert_eq!(event.context("the event is lost")?["vm"], "web");
        assert_eq!(client.event(Duration::from_millis(1))?, None);
        Ok(())
    }

    #[test]
    fn an_error_is_one() -> Result<()> {
        let mut client = fake(|_| vec![json!({"error": "unknown_vm", "message": "no VM"})])?;
        let error = client.command("ps x").err().context("no error")?;
        let refused: &Refused = error.downcast_ref().context("another error")?;
        assert_eq!(refused.kind, "unknown_vm");
        assert_eq!(error.to_string(), "no VM");
        Ok(())
    }

    #[test]
    fn memory_is_put_together() -> Result<()> {
        let mut client = fake(|request| {
            assert_eq!(request["read"]["address"], "0x1ffe");
            vec![
                json!({"record": {"address": "0x1ffe", "length": 2, "data": "4556"}}),
                json!({"record": {"address": "0x2000", "length": 2, "data": null}}),
            ]
        })?;
        let bytes = client.read("web", Some("0x1000"), 0x1ffe, 4)?;
        assert_eq!(bytes, [Some(b'E'), Some(b'V'), None, None]);
        Ok(())
    }

    #[test]
    fn silence_is_told() -> Result<()> {
        let (ours, _theirs) = UnixStream::pair()?;
        let ends: Ends = (Box::new(ours.try_clone()?), Box::new(ours));
        let error = Client::over(ends, Duration::from_millis(20)).err();
        let error = error.context("an answer from nobody")?.to_string();
        assert!(error.contains("no answer"), "{error}");
        Ok(())
    }

    #[test]
    fn the_end_of_the_connection_is_told() -> Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        drop(theirs);
        let ends: Ends = (Box::new(ours.try_clone()?), Box::new(ours));
        let error = Client::over(ends, Duration::from_secs(10)).err();
        error.context("an answer from nobody")?;
        Ok(())
    }
}
