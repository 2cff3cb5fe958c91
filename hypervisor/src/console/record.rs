//! What commands answer: as a table for people, or as JSON, one object a line, for programs.

use alloc::string::ToString;
use core::fmt::{self, Write};

use devices::clock::Rate;
use serde::{Serialize, Serializer};

use super::output::{Output, Text};
use crate::suppression::Factors;
use crate::suppression::address_space::Root;
use crate::trace::Event;

/// One line of an answer.
pub trait Record: Serialize {
    /// The columns' headings.
    const HEADING: &'static str;

    /// Writes the line for people, without a line end.
    ///
    /// # Errors
    /// If the formatter fails.
    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// A root, in JSON as the hexadecimal number that the console shows and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr3(pub Root);

impl Serialize for Cr3 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// The other roots of a process.
#[derive(Clone, Copy, Debug)]
pub struct Aliases<'a>(pub &'a [Root]);

impl Serialize for Aliases<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|root| Cr3(*root)))
    }
}

impl fmt::Display for Aliases<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for (index, root) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_char(',')?;
            }
            write!(f, "{root}")?;
        }
        Ok(())
    }
}

/// A line of `vms`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VmLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// What it does: `running`, `paused`, `ended`.
    pub state: &'a str,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// The number of its VCPUs.
    pub vcpus: usize,
    /// The number of its targets.
    pub targets: usize,
    /// How far its clock is ahead of real time, in milliseconds.
    pub lead_ms: i64,
}

impl Record for VmLine<'_> {
    const HEADING: &'static str = "VM               STATE       MEMORY  VCPUS  TARGETS       LEAD";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<16} {:<8} {:>6} MiB {:>6} {:>8} {:>7} ms",
            self.vm, self.state, self.memory_mib, self.vcpus, self.targets, self.lead_ms
        )
    }
}

/// A line of `ps`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ProcessLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// The root that names the process: of several, the one that runs most.
    pub cr3: Cr3,
    /// Its other roots.
    pub aliases: Aliases<'a>,
    /// Its share of one CPU lately, in thousandths.
    pub cpu_permille: u32,
    /// The host time that it has run, in milliseconds.
    pub cpu_ms: u64,
    /// When it was last seen running, in milliseconds ago.
    pub seen_ms_ago: u64,
    /// Whether it is suppressed.
    pub target: bool,
}

impl Record for ProcessLine<'_> {
    const HEADING: &'static str = "CR3               CPU      TIME ms      SEEN  TARGET  ALIASES";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cr3 = self.cr3.0.to_string();
        write!(
            f,
            "{:<14} {:>3}.{} % {:>10} {:>6} ms  {:<6}  {}",
            cr3,
            self.cpu_permille / 10,
            self.cpu_permille % 10,
            self.cpu_ms,
            self.seen_ms_ago,
            if self.target { "yes" } else { "no" },
            self.aliases
        )
    }
}

/// A line of `targets`; also the answer to `suppress` and `release`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TargetLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// The root that the operator named.
    pub cr3: Cr3,
    /// Its other roots, as far as they are known.
    pub aliases: Aliases<'a>,
    /// What timer intervals are divided by.
    pub interval: u32,
    /// What time is multiplied by.
    pub clock: u32,
}

impl<'a> TargetLine<'a> {
    /// The line of a target.
    #[must_use]
    pub const fn new(vm: &'a str, root: Root, aliases: &'a [Root], factors: Factors) -> Self {
        Self {
            vm,
            cr3: Cr3(root),
            aliases: Aliases(aliases),
            interval: factors.interval.get(),
            clock: factors.clock.get(),
        }
    }
}

impl Record for TargetLine<'_> {
    const HEADING: &'static str = "VM               CR3            INTERVAL     CLOCK  ALIASES";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cr3 = self.cr3.0.to_string();
        write!(
            f,
            "{:<16} {:<14} 1/{:<6} {:>7}x  {}",
            self.vm, cr3, self.interval, self.clock, self.aliases
        )
    }
}

/// A line of `stats`: a reason of VM exits, or a sum.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StatsLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// The exit reason, or what else is counted.
    pub what: &'a str,
    /// How often.
    pub count: u64,
    /// The host ticks spent on it in root mode.
    pub ticks: u64,
}

impl Record for StatsLine<'_> {
    const HEADING: &'static str =
        "WHAT                            COUNT           TICKS   PER EACH";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<24} {:>12} {:>15} {:>10}",
            self.what,
            self.count,
            self.ticks,
            self.ticks / self.count.max(1)
        )
    }
}

/// An address, in JSON as a hexadecimal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u64);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// A line of `find`: a process that holds the pattern.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MatchLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// The root that names the process.
    pub cr3: Cr3,
    /// Its other roots.
    pub aliases: Aliases<'a>,
    /// The virtual address of the first match.
    pub address: Address,
    /// The number of matches.
    pub matches: u64,
    /// Whether all its memory was searched: not so if it maps far more than the VM has.
    pub complete: bool,
}

impl Record for MatchLine<'_> {
    const HEADING: &'static str = "CR3            FIRST AT           MATCHES  ALIASES";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cr3 = self.cr3.0.to_string();
        write!(
            f,
            "{:<14} {:<#18x} {:>7}{} {}",
            cr3,
            self.address.0,
            self.matches,
            if self.complete { ' ' } else { '+' },
            self.aliases
        )
    }
}

/// The answer to `trace`, but for its `show`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TraceLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// Whether events are recorded.
    pub on: bool,
    /// The number of events kept.
    pub events: usize,
}

impl Record for TraceLine<'_> {
    const HEADING: &'static str = "";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: tracing is {}, {} events kept",
            self.vm,
            if self.on { "on" } else { "off" },
            self.events
        )
    }
}

/// A line of `trace VM show`. Its JSON is short, for there are many, and has what its event
/// has.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EventLine {
    /// When it happened, in nanoseconds of host time since the console opened.
    pub ns: u64,
    /// The VCPU's number, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// What happened.
    pub event: &'static str,
    /// The address space, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Cr3>,
    /// How many times real time timers run from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<f64>,
    /// How many times real time counters run from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock: Option<f64>,
}

impl EventLine {
    /// The line of an event.
    #[must_use]
    pub fn new(ns: u64, vcpu: Option<u32>, event: Event) -> Self {
        let times = |rate: Rate| rate.bits() as f64 / Rate::ONE.bits() as f64;
        let (root, rates) = match event {
            Event::SwitchIn(root) | Event::SwitchOut(root) => (Some(Cr3(root)), None),
            Event::Rates(rates) => (None, Some(rates)),
            Event::Timer | Event::Halt | Event::Wake => (None, None),
        };
        Self {
            ns,
            vcpu,
            event: match event {
                Event::SwitchIn(_) => "switch-in",
                Event::SwitchOut(_) => "switch-out",
                Event::Timer => "timer",
                Event::Rates(_) => "rates",
                Event::Halt => "halt",
                Event::Wake => "wake",
            },
            root,
            interval: rates.map(|rates| times(rates.timer)),
            clock: rates.map(|rates| times(rates.counter)),
        }
    }
}

impl Record for EventLine {
    const HEADING: &'static str = "      TIME us  VCPU  EVENT";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (us, rest) = (self.ns / 1000, self.ns % 1000);
        write!(f, "{us:>9}.{rest:03} ")?;
        match self.vcpu {
            Some(vcpu) => write!(f, "{vcpu:>5}")?,
            None => f.write_str("    -")?,
        }
        write!(f, "  {:<10}", self.event)?;
        if let Some(Cr3(root)) = self.root {
            write!(f, " {root}")?;
        }
        if let (Some(interval), Some(clock)) = (self.interval, self.clock) {
            write!(f, " interval 1/{interval}, clock {clock}x")?;
        }
        Ok(())
    }
}

/// That a command did what it says, without more to tell.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DoneLine<'a> {
    /// What was done, in words.
    pub done: &'a str,
}

impl Record for DoneLine<'_> {
    const HEADING: &'static str = "";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.done)
    }
}

/// Why a command was not done.
#[derive(Clone, Copy, Debug, Serialize)]
struct ErrorLine<'a> {
    /// A name for programs.
    error: &'a str,
    /// Cause and remedy.
    message: &'a str,
}

/// Writes an answer: a table with its heading, or JSON lines.
pub fn answer<R: Record>(
    out: &mut (impl Output + ?Sized),
    json: bool,
    records: impl IntoIterator<Item = R>,
) {
    heading::<R>(out, json);
    for record in records {
        line(out, json, &record);
    }
}

/// Begins an answer whose lines come one by one: writes the table's heading.
pub fn heading<R: Record>(out: &mut (impl Output + ?Sized), json: bool) {
    if !json && !R::HEADING.is_empty() {
        // An output cannot fail.
        let _ = writeln!(Text(out), "{}", R::HEADING);
    }
}

/// Writes one line of an answer.
pub fn line<R: Record>(out: &mut (impl Output + ?Sized), json: bool, record: &R) {
    struct Row<'a, R>(&'a R);
    impl<R: Record> fmt::Display for Row<'_, R> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.row(f)
        }
    }
    if json {
        json_line(out, record);
    } else {
        let _ = writeln!(Text(out), "{}", Row(record));
    }
}

/// Writes an error: `kind` is its name for programs.
pub fn error(out: &mut (impl Output + ?Sized), json: bool, kind: &str, message: impl fmt::Display) {
    if json {
        let message = alloc::format!("{message}");
        json_line(
            out,
            &ErrorLine {
                error: kind,
                message: &message,
            },
        );
    } else {
        let _ = writeln!(Text(out), "error: {message}");
    }
}

fn json_line(out: &mut (impl Output + ?Sized), value: &impl Serialize) {
    // Fails for maps with odd keys only, and no record is one.
    if let Ok(text) = serde_json::to_string(value) {
        out.write(text.as_bytes());
        out.write(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::clock::Rates;
    use std::string::String;

    use crate::suppression::address_space::RootFormat;

    fn shown(json: bool, event: Event) -> String {
        let mut screen = std::vec::Vec::new();
        let mut out = |bytes: &[u8]| screen.extend_from_slice(bytes);
        let vcpu = (!matches!(event, Event::Rates(_))).then_some(1);
        line(&mut out, json, &EventLine::new(1_234_567, vcpu, event));
        String::from_utf8(screen).unwrap().trim_end().into()
    }

    #[test]
    fn an_event_has_what_belongs_to_it() {
        let root = Root::new(0x5000, RootFormat::Long);
        assert_eq!(
            shown(true, Event::SwitchIn(root)),
            r#"{"ns":1234567,"vcpu":1,"event":"switch-in","root":"0x5000"}"#
        );
        assert_eq!(
            shown(true, Event::Timer),
            r#"{"ns":1234567,"vcpu":1,"event":"timer"}"#
        );
        let rates = Rates {
            counter: Rate::ONE,
            timer: Rate::times(2).unwrap(),
        };
        assert_eq!(
            shown(true, Event::Rates(rates)),
            r#"{"ns":1234567,"event":"rates","interval":2.0,"clock":1.0}"#
        );
        assert_eq!(
            shown(false, Event::Rates(rates)),
            "     1234.567     -  rates      interval 1/2, clock 1x"
        );
    }
}
