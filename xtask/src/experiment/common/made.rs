//! What has been made of an experiment's cases so far: each is told, and kept, as soon as it is there.

use std::sync::{Mutex, PoisonError};

use anyhow::{Error, Result};
use serde_json::{Value, json};

use super::place::Place;

/// The outcome of a case.
pub(in crate::experiment) trait CaseOutcome {
    /// Returns the case's name, and the guest that it was measured in.
    fn case(&self) -> (&'static str, Place);
    /// Returns the row of a table.
    fn row(&self) -> Vec<String>;
    /// Returns each requirement that was missed, in words.
    fn misses(&self) -> Vec<String>;
    /// Returns it for programs.
    fn json(&self) -> Value;
}

/// A case that could not be measured, and the reason.
#[derive(Debug)]
pub(in crate::experiment) struct Failure {
    pub case: &'static str,
    pub place: Place,
    pub error: Error,
}

/// The outcome of a case, or the reason why there is none.
pub(in crate::experiment) type Made<O> = Result<O, Failure>;

/// All that there is so far. `save` keeps it.
pub(in crate::experiment) struct Results<O, S> {
    made: Mutex<Vec<Made<O>>>,
    save: S,
}

impl<O: CaseOutcome, S: Fn(&[Made<O>]) -> Result<()>> Results<O, S> {
    /// Makes an empty list.
    pub(in crate::experiment) const fn new(save: S) -> Self {
        Self {
            made: Mutex::new(Vec::new()),
            save,
        }
    }

    /// Adds a result, tells it, and has all that there are kept.
    pub(in crate::experiment) fn add(&self, made: Made<O>) {
        let mut all = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &made {
            Ok(outcome) => eprintln!("{}", outcome.row().join("  ")),
            Err(Failure { case, place, error }) => {
                eprintln!("{} {} {case}: {error:#}", place.series.name(), place.vcpus);
            }
        }
        all.push(made);
        if let Err(error) = (self.save)(&all) {
            eprintln!("cannot save what there is so far: {error:#}");
        }
    }

    /// Returns all of them.
    pub(in crate::experiment) fn into_made(self) -> Vec<Made<O>> {
        self.made
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prints each requirement that was missed. True if none was.
pub(in crate::experiment) fn print_misses<O: CaseOutcome>(made: &[Made<O>]) -> bool {
    let mut passed = true;
    for made in made {
        let ((case, place), misses) = match made {
            Ok(outcome) => (outcome.case(), outcome.misses()),
            Err(failure) => {
                let miss = format!("{:#}", failure.error);
                ((failure.case, failure.place), vec![miss])
            }
        };
        for miss in misses {
            passed = false;
            println!(
                "MISSED: {case} on Linux {}, VCPUs: {}: {miss}",
                place.series.name(),
                place.vcpus
            );
        }
    }
    passed
}

/// Returns a case, for programs: one that could not be measured has not passed.
pub(in crate::experiment) fn json_of<O: CaseOutcome>(made: &Made<O>) -> Value {
    match made {
        Ok(outcome) => outcome.json(),
        Err(Failure { case, place, error }) => json!({
            "case": case,
            "kernel_series": place.series.name(),
            "vcpus": place.vcpus,
            "error": format!("{error:#}"),
            "passed": false,
        }),
    }
}
