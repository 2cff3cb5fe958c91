//! What commands answer: as a table for people, or as JSON, one object a line, for programs.

use alloc::string::ToString;
use core::fmt::{self, Write};

use serde::{Serialize, Serializer};

use super::output::{Output, Text};
use crate::suppression::Factors;
use crate::suppression::address_space::Root;

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
    struct Row<'a, R>(&'a R);
    impl<R: Record> fmt::Display for Row<'_, R> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.row(f)
        }
    }
    // An output cannot fail.
    if !json && !R::HEADING.is_empty() {
        let _ = writeln!(Text(out), "{}", R::HEADING);
    }
    for record in records {
        if json {
            json_line(out, &record);
        } else {
            let _ = writeln!(Text(out), "{}", Row(&record));
        }
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
