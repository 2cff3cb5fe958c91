//! What happens, as people and programs are told: one type for all of it, and one way for it to go.
//!
//! Whoever has something to tell makes an [`Event`] and gives it to a [`Reporter`]: the terminal shows
//! it, if it is for people, and the [door](super::door) tells programs. [`Changes`] finds events by
//! looking at what has changed.
//!
//! To add a kind of event: a variant of [`Event`], with what programs are to know; a line in
//! [`Event::show`], if people are to be told; and who reports it. What the suppression has to tell of
//! its targets comes as notices ([`crate::suppression::notice`]).

mod changes;

use alloc::format;
use alloc::string::String;

use serde::Serialize;

use super::notices::NoticeLine;
use super::records::{Aliases, Cr3, Hex};
use super::terminal::Terminal;
use crate::console::Row;
use crate::suppression::notice::{Notice, Subject};

pub(super) use changes::Changes;

/// Something that has happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event<'a> {
    /// A VM's change to another state.
    VmState {
        /// The VM's name.
        vm: &'a str,
        /// The name of the new state, as `vms` shows it.
        state: &'a str,
    },
    /// The end of a VM.
    VmEnded {
        /// The VM's name.
        vm: &'a str,
        /// The reason, in words.
        reason: String,
        /// The VCPU that came to this end, and a description of what it was doing, if the guest did
        /// not mean it.
        #[serde(skip_serializing_if = "Option::is_none")]
        crash: Option<Crash<'a>>,
    },
    /// A process that is suppressed from now on.
    TargetIn {
        /// The VM's name.
        vm: &'a str,
        /// The root by which it was named.
        cr3: Cr3,
        /// Its other roots.
        aliases: Aliases<'a>,
        /// The divisor of timer intervals.
        interval: u32,
        /// The factor by which time is multiplied.
        clock: u32,
    },
    /// A process that is suppressed no more: released, or gone.
    TargetOut {
        /// The VM's name.
        vm: &'a str,
        /// The root by which it was named.
        cr3: Cr3,
    },
    /// A process that has come into a target's family.
    MemberJoined(NoticeLine<'a>),
    /// The end of a member of a target's family.
    MemberEnded(NoticeLine<'a>),
    /// The end of the last member, of which no descendant was found.
    TargetEnded(NoticeLine<'a>),
    /// A descendant that is not followed, as its family is full.
    FamilyFull(NoticeLine<'a>),
    /// A suppression without effect.
    WithoutEffect(NoticeLine<'a>),
    /// A target that its budget holds back.
    LimitedByBudget(NoticeLine<'a>),
    /// The number of events about targets that were left out.
    NoticesLeftOut(NoticeLine<'a>),
    /// The distance by which a VM's clock is ahead, when that has changed.
    ClockLead {
        /// The VM's name.
        vm: &'a str,
        /// The part that is to be given back, in milliseconds.
        lead_ms: i64,
        /// The part that stays, in milliseconds.
        drift_ms: i64,
    },
    /// A process that a rule holds for.
    RuleMatch {
        /// The number of the rule.
        rule: u32,
        /// The VM's name.
        vm: &'a str,
        /// The root by which the process is named.
        cr3: Cr3,
        /// The condition of the rule, in words.
        condition: String,
        /// The virtual address where the pattern is; `None` for a rule of another kind.
        address: Option<Hex>,
        /// The share of one CPU that it had, in thousandths; `None` for a rule of another kind.
        cpu_permille: Option<u32>,
        /// The factor by which it is suppressed now because of the rule.
        suppressed: Option<u32>,
        /// The reason why it is not suppressed though the rule says so.
        refused: Option<String>,
    },
    /// A warning or an error of tarpit's.
    Log {
        /// The message, as in the log.
        message: &'a str,
    },
}

/// The circumstances in which a VCPU came to an end that its guest did not mean.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Crash<'a> {
    /// The number of the VCPU.
    pub vcpu: u32,
    /// Its state, in lines.
    pub state: &'a str,
}

impl<'a> Event<'a> {
    /// Returns the event that `notice` tells of, in the VM of this name.
    pub(super) const fn of_target(vm: &'a str, notice: &Notice) -> Self {
        let line = NoticeLine::new(vm, notice);
        match notice.subject {
            Subject::Joined { .. } => Self::MemberJoined(line),
            Subject::MemberEnded { .. } => Self::MemberEnded(line),
            Subject::Ended(_) => Self::TargetEnded(line),
            Subject::Full { .. } => Self::FamilyFull(line),
            Subject::WithoutEffect { .. } => Self::WithoutEffect(line),
            Subject::LimitedByBudget => Self::LimitedByBudget(line),
            Subject::LeftOut(_) => Self::NoticesLeftOut(line),
        }
    }
}

impl Event<'_> {
    /// Shows people what they are to know of it.
    fn show(&self, terminal: &Terminal) {
        match self {
            Self::VmEnded { vm, reason, crash } => {
                if let Some(Crash { vcpu, state }) = crash {
                    terminal.message(format_args!(
                        "vm {vm}: state of VCPU {vcpu} at its end:\n{state}"
                    ));
                }
                terminal.message(format_args!("vm {vm} ended: {reason}\n"));
            }
            Self::RuleMatch {
                rule,
                vm,
                cr3,
                condition,
                address,
                suppressed,
                refused,
                ..
            } => {
                let place = address.map_or_else(String::new, |at| format!(" at {at}"));
                let outcome = match (suppressed, refused) {
                    (Some(factor), _) => format!(": suppressed by {factor}"),
                    (None, Some(why)) => format!(": not suppressed: {why}"),
                    (None, None) => String::new(),
                };
                terminal.message(format_args!(
                    "vm {vm}: rule {rule} ({condition}{place}) holds for {}{outcome}\n",
                    cr3.0
                ));
            }
            Self::MemberJoined(line)
            | Self::MemberEnded(line)
            | Self::TargetEnded(line)
            | Self::FamilyFull(line)
            | Self::WithoutEffect(line)
            | Self::LimitedByBudget(line)
            | Self::NoticesLeftOut(line) => terminal.message(format_args!("{}\n", Row(line))),
            // The operator has asked for it, or sees it in lists, or it has been shown.
            Self::VmState { .. }
            | Self::TargetIn { .. }
            | Self::TargetOut { .. }
            | Self::ClockLead { .. }
            | Self::Log { .. } => {}
        }
    }
}

/// A listener for all events: the door, for programs.
pub(super) trait Listener {
    /// Takes note of `event`, at `us` microseconds since the console opened.
    fn tell(&mut self, us: u64, event: &Event<'_>);
}

/// The ways that events go.
pub(super) struct Reporter<'a, L> {
    /// The people's.
    pub terminal: &'a Terminal,
    /// The programs', if there is one.
    pub listener: Option<&'a mut L>,
}

impl<L: Listener> Reporter<'_, L> {
    /// Tells all of `event`.
    pub(super) fn report(&mut self, event: &Event<'_>) {
        event.show(self.terminal);
        if let Some(listener) = &mut self.listener {
            let clock = self.terminal.clock();
            listener.tell(clock.micros(clock.now()), event);
        }
    }
}
