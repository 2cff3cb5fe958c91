//! `networks`: shows the networks between VMs, and what goes through them.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use devices::bandwidth::Bandwidth;
use serde::Serialize;

use super::{Arguments, Command, CommandError, Context, Outcome};
use crate::console::Record;
use crate::vm::Nic;

pub(super) static COMMAND: Command = Command {
    name: "networks",
    usage: "networks",
    summary: "show the VMs' network devices, and what they have sent and received",
    details: "A frame is dropped on its way to a VM for which too many wait already. Refused are frames from\n\
              an address that is not the device's, and what is no frame. A device that has sent what its rate\n\
              allows is held: its frames wait in the VM, and none is lost.",
    parameters: &[],
    options: &[],
    run,
};

fn run(_: &Arguments<'_>, context: &mut Context<'_>) -> Result<Outcome, CommandError> {
    let vms = context.vms;
    let running = vms.ids().filter_map(|id| vms.info(id).ok()?.vm);
    let lines = running.flat_map(|vm| {
        let line = |nic: &Nic| NicLine::new(&vm.name, nic);
        vm.nics.iter().map(line).collect::<Vec<_>>()
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort_by(|a, b| a.network.cmp(&b.network));
    Ok(Outcome::list(context, lines))
}

/// A network device.
#[derive(Clone, Debug, Serialize)]
struct NicLine {
    /// The network that it is plugged into.
    network: String,
    /// The VM's name.
    vm: String,
    /// Its address.
    mac: String,
    /// The most that it may send in megabits a second; none if there is no limit.
    rate_mbit: Option<u32>,
    /// The frames that it has sent.
    sent: u64,
    /// Their bytes. In JSON only, as those received.
    sent_bytes: u64,
    /// The frames that it has received.
    received: u64,
    /// Their bytes.
    received_bytes: u64,
    /// The frames for it that were lost, as too many waited.
    dropped: u64,
    /// The frames of its own that could not be sent.
    refused: u64,
    /// The number of times that it was held, having sent what its rate allows.
    held: u64,
}

impl NicLine {
    fn new(vm: &str, nic: &Nic) -> Self {
        let counts = nic.traffic.counts();
        Self {
            network: nic.network.clone(),
            vm: vm.to_owned(),
            mac: alloc::format!("{}", nic.mac),
            rate_mbit: nic.rate.map(Bandwidth::megabits),
            sent: counts.sent,
            sent_bytes: counts.sent_bytes,
            received: counts.received,
            received_bytes: counts.received_bytes,
            dropped: counts.dropped,
            refused: counts.refused,
            held: counts.held,
        }
    }
}

impl Record for NicLine {
    const HEADING: &'static str = "NETWORK      VM           ADDRESS              RATE       SENT   RECEIVED    DROPPED    REFUSED       HELD";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<12} {:<12} {} ", self.network, self.vm, self.mac)?;
        match self.rate_mbit {
            Some(rate) => write!(f, "{rate:>7}")?,
            None => write!(f, "{:>7}", "-")?,
        }
        write!(
            f,
            " {:>10} {:>10} {:>10} {:>10} {:>10}",
            self.sent, self.received, self.dropped, self.refused, self.held
        )
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;

    use devices::switch::Mac;

    use super::*;
    use crate::console::{Answer, Format};

    #[test]
    fn a_device_is_a_line() {
        let nic = Nic {
            network: "lan0".into(),
            mac: Mac([2, 0, 0, 0, 1, 0]),
            rate: Bandwidth::from_megabits(100),
            traffic: Arc::default(),
        };
        nic.traffic.count_refused();
        let unlimited = Nic {
            rate: None,
            ..nic.clone()
        };
        let mut screen = Vec::new();
        Answer::new(&mut screen, Format::Table)
            .records([NicLine::new("web", &nic), NicLine::new("db", &unlimited)]);
        assert_eq!(
            str::from_utf8(&screen).unwrap(),
            "NETWORK      VM           ADDRESS              RATE       SENT   RECEIVED    DROPPED    REFUSED       HELD\r\n\
             lan0         web          02:00:00:00:01:00     100          0          0          0          1          0\r\n\
             lan0         db           02:00:00:00:01:00       -          0          0          0          1          0\r\n"
        );
    }
}
