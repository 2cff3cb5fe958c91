//! `pin`: chooses the physical CPU that a VCPU runs on.

use super::{Arguments, Candidates, Command, CommandError, Context, Outcome, Parameter};
use crate::operator::values;

pub(super) static COMMAND: Command = Command {
    name: "pin",
    usage: "pin VM VCPU CPU|any",
    summary: "choose the physical CPU that a VCPU runs on, or let it run on any",
    details: "\
VCPUs and CPUs are counted from 0. `stats` shows where each VCPU is.

  pin web 0 1
  pin web 0 any",
    parameters: &[
        Parameter::VM,
        Parameter::required("VCPU"),
        Parameter::required("CPU").with(Candidates::Words(&[ANY])),
    ],
    options: &[],
    run,
};

const ANY: &str = "any";

fn run(arguments: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vcpu = values::cpu_number(arguments.required("VCPU")?)?;
    let cpu = match arguments.required("CPU")? {
        ANY => None,
        word => Some(values::cpu_number(word)?),
    };
    let vm = context.vm_id(arguments)?;
    context.vms.pin(vm, vcpu, cpu)?;
    Ok(context.done("pinned"))
}
