//! `trace`: records what happens in a VM, in host time.

use core::fmt;

use devices::clock::Rate;
use serde::Serialize;

use super::{Arguments, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Record;
use crate::numbers::decimal;
use crate::operator::error::did_you_mean;
use crate::operator::notices::event_name;
use crate::operator::records::Cr3;
use crate::trace::{Entry, Event};

pub(super) static COMMAND: Command = Command {
    name: "trace",
    usage: "trace VM [on|off|show [COUNT]|clear]",
    summary: "record a VM's switches, timer interrupts and clock rates in host time",
    details: "\
The last events are kept, 8192 at most, and shown from the oldest (with COUNT, the latest so many).
Switches are those of CR3, so each costs an exit while the trace is on; a process with two roots
switches between them. What the console tells of targets is among the events. Times are since
tarpit's start, as in front of guests' lines.

  trace web on
  trace web off
  trace web show 100",
    parameters: &[
        Parameter::VM,
        Parameter::optional("ACTION").with(Candidates::Words(&ACTIONS)),
        Parameter::optional("COUNT"),
    ],
    options: &[],
    run,
};

const ACTIONS: [&str; 4] = ["on", "off", "show", "clear"];

/// The action on the record of a VM's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A report whether it is made, and how long it is.
    Status,
    /// The start of recording.
    On,
    /// The end of recording.
    Off,
    /// The output of the latest so many events.
    Show(usize),
    /// The removal of all events from it.
    Clear,
}

/// Parses what is to be done.
fn action(arguments: &Arguments<'_>) -> Result<Action, CommandError> {
    let count = arguments.get("COUNT");
    let action = match arguments.get("ACTION") {
        None => Action::Status,
        Some("on") => Action::On,
        Some("off") => Action::Off,
        Some("clear") => Action::Clear,
        Some("show") => return Ok(Action::Show(count.map_or(Ok(usize::MAX), parse_count)?)),
        Some(word) => {
            let remedy = did_you_mean(word, ACTIONS);
            return Err(CommandError::new(
                "bad_action",
                format_args!(
                    "`trace` cannot `{word}`: {}",
                    remedy
                        .as_deref()
                        .unwrap_or("it can `on`, `off`, `show` and `clear`")
                ),
            ));
        }
    };
    match count {
        Some(word) => Err(CommandError::unexpected(&COMMAND, word)),
        None => Ok(action),
    }
}

fn parse_count(word: &str) -> Result<usize, CommandError> {
    let count = decimal(word).filter(|count| *count > 0);
    count.ok_or_else(|| {
        CommandError::new(
            "bad_count",
            format_args!("`{word}` is no number of events: it must be a whole number from 1"),
        )
    })
}

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let action = action(arguments)?;
    let vm = context.vm(arguments)?;
    match action {
        Action::Show(count) => {
            let clock = *context.clock;
            let line =
                move |entry: Entry| EventLine::new(clock.nanos(entry.at), entry.vcpu, entry.event);
            let lines = vm.trace.latest(count).into_iter().map(line);
            return Ok(Outcome::list(context, lines));
        }
        Action::Status => {}
        Action::On => vm.trace.start().map_err(|_| {
            CommandError::new(
                "no_memory",
                "no memory for a trace: a VM with less would leave some",
            )
        })?,
        Action::Off => vm.trace.stop(),
        Action::Clear => vm.trace.clear(),
    }
    // Loads of CR3 exit from now on, or no longer.
    vm.suppression_changed();
    context.answer.records([TraceLine {
        vm: &vm.name,
        on: vm.trace.is_on(),
        events: vm.trace.len(),
    }]);
    Ok(Outcome::Done)
}

/// Whether a VM's events are recorded: the answer to all but `trace VM show`.
#[derive(Clone, Copy, Debug, Serialize)]
struct TraceLine<'a> {
    /// The VM's name.
    vm: &'a str,
    /// Whether events are recorded.
    on: bool,
    /// The number of events kept.
    events: usize,
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

/// An event. Its JSON is short, for there are many, and has what belongs to it.
#[derive(Clone, Copy, Debug, Serialize)]
struct EventLine {
    /// The time of the event, in nanoseconds of host time since the console opened.
    ns: u64,
    /// The VCPU's number, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpu: Option<u32>,
    /// The name of the event.
    event: &'static str,
    /// The address space, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<Cr3>,
    /// The rate of timers from now on, as a multiple of real time.
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<f64>,
    /// The rate of counters from now on, as a multiple of real time.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<f64>,
}

impl EventLine {
    fn new(ns: u64, vcpu: Option<u32>, event: Event) -> Self {
        let times = |rate: Rate| rate.bits() as f64 / Rate::ONE.bits() as f64;
        let (root, rates) = match event {
            Event::SwitchIn(root) | Event::SwitchOut(root) => (Some(Cr3(root)), None),
            Event::Rates(rates) => (None, Some(rates)),
            Event::Notice(notice) => (Some(Cr3(notice.target)), None),
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
                Event::Notice(notice) => event_name(&notice),
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

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};

    use devices::clock::Rates;

    use super::*;
    use crate::console::{Answer, Format};
    use crate::operator::dispatch::parse;
    use crate::suppression::address_space::{Root, RootFormat};

    fn parsed(line: &str) -> Result<Action, CommandError> {
        let arguments = parse(line)?.unwrap();
        assert_eq!(arguments.required("VM"), Ok("web"));
        action(&arguments)
    }

    #[test]
    fn traces_are_begun_shown_and_ended() {
        for (line, action) in [
            ("trace web", Action::Status),
            ("trace web on", Action::On),
            ("trace web off", Action::Off),
            ("trace web clear", Action::Clear),
            ("trace web show", Action::Show(usize::MAX)),
            ("trace web show 100 --json", Action::Show(100)),
        ] {
            assert_eq!(parsed(line), Ok(action), "{line}");
        }
        for (line, message) in [
            (
                "trace web shwo",
                "`trace` cannot `shwo`: did you mean `show`?",
            ),
            (
                "trace web frob",
                "`trace` cannot `frob`: it can `on`, `off`, `show` and `clear`",
            ),
            (
                "trace web show 0",
                "`0` is no number of events: it must be a whole number from 1",
            ),
            (
                "trace web on 7",
                "`trace` has no use for `7`: usage: trace VM [on|off|show [COUNT]|clear]",
            ),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), message, "{line}");
        }
    }

    fn shown(format: Format, event: Event) -> String {
        let mut screen = std::vec::Vec::new();
        let vcpu = (!matches!(event, Event::Rates(_))).then_some(1);
        Answer::new(&mut screen, format).record(&EventLine::new(1_234_567, vcpu, event));
        String::from_utf8(screen).unwrap().trim_end().into()
    }

    #[test]
    fn an_event_has_what_belongs_to_it() {
        let root = Root::new(0x5000, RootFormat::Long);
        assert_eq!(
            shown(Format::Json, Event::SwitchIn(root)),
            r#"{"ns":1234567,"vcpu":1,"event":"switch-in","root":"0x5000"}"#
        );
        assert_eq!(
            shown(Format::Json, Event::Timer),
            r#"{"ns":1234567,"vcpu":1,"event":"timer"}"#
        );
        let rates = Rates {
            counter: Rate::ONE,
            timer: Rate::times(2).unwrap(),
        };
        assert_eq!(
            shown(Format::Json, Event::Rates(rates)),
            r#"{"ns":1234567,"event":"rates","interval":2.0,"clock":1.0}"#
        );
        assert_eq!(
            shown(Format::Table, Event::Rates(rates)),
            "     1234.567     -  rates      interval 1/2, clock 1x"
        );
    }
}
