//! `suppress`: slows a process down.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::operator::command::OptionParameter;
use crate::operator::inspect;
use crate::operator::records::TargetLine;
use crate::operator::values;
use crate::suppression::address_space::Root;
use crate::suppression::{Factor, Factors};

pub(super) static COMMAND: Command = Command {
    name: "suppress",
    usage: "suppress VM CR3 [N] [--interval N] [--clock N]",
    summary: "slow a process down to about 1/N of its speed",
    details: "\
While the process runs, the VM's timer interrupts come at 1/N of their interval, and its clocks
run N times as fast: its scheduler believes that the process has used up its time.

  CR3             the process, as `ps` shows it
  N               for both knobs, 1 to 65535; 1000 if not given
  --interval N    just the divisor of the interval
  --clock N       just the multiplier of the clock

Of --interval and --clock, one that is not given is as N, or else as the other.
Suppressing a target again changes its factors.

  suppress web 0x1a2b000
  suppress web 0x1a2b000 50
  suppress web 0x1a2b000 --interval 100 --clock 10",
    parameters: &[
        Parameter::VM,
        Parameter::required("CR3"),
        Parameter::optional("N"),
    ],
    options: &[INTERVAL, CLOCK],
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

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let cr3 = values::cr3(arguments.required("CR3")?)?;
    let factors = factors(arguments)?;
    let vm = context.vm(arguments)?;
    let root = Root::new(cr3, inspect::root_format(&vm));
    if let Some(target) = inspect::suppress(&vm, root, factors)? {
        let line = TargetLine::new(&vm.name, &target.roots, target.factors);
        context.answer.records(line);
    }
    Ok(Outcome::Done)
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
    use crate::operator::arguments::parse;

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
