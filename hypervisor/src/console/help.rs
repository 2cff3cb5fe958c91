//! What there is to know about each command; and the table of commands, which the parser and
//! the completion go by.

use core::fmt;

/// A command's entry in the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Topic {
    /// The command's name.
    pub name: &'static str,
    /// How to write it.
    pub usage: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// What else is to be known; may be empty.
    pub details: &'static str,
    /// What its first argument is.
    pub argument: Argument,
    /// Its options, apart from `--json`.
    pub options: &'static [&'static str],
}

/// What can be completed as a command's first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// There is none.
    None,
    /// The name of a VM.
    Vm,
    /// The name of a command.
    Command,
}

const PLAIN: Topic = Topic {
    name: "",
    usage: "",
    summary: "",
    details: "",
    argument: Argument::Vm,
    options: &[],
};

/// The commands.
pub(super) const COMMANDS: &[Topic] = &[
    Topic {
        name: "help",
        usage: "help [COMMAND]",
        summary: "list the commands, or explain one",
        argument: Argument::Command,
        ..PLAIN
    },
    Topic {
        name: "vms",
        usage: "vms",
        summary: "list the virtual machines",
        argument: Argument::None,
        ..PLAIN
    },
    Topic {
        name: "ps",
        usage: "ps VM",
        summary: "list the address spaces seen in a VM, with their CPU shares",
        details: "A process is known by its CR3. The list is made from what CR3 held at VM exits, \
                  without a look\ninto the guest; a process that has two roots (page-table \
                  isolation) is listed once, with both.\nShares are of one CPU, over the last \
                  one to two seconds.",
        ..PLAIN
    },
    Topic {
        name: "suppress",
        usage: "suppress VM CR3 [N] [--interval N] [--clock N]",
        summary: "slow a process down to about 1/N of its speed",
        details: "While the process runs, the VM's timer interrupts come at 1/N of their \
                  interval, and its clocks\nrun N times as fast: its scheduler believes that the \
                  process has used up its time.\n\n  CR3             the process, as `ps` shows \
                  it\n  N               for both knobs, 1 to 65535; 1000 if not given\n  \
                  --interval N    just the divisor of the interval\n  --clock N       just the \
                  multiplier of the clock\n\nOf --interval and --clock, one that is not given is \
                  as N, or else as the other.\nSuppressing a target again changes its \
                  factors.\n\n  suppress web 0x1a2b000\n  suppress web 0x1a2b000 50\n  suppress \
                  web 0x1a2b000 --interval 100 --clock 10",
        options: &["--interval", "--clock"],
        ..PLAIN
    },
    Topic {
        name: "targets",
        usage: "targets [VM]",
        summary: "list what is suppressed, in one VM or in all",
        ..PLAIN
    },
    Topic {
        name: "release",
        usage: "release VM CR3|all",
        summary: "let a process, or all of a VM, run at full speed again",
        details: "A target that ends is released by itself.",
        ..PLAIN
    },
    Topic {
        name: "stats",
        usage: "stats VM",
        summary: "show a VM's exits by reason, and the time spent on them",
        details: "Ticks are those of the host's TSC.",
        ..PLAIN
    },
    Topic {
        name: "find",
        usage: "find VM PATTERN",
        summary: "list the processes of a VM whose memory holds a pattern",
        details: "The pages that user mode can reach are searched in each address space that `ps` \
                  knows, by its page\ntables alone. This takes some time, in which guests run on; \
                  Ctrl-C ends it.\n\n  PATTERN   bytes in hexadecimal digits behind 0x, or text, \
                  in quotes if it has spaces; 64 bytes\n            at most\n\n  find web \
                  EVIL-42\n  find web \"two words\"\n  find web 0x7f454c46",
        ..PLAIN
    },
    Topic {
        name: "trace",
        usage: "trace VM [on|off|show [COUNT]|clear]",
        summary: "record a VM's switches, timer interrupts and clock rates in host time",
        details: "The last events are kept, 8192 at most, and shown from the oldest (with COUNT, \
                  the latest so many).\nSwitches are those of CR3, so each costs an exit while \
                  the trace is on; a process with two roots\nswitches between them. Times are \
                  since tarpit's start, as in front of guests' lines.\n\n  trace web on\n  trace \
                  web off\n  trace web show 100",
        ..PLAIN
    },
    Topic {
        name: "attach",
        usage: "attach VM",
        summary: "talk to a VM's own console; Ctrl-] comes back",
        details: "While attached, the output of other VMs is not shown.",
        ..PLAIN
    },
    Topic {
        name: "pause",
        usage: "pause VM",
        summary: "stop a VM, and its clocks with it",
        ..PLAIN
    },
    Topic {
        name: "resume",
        usage: "resume VM",
        summary: "let a paused VM go on",
        ..PLAIN
    },
    Topic {
        name: "stop",
        usage: "stop VM",
        summary: "end a VM, as if its power were cut",
        ..PLAIN
    },
    Topic {
        name: "start",
        usage: "start VM",
        summary: "start a VM that has ended, from its boot modules",
        ..PLAIN
    },
    Topic {
        name: "restart",
        usage: "restart VM",
        summary: "end a VM, if it runs, and start it again",
        ..PLAIN
    },
    Topic {
        name: "pin",
        usage: "pin VM VCPU CPU|any",
        summary: "choose the physical CPU that a VCPU runs on, or let it run on any",
        details: "VCPUs and CPUs are counted from 0. `stats` shows where each VCPU is.\n\n  \
                  pin web 0 1\n  pin web 0 any",
        ..PLAIN
    },
    Topic {
        name: "shutdown",
        usage: "shutdown",
        summary: "end all VMs, and switch the machine off",
        argument: Argument::None,
        ..PLAIN
    },
];

/// The entry of the command `name`.
#[must_use]
pub(super) fn topic(name: &str) -> Option<&'static Topic> {
    COMMANDS.iter().find(|topic| topic.name == name)
}

/// The list of all commands.
#[derive(Clone, Copy, Debug)]
pub struct Overview;

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for topic in COMMANDS {
            writeln!(f, "  {:<20} {}", brief(topic), topic.summary)?;
        }
        f.write_str(
            "\n`help COMMAND` tells more. --json with any command: the answer as JSON, one object \
             a line.\nTab completes, the up arrow recalls, Ctrl-U clears the line, Ctrl-C drops \
             it.\n",
        )
    }
}

/// The usage, as far as it goes in the overview's column.
fn brief(topic: &Topic) -> &'static str {
    topic
        .usage
        .split_once(" [N]")
        .or(topic.usage.split_once(" [on"))
        .map_or(topic.usage, |(brief, _)| brief)
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "usage: {}\n\n{}.", self.usage, self.summary)?;
        if !self.details.is_empty() {
            writeln!(f, "\n{}", self.details)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn the_overview_fits_a_terminal_and_names_every_command() {
        let text = Overview.to_string();
        for topic in COMMANDS {
            assert!(text.contains(topic.summary));
        }
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }

    #[test]
    fn each_topic_fits_a_terminal_and_shows_its_options() {
        for topic in COMMANDS {
            let text = topic.to_string();
            assert!(text.starts_with(&std::format!("usage: {}", topic.name)));
            assert!(text.lines().all(|line| line.len() <= 100), "{text}");
            for option in topic.options {
                assert!(topic.usage.contains(option) && text.contains(option));
            }
        }
    }
}
