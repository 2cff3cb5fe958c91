//! What happens, as people and programs are told: one type for all of it, and one way for it to go.
//!
//! Whoever has something to tell makes an [`Event`] and gives it to a [`Reporter`]: the terminal shows
//! it, if it is for people, and the [door](super::door) tells programs. [`Changes`] finds events by
//! looking at what has changed.
//!
//! To add a kind of event: a variant of [`Event`], with what programs are to know; a line in
//! [`Event::show`], if people are to be told; and who reports it. What the suppression has to tell of
//! its targets (that one has ended, has a new member, has no effect) is to be taken from it in
//! [`Changes`], where it looks at targets.

mod changes;

use alloc::format;
use alloc::string::String;

use serde::Serialize;

use super::records::{Aliases, Cr3, Hex};
use super::terminal::Terminal;

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
