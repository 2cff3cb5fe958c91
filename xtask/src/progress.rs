//! Shows that a step is under way: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps shorter than this leave no line behind.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// A step that is under way, shown until it is dropped.
pub struct Step {
    what: String,
    bar: Option<ProgressBar>,
    began: Instant,
}

impl Step {
    /// Starts to show `what` (as in "Fetching linux-image-6.1.0").
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{what} ...");
        }
        Self {
            what,
            bar,
            began: Instant::now(),
        }
    }

    /// Shows where in the step things are.
    pub fn detail(&self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.into());
        }
    }

    /// Prints a line above the spinner.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took = self.began.elapsed();
        if took >= WORTH_A_LINE {
            eprintln!("{}: {:.1} s", self.what, took.as_secs_f64());
        }
    }
}
