//! `targets`: lists what is suppressed.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use super::{Arguments, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Record;
use crate::operator::clock::HostClock;
use crate::operator::family_tree::Members;
use crate::operator::inspect;
use crate::operator::records::{Aliases, Cr3};
use crate::suppression::snapshot::TargetSnapshot;

pub(super) static COMMAND: Command = Command {
    name: "targets",
    usage: "targets [VM]",
    summary: "list what is suppressed, in one VM or in all",
    details: "\
FACTOR is that of the clock, and that of the timers if it is another. LIMITED tells what holds the
target: `clock` that its guest's scheduler gives it little, by the clock; `budget` that its CPU time
is used up; `lead` that its guest's clock is as far ahead as it may be; `alone` that nobody else on
its VCPU wants the CPU, and the budget alone holds it; `changes` that a fast clock would cost other
VCPUs too much; `idle` that it does not run. USED is its real CPU time, RECENT its share of one CPU
in the last second, in parts of a million, of at most BUDGET. LEAD is how far its guest's clock is
ahead, and was at most. STOPPED is the part of the time for which its VCPUs were kept from running.
A target of more than one process is shown as a tree: by which sign each came into it (`fork`: its
private memory is its parent's; `exec`: its address space took the place of the other on a kernel
stack), for how long it has been there, its CPU time, and whether it is alive, has died or is lost.
SWITCHES is how often a VCPU was seen to switch to it, and SEEN BY by what: by page `walks` through
its root, which cost other processes nothing, or by `loads` of CR3, all of which exit then.",
    parameters: &[Parameter::optional("VM").with(Candidates::Vms)],
    options: &[],
    run,
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vms = match arguments.get("VM") {
        Some(_) => alloc::vec![context.vm(arguments)?],
        None => context.all_vms(),
    };
    let clock = context.clock;
    let now = clock.now();
    let snapshots: Vec<_> = vms
        .iter()
        .map(|vm| (vm, inspect::suppression(vm, now)))
        .collect();
    let lines = snapshots.iter().flat_map(|(vm, snapshot)| {
        let about = About {
            vm: &vm.name,
            lead: snapshot.lead.most(),
            seen_by: inspect::switches_are_seen_by(vm),
        };
        let line = move |target| StatusLine::new(about, target, clock);
        snapshot.targets.iter().filter_map(line)
    });
    context.answer.records(lines);
    Ok(Outcome::Done)
}

/// The facts that hold for all targets of a VM.
#[derive(Clone, Copy, Debug)]
struct About<'a> {
    vm: &'a str,
    lead: i64,
    seen_by: &'static str,
}

/// The state of the suppression of a target.
#[derive(Clone, Copy, Debug, Serialize)]
struct StatusLine<'a> {
    /// The VM's name.
    vm: &'a str,
    /// The root that the operator named.
    cr3: Cr3,
    /// Its other roots, as far as they are known.
    aliases: Aliases<'a>,
    /// The processes that belong to it, with those that are gone.
    members: Members<'a>,
    /// The divisor of timer intervals.
    interval: u32,
    /// The factor by which time is multiplied.
    clock: u32,
    /// The policy by which it is suppressed.
    policy: &'static str,
    /// The limit that holds it back now.
    limited_by: &'static str,
    /// The time for which that limit has held, in milliseconds.
    limited_ms: i64,
    /// The time since it became a target, in milliseconds.
    age_ms: i64,
    /// The real CPU time that it has had as a target, in microseconds.
    cpu_us: i64,
    /// The CPU time that it has had in the last second, in millionths of one CPU.
    recent_ppm: Option<u64>,
    /// The most that it has had in any second, in millionths of one CPU.
    highest_ppm: Option<u64>,
    /// The CPU time that it may have, in millionths of one CPU; `None` for any.
    budget_ppm: Option<u32>,
    /// The lead of its guest's clock, to be given back, in microseconds.
    lead_us: i64,
    /// The most that it was ahead by.
    highest_lead_us: i64,
    /// The part of the time for which its VCPUs were kept from running it, in thousandths.
    stopped_permille: u64,
    /// The number of switches to it that were seen.
    switch_ins: u64,
    /// The mechanism by which they are seen.
    seen_by: &'static str,
}

impl<'a> StatusLine<'a> {
    fn new(about: About<'a>, target: &'a TargetSnapshot, clock: &'a HostClock) -> Option<Self> {
        let (first, aliases) = target.named_roots.split_first()?;
        let micros = |ticks: u64| clock.micros_of(i64::try_from(ticks).unwrap_or(i64::MAX));
        let second = clock.fraction_of_second(1);
        let of = |part: u64, all: u64, scale: u64| {
            (u128::from(part) * u128::from(scale) / u128::from(all.max(1))) as u64
        };
        let factors = target.order.factors;
        Some(Self {
            vm: about.vm,
            cr3: Cr3(*first),
            aliases: Aliases(aliases),
            members: Members {
                members: &target.members,
                clock,
            },
            interval: factors.interval.get(),
            clock: factors.clock.get(),
            policy: target.order.policy.name(),
            limited_by: target.limit.name(),
            limited_ms: micros(target.limit_age) / 1000,
            age_ms: micros(target.age) / 1000,
            cpu_us: micros(target.used),
            recent_ppm: target.budget.map(|it| of(it.recent, second, 1_000_000)),
            highest_ppm: target.budget.map(|it| of(it.highest, second, 1_000_000)),
            budget_ppm: target.budget.map(|it| it.share.millionths()),
            lead_us: clock.micros_of(about.lead),
            highest_lead_us: clock.micros_of(target.highest_lead),
            stopped_permille: of(target.stopped, target.age, 1000),
            switch_ins: target.switch_ins,
            seen_by: about.seen_by,
        })
    }

    fn factor(&self) -> alloc::string::String {
        if self.interval == self.clock {
            self.clock.to_string()
        } else {
            alloc::format!("{}/{}", self.clock, self.interval)
        }
    }
}

impl Record for StatusLine<'_> {
    const HEADING: &'static str = "VM               CR3            FACTOR  POLICY   LIMITED     FOR ms   \
         USED ms   RECENT   BUDGET     LEAD ms (MOST)  STOPPED  SWITCHES  SEEN BY  ALIASES";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_any = |number: Option<u64>| match number {
            Some(number) => number.to_string(),
            None => "any".into(),
        };
        write!(
            f,
            "{:<16} {:<14} {:>6}  {:<8} {:<8} {:>9} {:>9} {:>8} {:>8} {:>7}.{:01} ({:>4}) {:>6}.{:01} %  {:>8}  {:<7}  {}{}",
            self.vm,
            self.cr3.0.to_string(),
            self.factor(),
            self.policy,
            self.limited_by,
            self.limited_ms,
            self.cpu_us / 1000,
            or_any(self.recent_ppm),
            or_any(self.budget_ppm.map(u64::from)),
            self.lead_us / 1000,
            self.lead_us.unsigned_abs() / 100 % 10,
            self.highest_lead_us / 1000,
            self.stopped_permille / 10,
            self.stopped_permille % 10,
            self.switch_ins,
            self.seen_by,
            self.aliases,
            self.members
        )
    }
}

#[cfg(test)]
mod tests {
    use devices::time::{Hertz, HostTicks};

    use super::*;
    use crate::console::{Answer, Format};
    use crate::suppression::address_space::{Root, RootFormat};
    use crate::suppression::budget::Share;
    use crate::suppression::member::Sign;
    use crate::suppression::notice::End;
    use crate::suppression::order::{Defaults, Order, Policy};
    use crate::suppression::snapshot::{BudgetUse, Limit, MemberSnapshot};
    use crate::suppression::{Factor, Factors};

    const MS: u64 = 1_000_000;

    fn shown(target: &TargetSnapshot, format: Format) -> alloc::string::String {
        let clock = HostClock::with(Hertz::new(1_000_000_000), || HostTicks(0));
        let about = About {
            vm: "web",
            lead: -1_500_000,
            seen_by: "walks",
        };
        let mut screen = alloc::vec::Vec::new();
        let line = StatusLine::new(about, target, &clock).unwrap();
        Answer::new(&mut screen, format).records([line]);
        alloc::string::String::from_utf8(screen).unwrap()
    }

    fn member(cr3: u64, parent: Option<u64>, sign: Sign, ended: Option<End>) -> MemberSnapshot {
        let root = |cr3| Root::new(cr3, RootFormat::Long);
        MemberSnapshot {
            root: root(cr3),
            parent: parent.map(root),
            sign,
            age: 3 * MS,
            used: 2 * MS,
            ended,
        }
    }

    #[test]
    fn a_family_is_a_tree() {
        let mut target = target();
        target.members.extend([
            member(0x5000, Some(0x1000), Sign::Fork, Some(End::Died)),
            member(0x6000, Some(0x1000), Sign::Fork, None),
            member(0x7000, Some(0x5000), Sign::Exec, None),
        ]);
        let table = shown(&target, Format::Table);
        let tree: alloc::vec::Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            tree,
            [
                "  0x1000 named for 3 ms, used 2 ms, alive",
                "    0x5000 fork for 3 ms, used 2 ms, died",
                "      0x7000 exec for 3 ms, used 2 ms, alive",
                "    0x6000 fork for 3 ms, used 2 ms, alive",
            ]
        );
        let json = shown(&target, Format::Json);
        let last = r#"{"cr3":"0x7000","parent":"0x5000","sign":"exec","age_ms":3,"cpu_us":2000,"state":"alive"}]"#;
        assert!(json.contains(last), "{json}");
    }

    fn target() -> TargetSnapshot {
        let factors = Factors::both(Factor::new(1000).unwrap());
        let root = |cr3| Root::new(cr3, RootFormat::Long);
        TargetSnapshot {
            named_roots: alloc::vec![root(0x1000), root(0x2000)],
            roots: alloc::vec![root(0x1000), root(0x2000)],
            members: alloc::vec![member(0x1000, None, Sign::Named, None)],
            order: Order::new(factors, Defaults::default()),
            budget: Some(BudgetUse {
                share: Share::of_one_cpu(1000),
                recent: MS / 2,
                highest: MS * 3 / 4,
            }),
            switch_ins: 321,
            used: 12 * MS,
            stopped: 125 * MS,
            age: 10_000 * MS,
            highest_lead: 7 * MS as i64,
            limit: Limit::Budget,
            limit_age: 42 * MS,
        }
    }

    #[test]
    fn a_table_for_people() {
        assert_eq!(
            shown(&target(), Format::Table),
            "VM               CR3            FACTOR  POLICY   LIMITED     FOR ms   USED ms   RECENT   \
             BUDGET     LEAD ms (MOST)  STOPPED  SWITCHES  SEEN BY  ALIASES\r\n\
             web              0x1000           1000  bounded  budget          42        12      500     \
             1000      -1.5 (   7)      1.2 %       321  walks    0x2000\r\n"
        );
    }

    #[test]
    fn json_for_programs() {
        let json = shown(&target(), Format::Json);
        for part in [
            "\"limited_by\":\"budget\",\"limited_ms\":42,\"age_ms\":10000,\"cpu_us\":12000",
            "\"recent_ppm\":500,\"highest_ppm\":750,\"budget_ppm\":1000,\"lead_us\":-1500,\"highest_lead_us\":7000",
            "\"stopped_permille\":12,\"switch_ins\":321,\"seen_by\":\"walks\"",
        ] {
            assert!(json.contains(part), "{json}");
        }
    }

    #[test]
    fn without_a_budget_it_may_have_any() {
        let mut target = target();
        target.budget = None;
        target.order.policy = Policy::Paper;
        target.order.factors.interval = Factor::new(10).unwrap();
        let table = shown(&target, Format::Table);
        assert!(table.contains("1000/10  paper "), "{table}");
        assert!(table.contains("  any      any "), "{table}");
    }
}
