//! `find`: looks for the processes whose memory holds a pattern.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use devices::time::HostTicks;
use memchr::memmem::Finder;
use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::console::{Format, Record};
use crate::operator::command::{Job, Progress};
use crate::operator::inspect::{self, Processes};
use crate::operator::records::{Aliases, Cr3, Hex};
use crate::operator::values;
use crate::search::Search;
use crate::search::pattern::Pattern;
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::usage;
use crate::vm::Vm;

pub(super) static COMMAND: Command = Command {
    name: "find",
    usage: "find VM PATTERN",
    summary: "list the processes of a VM whose memory holds a pattern",
    details: "\
The pages that user mode can reach are searched in each address space that `ps` knows, by its page
tables alone. This takes some time, in which guests run on; Ctrl-C ends it.

  PATTERN   bytes in hexadecimal digits behind 0x, or text, in quotes if it has spaces; 64 bytes
            at most

  find web EVIL-42
  find web \"two words\"
  find web 0x7f454c46",
    parameters: &[Parameter::VM, Parameter::required("PATTERN")],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let pattern = pattern(arguments)?;
    let vm = context.vm(arguments)?;
    let seen = Processes::begin(&vm, context.clock.now());
    Ok(Outcome::goes_on(Find {
        format: inspect::root_format(&vm),
        finder: Finder::new(pattern.bytes()).into_owned(),
        ram: vm.ram.ranges().map(|range| range.length).sum(),
        vm,
        seen,
        processes: None,
        searched: 0,
        search: None,
        found: Vec::new(),
    }))
}

/// Parses what is looked for.
fn pattern(arguments: &Arguments<'_>) -> Result<Pattern, CommandError> {
    values::pattern(arguments.required("PATTERN")?)
}

/// A search through the processes of a VM.
struct Find {
    vm: Arc<Vm>,
    format: RootFormat,
    finder: Finder<'static>,
    /// The VM's memory in bytes.
    ram: u64,
    /// The processes, while they are being put together.
    seen: Processes,
    /// The processes that are still to be searched; `None` before they are put together.
    processes: Option<usage::Processes>,
    /// The number of processes that have been searched.
    searched: usize,
    /// The roots of the process that is being searched.
    search: Option<(Vec<Root>, Search)>,
    /// The roots of those that hold the pattern.
    found: Vec<(Vec<Root>, Search)>,
}

impl Job for Find {
    fn step(&mut self, context: &mut Context<'_>, until: HostTicks) -> Progress {
        if self.processes.is_none() {
            let Some(processes) = self.seen.step(&self.vm, context.clock, until) else {
                return Progress::More;
            };
            self.processes = Some(processes);
        }
        loop {
            if let Some((_, search)) = &mut self.search
                && !search.step(&self.vm.ram, &self.finder)
            {
                self.searched += 1;
                let ended = self.search.take();
                self.found.extend(ended.filter(|(_, it)| it.matches() > 0));
            }
            if self.search.is_none() {
                let Some(next) = self.processes.as_mut().and_then(Iterator::next) else {
                    self.answer(context);
                    return Progress::Done;
                };
                let root = next.roots.first();
                let search = root.map(|root| Search::new(*root, self.format, self.ram));
                self.search = search.map(|search| (next.roots, search));
            }
            if context.clock.now() >= until {
                return Progress::More;
            }
        }
    }
}

impl Find {
    fn answer(&self, context: &mut Context<'_>) {
        if self.found.is_empty() && context.answer.format() == Format::Table {
            let count = self.searched;
            context
                .answer
                .text(format_args!("none of {count} address spaces holds it\n"));
            return;
        }
        let lines = self.found.iter().filter_map(|(roots, search)| {
            let (first, aliases) = roots.split_first()?;
            Some(MatchLine {
                vm: &self.vm.name,
                cr3: Cr3(*first),
                aliases: Aliases(aliases),
                address: Hex(search.first()?.0),
                matches: search.matches(),
                complete: search.is_complete(),
            })
        });
        context.answer.records(lines);
    }
}

/// A process that holds the pattern.
#[derive(Clone, Copy, Debug, Serialize)]
struct MatchLine<'a> {
    /// The VM's name.
    vm: &'a str,
    /// The root that names the process.
    cr3: Cr3,
    /// Its other roots.
    aliases: Aliases<'a>,
    /// The virtual address of the first match.
    address: Hex,
    /// The number of matches.
    matches: u64,
    /// Whether all its memory was searched: not so if it maps far more than the VM has.
    complete: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::dispatch::parse;

    #[test]
    fn find_takes_text_and_bytes() {
        let parsed = |line| pattern(&parse(line)?.unwrap());
        assert_eq!(parsed("find web EVIL-42").unwrap().bytes(), b"EVIL-42");
        assert_eq!(parsed("find web 0x7f454c46").unwrap().bytes(), b"\x7fELF");
        assert_eq!(
            parsed("find web \"two  words\" --json").unwrap().bytes(),
            b"two  words"
        );
        assert_eq!(parsed("find web \"--json\"").unwrap().bytes(), b"--json");
        for (line, message) in [
            (
                "find web 0x1",
                "`0x1` is no pattern: behind 0x must be pairs of hexadecimal digits; for text \
                 that begins so, use quotes",
            ),
            ("find web", "`find` needs PATTERN: usage: find VM PATTERN"),
            (
                "find web two words",
                "`find` has no use for `words`: usage: find VM PATTERN",
            ),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), message);
        }
    }
}
