//! A VCPU for tests of what never lets one run.

use alloc::string::String;

use devices::time::HostTicks;

use super::Runnable;
use crate::vcpu::backend::Refused;
use crate::vcpu::{HostCpu, RunExit};

/// A VCPU that no CPU loads.
pub(crate) struct IdleVcpu;

impl Runnable for IdleVcpu {
    unsafe fn load(&mut self, _: &HostCpu) -> Result<(), Refused> {
        unreachable!("no CPU asks the scheduler")
    }

    fn unload(&mut self) -> Result<(), Refused> {
        unreachable!("it has not been loaded")
    }

    fn run(&mut self, _: HostTicks) -> RunExit {
        unreachable!("it has not been loaded")
    }

    fn deadline(&self) -> HostTicks {
        HostTicks(u64::MAX)
    }

    fn dump(&self) -> String {
        String::new()
    }
}
