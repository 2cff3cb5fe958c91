//! From the events that tarpit has traced to the slices of two processes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The roots of each of the two processes, as the console shows them.
pub(super) type Roots = [Vec<String>; 2];

/// A time in which one process had the VCPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slice {
    /// 0 for A, 1 for B.
    pub process: usize,
    /// The times at which it began and ended, in milliseconds of host time.
    pub from: f64,
    pub to: f64,
}

impl Slice {
    pub(super) fn length(&self) -> f64 {
        self.to - self.from
    }
}

/// The slices and the timer interrupts of a VCPU over some time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Timeline {
    /// Whole slices: those that were under way at either end of the trace are left out.
    pub slices: Vec<Slice>,
    /// The times of timer interrupts, in milliseconds of host time.
    pub ticks: Vec<f64>,
}

impl Timeline {
    /// Reads what `trace VM show` answers.
    ///
    /// # Errors
    /// When the answer is not as it should be, or a process has no whole slice in it.
    pub(super) fn read(events: &[Value], roots: &Roots) -> Result<Self> {
        let mut timeline = Self::default();
        // Begun at the switch to its process, if that is in the trace.
        let mut running: Option<(usize, f64)> = None;
        let mut has_begun = false;
        for event in events {
            let field = |name: &str| event[name].as_str();
            let at = event["ns"]
                .as_u64()
                .with_context(|| format!("not an event: {event}"))? as f64
                / 1e6;
            match field("event") {
                Some("timer") => timeline.ticks.push(at),
                Some("switch-in") => {
                    let root = field("root").unwrap_or_default();
                    let process = roots
                        .iter()
                        .position(|roots| roots.iter().any(|known| known == root));
                    if running.map(|(process, _)| process) == process && has_begun {
                        // From one root of a process to another.
                        continue;
                    }
                    if let Some((process, from)) = running {
                        timeline.slices.push(Slice {
                            process,
                            from,
                            to: at,
                        });
                    }
                    // What the trace began with may have run for long already.
                    running = process.filter(|_| has_begun).map(|process| (process, at));
                    has_begun = true;
                }
                _ => {}
            }
        }
        for (process, name) in ["A", "B"].into_iter().enumerate() {
            ensure!(
                timeline.lengths(process).next().is_some(),
                "no whole slice of process {name} among {} events",
                events.len()
            );
        }
        Ok(timeline)
    }

    /// Returns how long each slice of a process was, in milliseconds.
    pub(super) fn lengths(&self, process: usize) -> impl Iterator<Item = f64> {
        self.slices
            .iter()
            .filter(move |slice| slice.process == process)
            .map(Slice::length)
    }

    /// Returns how long the slices of a process were on average, in milliseconds.
    pub(super) fn mean(&self, process: usize) -> f64 {
        let count = self.lengths(process).count();
        self.lengths(process).sum::<f64>() / count.max(1) as f64
    }

    /// Returns the shortest and the longest slice of a process, in milliseconds.
    pub(super) fn extremes(&self, process: usize) -> [f64; 2] {
        [
            self.lengths(process).fold(f64::INFINITY, f64::min),
            self.lengths(process).fold(0.0, f64::max),
        ]
    }

    /// Returns the median time between two ticks in slices of a process, in milliseconds.
    pub(super) fn interval(&self, process: usize) -> Option<f64> {
        let mut intervals: Vec<f64> = self
            .slices
            .iter()
            .filter(|slice| slice.process == process)
            .flat_map(|slice| {
                // The tick that ends a slice comes just before the switch.
                let inside = |at: &&f64| (slice.from..=slice.to).contains(*at);
                let ticks: Vec<f64> = self.ticks.iter().filter(inside).copied().collect();
                ticks
                    .windows(2)
                    .map(|pair| pair[1] - pair[0])
                    .collect::<Vec<_>>()
            })
            .collect();
        intervals.sort_by(f64::total_cmp);
        intervals.get(intervals.len() / 2).copied()
    }

    /// Returns it as JSON, for programs.
    pub(super) fn json(&self) -> Value {
        let process = |process: usize| {
            let [shortest, longest] = self.extremes(process);
            json!({
                "mean_ms": self.mean(process),
                "shortest_ms": shortest,
                "longest_ms": longest,
                "tick_interval_ms": self.interval(process),
                "slices_ms": self.lengths(process).collect::<Vec<_>>(),
            })
        };
        json!({ "a": process(0), "b": process(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots() -> Roots {
        [
            vec!["0xa000".to_owned(), "0xa001".to_owned()],
            vec!["0xb000".to_owned()],
        ]
    }

    fn switch(ms: u64, root: &str) -> Value {
        json!({"ns": ms * 1_000_000, "vcpu": 0, "event": "switch-in", "root": root})
    }

    fn tick(ms: u64) -> Value {
        json!({"ns": ms * 1_000_000, "vcpu": 0, "event": "timer"})
    }

    #[test]
    fn slices_are_from_switch_to_switch() -> Result<()> {
        let events = [
            switch(3, "0xb000"),
            tick(10),
            switch(10, "0xa000"),
            tick(15),
            tick(20),
            tick(25),
            tick(30),
            switch(30, "0xb000"),
            switch(70, "0xa000"),
        ];
        let timeline = Timeline::read(&events, &roots())?;
        let slice = |process, from, to| Slice { process, from, to };
        // Neither the slice at the beginning nor the one at the end is whole.
        assert_eq!(
            timeline.slices,
            [slice(0, 10.0, 30.0), slice(1, 30.0, 70.0)]
        );
        assert_eq!(timeline.ticks.len(), 5);
        assert_eq!([timeline.mean(0), timeline.mean(1)], [20.0, 40.0]);
        assert_eq!(timeline.interval(0), Some(5.0));
        Ok(())
    }

    #[test]
    fn a_process_goes_on_under_its_other_root_but_not_after_another_process() -> Result<()> {
        let events = [
            switch(0, "0xc000"),
            switch(10, "0xa000"),
            switch(12, "0xa001"),
            switch(20, "0xc000"),
            switch(21, "0xa000"),
            switch(30, "0xb000"),
            switch(31, "0xa000"),
        ];
        let timeline = Timeline::read(&events, &roots())?;
        assert_eq!(timeline.lengths(0).collect::<Vec<_>>(), [10.0, 9.0]);
        assert_eq!(timeline.lengths(1).collect::<Vec<_>>(), [1.0]);
        Ok(())
    }

    #[test]
    fn a_process_that_never_had_a_whole_slice_is_an_error() {
        let events = [
            switch(0, "0xb000"),
            switch(40, "0xa000"),
            switch(60, "0xb000"),
        ];
        assert!(Timeline::read(&events, &roots()).is_err());
        assert!(Timeline::read(&[json!({"error": "unknown_vm"})], &roots()).is_err());
    }
}
