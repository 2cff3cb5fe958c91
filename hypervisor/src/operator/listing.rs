//! An answer that is a list, written a few lines at a time: guests run in between, however long it is.

use devices::time::HostTicks;

use super::command::{Job, Outcome, Progress};
use super::context::Context;
use super::terminal::BACKLOG;
use crate::console::Record;

/// The records of a list that are still to be written.
struct Listing<I> {
    records: I,
}

impl<I: Iterator<Item: Record> + Send> Job for Listing<I> {
    fn step(&mut self, context: &mut Context<'_>, until: HostTicks) -> Progress {
        while context.answer.backlog() < BACKLOG {
            let Some(record) = self.records.next() else {
                return Progress::Done;
            };
            context.answer.record(&record);
            if context.clock.now() >= until {
                break;
            }
        }
        Progress::More
    }
}

impl Outcome {
    /// Begins a list as the rest of an answer: its heading is written, and the lines follow.
    pub(super) fn list<R: Record>(
        context: &mut Context<'_>,
        records: impl IntoIterator<Item = R, IntoIter: Send + 'static>,
    ) -> Self {
        context.answer.heading::<R>();
        Self::goes_on(Listing {
            records: records.into_iter(),
        })
    }
}
