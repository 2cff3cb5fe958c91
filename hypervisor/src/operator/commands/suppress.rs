//! `suppress`: slows a process down.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::console::Format;
use crate::operator::command::OptionParameter;
use crate::operator::inspect;
use crate::operator::records::TargetLine;
use crate::operator::values;
use crate::suppression::address_space::Root;
use crate::suppression::order::{Defaults, Order};
use crate::suppression::{Factor, Factors};

pub(super) static COMMAND: Command = Command {
    name: "suppress",
    usage: "suppress VM CR3 [N] [--interval N] [--clock N] [--policy P] [--cap %] [--lead T] [--follow W]",
    summary: "slow a process down to at most 1/N of its speed",
    details: "\
While the process runs, the VM's timer interrupts come at 1/N of their interval, and its clocks
run N times as fast: its scheduler believes that the process has used up its time. What the clock
gains is given back while others run, and the process has a budget of CPU time.

  CR3             the process, as `ps` shows it
  N               for both knobs, 1 to 65535; 1000 if not given
  --interval N    just the divisor of the interval
  --clock N       just the multiplier of the clock
  --policy P      `bounded`, or `paper`: no budget, and the clock stays ahead by what it gains
  --cap %         the CPU time that it may have, of one CPU; 100/N if not given
  --lead T[,T]    how far the clock may be ahead: while another VM wants the CPU, and while none
                  does; 8 to 1000 milliseconds, 250,1000 if not given
  --follow W      the descendants that are suppressed with it: `all`, which is so if it is not
                  given, `none`, those that it `fork`s, or the programs that it becomes by `exec`

The process and its descendants are one target, of at most 64 that live: they have one budget, all
together. `targets` shows them. When one comes or goes, the console tells.

Of --interval and --clock, one that is not given is as N, or else as the other. The policy and the
lead that are not given are those of the VM. Suppressing a target again changes what is given.

  suppress web 0x1a2b000
  suppress web 0x1a2b000 50 --cap 0.5
  suppress web 0x1a2b000 --interval 100 --clock 10 --policy paper",
    parameters: &[
        Parameter::VM,
        Parameter::required("CR3"),
        Parameter::optional("N"),
    ],
    options: &[INTERVAL, CLOCK, POLICY, CAP, LEAD, FOLLOW],
    run,
};

const INTERVAL: OptionParameter = OptionParameter {
    name: "--interval",
    example: "1000",
};

const CLOCK: OptionParameter = OptionParameter {
    name: "--clock",
    example: "1000",
};

const POLICY: OptionParameter = OptionParameter {
    name: "--policy",
    example: "paper",
};

const CAP: OptionParameter = OptionParameter {
    name: "--cap",
    example: "0.5",
};

const LEAD: OptionParameter = OptionParameter {
    name: "--lead",
    example: "250,1000",
};

const FOLLOW: OptionParameter = OptionParameter {
    name: "--follow",
    example: "none",
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let cr3 = values::cr3(arguments.required("CR3")?)?;
    // What is wrong with the line is told before the VM is looked for.
    order(arguments, Defaults::default())?;
    let vm = context.vm(arguments)?;
    let defaults = vm.suppression.lock().defaults();
    let order = order(arguments, defaults)?;
    let root = Root::new(cr3, inspect::root_format(&vm));
    if let Some(target) = inspect::suppress(&vm, root, order, context.clock.now())? {
        let line = TargetLine::new(&vm.name, &target.roots, &target.order);
        context.answer.records(line.map(|line| TargetLine {
            slower_clock: target.slower_clock,
            ..line
        }));
        if let (Some(clock), Format::Table) = (target.slower_clock, context.answer.format()) {
            context.answer.text(format_args!(
                "note: exits are dear here: the clock runs at most {clock} x as fast, and the budget \
                 holds the process back\n"
            ));
        }
    }
    Ok(Outcome::Done)
}

/// Parses how the process is to be suppressed; what is not given is as `defaults` say.
fn order(arguments: &Arguments<'_>, defaults: Defaults) -> Result<Order, CommandError> {
    let option = |parameter: OptionParameter| arguments.option(parameter.name);
    let policy = option(POLICY).map(values::policy).transpose()?;
    let bounds = option(LEAD).map(values::lead_bounds).transpose()?;
    let follow = option(FOLLOW).map(values::follow).transpose()?;
    Ok(Order {
        factors: factors(arguments)?,
        policy: policy.unwrap_or(defaults.policy),
        cap: option(CAP).map(values::cap).transpose()?,
        bounds: bounds.unwrap_or(defaults.bounds),
        follow: follow.unwrap_or_default(),
    })
}

/// Parses how strongly the process is to be suppressed.
fn factors(arguments: &Arguments<'_>) -> Result<Factors, CommandError> {
    let factor = |word: Option<&str>| word.map(values::factor).transpose();
    let both = factor(arguments.get("N"))?;
    let interval = factor(arguments.option(INTERVAL.name))?;
    let clock = factor(arguments.option(CLOCK.name))?;
    // One knob alone turns the other along, unless N says otherwise.
    let default = both.or(interval).or(clock).unwrap_or(Factor::DEFAULT);
    Ok(Factors {
        interval: interval.unwrap_or(default),
        clock: clock.unwrap_or(default),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::dispatch::parse;
    use crate::suppression::budget::Share;
    use crate::suppression::order::{Follow, Policy};

    fn suppressed(line: &str) -> (u32, u32) {
        let arguments = parse(line).unwrap().unwrap();
        assert_eq!(arguments.command().name, "suppress");
        assert_eq!(arguments.required("VM"), Ok("web"));
        assert_eq!(
            values::cr3(arguments.required("CR3").unwrap()),
            Ok(0x1a2b000)
        );
        let factors = factors(&arguments).unwrap();
        (factors.interval.get(), factors.clock.get())
    }

    #[test]
    fn the_rest_is_as_the_vm_has_it_unless_it_is_given() {
        let defaults = Defaults {
            policy: Policy::Paper,
            bounds: "20,30".parse().unwrap(),
        };
        let parsed = |line| order(&parse(line).unwrap().unwrap(), defaults);
        let plain = parsed("suppress web 0x5000").unwrap();
        assert_eq!(
            (plain.policy, plain.bounds),
            (Policy::Paper, defaults.bounds)
        );
        assert_eq!(plain.cap, None);
        let all = "suppress web 0x5000 9 --policy bounded --cap 0.25% --lead 100";
        let all = parsed(all).unwrap();
        assert_eq!(all.policy, Policy::Bounded);
        assert_eq!(all.cap, Share::from_millionths(2_500));
        assert_eq!(all.bounds, "100,100".parse().unwrap());
        assert_eq!((plain.follow, all.follow), (Follow::All, Follow::All));
        let none = parsed("suppress web 0x5000 --follow none").unwrap();
        assert_eq!(none.follow, Follow::None);
    }

    #[test]
    fn factors_default_to_each_other_and_then_to_1000() {
        assert_eq!(suppressed("suppress web 0x1a2b000"), (1000, 1000));
        assert_eq!(suppressed("suppress web 1a2b000 50"), (50, 50));
        assert_eq!(suppressed("suppress web 0x1A2B000 --interval 7"), (7, 7));
        assert_eq!(suppressed("suppress web 0x1a2b000 --clock=7"), (7, 7));
        assert_eq!(
            suppressed("suppress --clock 65535 web --interval 1 0x1a2b000"),
            (1, 65535)
        );
        assert_eq!(suppressed("suppress web 0x1a2b000 9 --clock 3"), (9, 3));
    }
}
