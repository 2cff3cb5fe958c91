//! `vms`: lists the VMs.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome};
use crate::console::Record;

pub(super) static COMMAND: Command = Command {
    name: "vms",
    usage: "vms",
    summary: "list the virtual machines",
    details: "",
    parameters: &[],
    options: &[],
    run,
};

fn run(_: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let Context { vms, clock, .. } = *context;
    let lines = vms.ids().filter_map(|id| {
        let info = vms.info(id).ok()?;
        let board = info.vm.as_ref().map(|vm| vm.board.lock());
        // While nobody can change the clock.
        let now = clock.now();
        let guest = board.map(|board| board.clock.now(now).counter);
        let (targets, lead, drift) = info.vm.map_or((0, 0, 0), |vm| {
            let suppression = vm.suppression.lock();
            (
                suppression.targets().iter().count(),
                suppression.lead(now).most(),
                suppression.drift(now).most(),
            )
        });
        Some(VmLine {
            vm: vms.name(id).ok()?.to_owned(),
            state: info.state.name(),
            memory_mib: info.memory.div_ceil(1 << 20),
            vcpus: info.vcpus,
            targets,
            lead_ms: clock.millis(lead),
            drift_ms: clock.millis(drift),
            host_us: clock.micros(now),
            guest_us: guest.map(|counter| clock.ticks_in_micros(counter.0)),
        })
    });
    let lines: Vec<_> = lines.collect();
    Ok(Outcome::list(context, lines))
}

/// A VM.
#[derive(Clone, Debug, Serialize)]
struct VmLine {
    /// Its name.
    vm: String,
    /// The name of its state: `running`, for instance.
    state: &'static str,
    /// Its memory in MiB.
    memory_mib: u64,
    /// The number of its VCPUs.
    vcpus: u32,
    /// The number of its targets.
    targets: usize,
    /// The time that its clock is ahead of real time, to be given back, in milliseconds.
    lead_ms: i64,
    /// The time that its clock is ahead of real time for good, in milliseconds.
    drift_ms: i64,
    /// Host time as of this line, in microseconds since the console opened. In JSON only, as the
    /// next.
    host_us: u64,
    /// The reading of the guest's counters at this time, in microseconds since the VM started: as
    /// its clock has it, which knows of no lead. None once it has ended.
    guest_us: Option<u64>,
}

impl Record for VmLine {
    const HEADING: &'static str =
        "VM               STATE       MEMORY  VCPUS  TARGETS       LEAD      DRIFT";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<16} {:<8} {:>6} MiB {:>6} {:>8} {:>7} ms {:>7} ms",
            self.vm,
            self.state,
            self.memory_mib,
            self.vcpus,
            self.targets,
            self.lead_ms,
            self.drift_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Answer, Format};

    #[test]
    fn a_clock_may_be_behind_real_time() {
        let line = VmLine {
            vm: "web".into(),
            state: "running",
            memory_mib: 512,
            vcpus: 1,
            targets: 0,
            lead_ms: -3,
            host_us: 9_000,
            guest_us: Some(6_000),
            drift_ms: 70_000,
        };
        let mut screen = alloc::vec::Vec::new();
        Answer::new(&mut screen, Format::Table).records([line]);
        assert_eq!(
            str::from_utf8(&screen).unwrap(),
            "VM               STATE       MEMORY  VCPUS  TARGETS       LEAD      DRIFT\r\n\
             web              running     512 MiB      1        0      -3 ms   70000 ms\r\n"
        );
    }
}
