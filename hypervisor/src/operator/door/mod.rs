//! The door for detectors: programs that ask and are told, on a serial line of their own, by lines of
//! JSON. `docs/protocol.md` describes what they say.
//!
//! A [`Door`] is polled as the operator's [`Session`](super::Session) is. It serves one request at a
//! time, in steps ([`Job`]), and trusts nothing that comes: what waits in either direction has a bound
//! ([`input`], [`outbox`]), lines are parsed without recursion ([`request`]), and events for which
//! there is no room are counted and told. Nothing here is called from a VM exit.

mod input;
mod memory;
mod outbox;
mod registers;
mod request;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::ControlFlow;

use serde::Serialize;

use super::command::{Job, Outcome, Progress};
use super::context::{Context, Surroundings};
use super::dispatch::dispatch;
use super::error::CommandError;
use super::events::{Event, Listener};
use super::session::{PowerOff, TURNS_PER_SECOND};
use super::terminal::SerialLine;
use crate::console::{Answer, RequestId};
use input::Input;
use memory::Reading;
use outbox::Outbox;
use registers::Waiting;
use request::{BadRequest, Request, Wish};

/// The version of the protocol. It changes when what a client relies on does; fields and events may be
/// added at any time.
const PROTOCOL: u32 = 1;

/// The most bytes that are taken from the line at a time: what it can have brought since the last.
const READ_AT_ONCE: usize = 64;

/// The longest time that is taken to get the last answer out, as a divisor of a second.
const FLUSH_PER_SECOND: u64 = 4;

/// A request that is being served.
struct Serving {
    id: RequestId,
    job: Box<dyn Job>,
}

/// The door. See the [module documentation](self).
pub(crate) struct Door {
    line: Arc<dyn SerialLine>,
    input: Input,
    outbox: Outbox,
    /// Whether the client wants events.
    events: bool,
    serving: Option<Serving>,
}

impl Door {
    /// Opens a door on `line`: says hello.
    #[must_use]
    pub(crate) fn open(line: Arc<dyn SerialLine>) -> Self {
        let mut door = Self {
            line,
            input: Input::new(),
            outbox: Outbox::new(),
            events: true,
            serving: None,
        };
        door.outbox.event(&Hello::default());
        door
    }

    /// Takes what has come, serves it or a part of it, and keeps the line moving.
    pub(super) fn poll(&mut self, surroundings: &mut Surroundings<'_>) -> ControlFlow<PowerOff> {
        self.outbox.drain(&*self.line);
        self.line.poll();
        for byte in core::iter::from_fn(|| self.line.read()).take(READ_AT_ONCE) {
            self.input.push(byte);
        }
        self.outbox.tell_dropped();
        if self.serving.is_some() {
            self.go_on(surroundings);
        } else if self.outbox.has_room() {
            self.refuse_lines();
            if let Some(line) = self.input.next_line() {
                self.begin(&line, surroundings)?;
            }
        }
        self.outbox.drain(&*self.line);
        ControlFlow::Continue(())
    }

    /// Returns whether there is something to be done soon: a request is served or waits, or output does.
    pub(super) fn goes_on(&self) -> bool {
        self.serving.is_some()
            || self.input.has_line()
            || !self.outbox.is_empty()
            || self.line.has_backlog()
    }

    /// Tells of lines that were not taken.
    fn refuse_lines(&mut self) {
        let refused = self.input.take_refused();
        for (count, error, message) in [
            (
                refused.too_long,
                "line_too_long",
                "lines of more than 4096 bytes were not read",
            ),
            (
                refused.too_many,
                "too_many_requests",
                "requests were not read: wait for answers",
            ),
        ] {
            if count > 0 {
                self.fail(None, error, &alloc::format!("{message} ({count})"));
            }
        }
    }

    /// Serves the request in `line`, or begins to.
    fn begin(&mut self, line: &[u8], surroundings: &mut Surroundings<'_>) -> ControlFlow<PowerOff> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return ControlFlow::Continue(());
        }
        let Request { id, wish } = match Request::parse(line) {
            Ok(request) => request,
            Err(BadRequest { id, message }) => {
                self.fail(id.as_ref(), "bad_request", &message);
                return ControlFlow::Continue(());
            }
        };
        let answer = Answer::to_request(&mut self.outbox, &id);
        let outcome = serve(&wish, &mut surroundings.context(answer));
        match outcome {
            Outcome::GoesOn(job) => {
                self.serving = Some(Serving { id, job });
                return ControlFlow::Continue(());
            }
            Outcome::Done => {}
            Outcome::Attach(_) => {
                let error = CommandError::new(
                    "needs_terminal",
                    "a guest's console can be attached to from a terminal only",
                );
                Answer::to_request(&mut self.outbox, &id).error(error.kind(), &error);
            }
            Outcome::PowerOff => {
                self.outbox.end(Some(&id));
                self.flush(surroundings);
                return ControlFlow::Break(PowerOff);
            }
        }
        self.outbox.end(Some(&id));
        if let Wish::Events(wanted) = wish {
            self.events = wanted;
        }
        ControlFlow::Continue(())
    }

    /// Goes on with the request that is being served.
    fn go_on(&mut self, surroundings: &mut Surroundings<'_>) {
        let Some(mut serving) = self.serving.take() else {
            return;
        };
        let turn = surroundings.clock.fraction_of_second(TURNS_PER_SECOND);
        let until = surroundings.clock.now().saturating_add(turn);
        let answer = Answer::to_request(&mut self.outbox, &serving.id);
        match serving.job.step(&mut surroundings.context(answer), until) {
            Progress::More => self.serving = Some(serving),
            Progress::Done => self.outbox.end(Some(&serving.id)),
        }
    }

    /// Answers that there is an error, and nothing else.
    fn fail(&mut self, id: Option<&RequestId>, error: &'static str, message: &str) {
        self.outbox.push(&FailureLine { id, error, message });
        self.outbox.end(id);
    }

    /// Gets out what waits, if the line takes it soon.
    fn flush(&mut self, surroundings: &Surroundings<'_>) {
        let clock = surroundings.clock;
        let patience = clock.fraction_of_second(FLUSH_PER_SECOND);
        let until = clock.now().saturating_add(patience);
        while clock.now() < until && (!self.outbox.is_empty() || self.line.has_backlog()) {
            self.outbox.drain(&*self.line);
            self.line.poll();
        }
    }
}

impl Listener for Door {
    fn tell(&mut self, us: u64, event: &Event<'_>) {
        if self.events {
            self.outbox.event(&EventLine { us, event });
        }
    }
}

/// Carries a request out, or begins to.
fn serve(wish: &Wish, context: &mut Context<'_>) -> Outcome {
    let outcome = match wish {
        Wish::Command(line) => Ok(dispatch(line, context)),
        Wish::Read(request) => Reading::begin(request, context).map(Outcome::goes_on),
        Wish::Registers(request) => Waiting::begin(request, context).map(Outcome::goes_on),
        Wish::Events(_) => Ok(Outcome::Done),
        Wish::Hello(PROTOCOL) => {
            context.answer.json(&Hello::default());
            Ok(Outcome::Done)
        }
        Wish::Hello(version) => Err(CommandError::new(
            "bad_protocol",
            format_args!("version {version} is not spoken here, but {PROTOCOL}"),
        )),
    };
    outcome.unwrap_or_else(|error| {
        context.answer.error(error.kind(), &error);
        Outcome::Done
    })
}

/// The facts about this end of the line.
#[derive(Serialize)]
struct Hello {
    hello: &'static str,
    protocol: u32,
    version: &'static str,
    /// The longest line that is read, in bytes.
    max_line: usize,
    /// The most bytes of memory that a request may ask for.
    max_read: u64,
}

impl Default for Hello {
    fn default() -> Self {
        Self {
            hello: "tarpit",
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION"),
            max_line: input::LINE_CAPACITY,
            max_read: memory::MOST,
        }
    }
}

/// An event, with its time.
#[derive(Serialize)]
struct EventLine<'a> {
    us: u64,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// The answer to what is no request.
#[derive(Serialize)]
struct FailureLine<'a> {
    id: Option<&'a RequestId>,
    error: &'static str,
    message: &'a str,
}
