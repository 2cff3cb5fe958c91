//! `resume`: lets a paused VM go on.

use super::{Arguments, Command, CommandError, Context, Outcome, Parameter};
use crate::operator::command::OptionParameter;
use crate::operator::values;

pub(super) static COMMAND: Command = Command {
    name: "resume",
    usage: "resume VM [--clock stands|follows]",
    summary: "let a paused VM go on",
    details: "\
The guest's clock goes on from where it stood, so that for the guest there was no pause; its RTC
shows the time of day, as one with a battery does.

  --clock stands|follows   with `follows` the clock goes on from where it would be without the
                           pause: all timers that were due meanwhile expire at once",
    parameters: &[Parameter::VM],
    options: &[CLOCK],
    run,
};

const CLOCK: OptionParameter = OptionParameter {
    name: "--clock",
    example: "follows",
};

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vm = context.vm_id(arguments)?;
    let clock = arguments.option(CLOCK.name).map(values::after_pause);
    let clock = clock.transpose()?.unwrap_or_default();
    context.vms.resume(vm, clock)?;
    Ok(context.done("resumed"))
}
