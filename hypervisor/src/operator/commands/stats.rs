//! `stats`: shows what a VM's exits cost.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Record;
use crate::scheduler::Latency;

pub(super) static COMMAND: Command = Command {
    name: "stats",
    usage: "stats VM",
    summary: "show a VM's exits by reason, and the time spent on them",
    details: "Ticks are those of the host's TSC.",
    parameters: &[Parameter::VM],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm(arguments)?;
    let mut reasons: Vec<(u16, u64, u64)> = Vec::new();
    let (mut exits, mut root_ticks, mut guest_ticks) = (0, 0, 0);
    for statistics in &vm.statistics {
        let statistics = statistics.lock();
        for reason in statistics.reasons() {
            root_ticks += reason.root_ticks;
            match reasons.iter_mut().find(|sum| sum.0 == reason.reason) {
                Some(sum) => {
                    sum.1 += reason.exits;
                    sum.2 += reason.root_ticks;
                }
                None => reasons.push((reason.reason, reason.exits, reason.root_ticks)),
            }
        }
        exits += statistics.total_exits();
        guest_ticks += statistics.guest_ticks();
    }
    reasons.sort_by_key(|sum| core::cmp::Reverse(sum.1));
    let named = |(reason, exits, ticks)| (vmx::exit::reason_name(reason).into(), exits, ticks);
    let mut lines: Vec<(String, u64, u64)> = reasons.into_iter().map(named).collect();
    lines.push(("all-exits".into(), exits, root_ticks));
    lines.push(("guest".into(), exits, guest_ticks));
    let usage = context.vms.cpu_usage(vm.id);
    for (index, vcpu) in usage.iter().enumerate() {
        let pinned = if vcpu.pinned { "-pinned" } else { "" };
        let what = alloc::format!("vcpu{index}-on-cpu{}{pinned}", vcpu.cpu);
        lines.push((what, vcpu.latency.count, vcpu.received));
    }
    let latency = usage
        .iter()
        .fold(Latency::default(), |all, vcpu| all.and(vcpu.latency));
    lines.push(("wait-when-woken".into(), latency.count, latency.total));
    lines.push(("longest-wait-when-woken".into(), 1, latency.max));
    let lines = lines
        .into_iter()
        .map(move |(what, count, ticks)| StatsLine {
            vm: vm.name.clone(),
            what,
            count,
            ticks,
        });
    Ok(Outcome::list(context, lines))
}

/// A reason of VM exits, or a sum.
#[derive(Clone, Debug, Serialize)]
struct StatsLine {
    /// The VM's name.
    vm: String,
    /// The exit reason, or what else is counted.
    what: String,
    /// The number of times that it has happened.
    count: u64,
    /// The host ticks spent on it in root mode.
    ticks: u64,
}

impl Record for StatsLine {
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
