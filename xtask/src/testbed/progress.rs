//! Shows that a step is under way: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps shorter than this leave no line behind.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// A step that is under way, shown until it is dropped.
pub struct Step {
    what: String,
    began: Instant,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    /// A line is printed if this is not dropped soon.
    Line(#[expect(dead_code, reason = "its drop is the signal")] mpsc::Sender<()>),
}

impl Step {
    /// Starts to show `what` (as in "Fetching linux-image-6.1.0").
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let shown = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Shown::Bar(bar)
        } else {
            let (done, when_done) = mpsc::channel();
            let line = format!("{what} ...");
            std::thread::spawn(move || {
                if when_done.recv_timeout(WORTH_A_LINE) == Err(RecvTimeoutError::Timeout) {
                    eprintln!("{line}");
                }
            });
            Shown::Line(done)
        };
        Self {
            what,
            began: Instant::now(),
            shown,
        }
    }

    /// Shows where in the step things are.
    pub fn detail(&self, text: impl Into<String>) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_message(text.into());
        }
    }

    /// Prints a line above the spinner.
    pub fn note(&self, text: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Shown::Line(_) => eprintln!("{text}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        let took = self.began.elapsed();
        if took >= WORTH_A_LINE {
            eprintln!("{}: {:.1} s", self.what, took.as_secs_f64());
        }
    }
}
