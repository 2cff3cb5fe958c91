//! What the policy is asked in, and what it answers.

use devices::time::{Hertz, HostTicks};

use crate::ids::VcpuId;

/// The lengths of things, in host TSC ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The longest that a VCPU runs before another one is considered.
    pub slice: u64,
    /// The shortest that it runs before a woken one replaces it.
    pub granularity: u64,
    /// The period that caps are percentages of.
    pub period: u64,
}

impl Settings {
    /// Slices of 10 ms, a granularity of 1 ms, periods of 100 ms, for a TSC of `tsc`.
    #[must_use]
    pub(crate) const fn for_tsc(tsc: Hertz) -> Self {
        let millisecond = tsc.get() / 1000 + 1;
        Self {
            slice: 10 * millisecond,
            granularity: millisecond,
            period: 100 * millisecond,
        }
    }
}

/// The next action of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// A run of this VCPU until `until`, unless kicked.
    Run {
        /// The VCPU.
        vcpu: VcpuId,
        /// The time at which to ask again.
        until: HostTicks,
        /// Whether a VCPU of another VM waits for this CPU.
        contended: bool,
        /// The time before which it has nothing to do: it comes early, as nobody else wants the CPU.
        not_before: HostTicks,
    },
    /// The removal of this VCPU's state from the processor: say so with
    /// [`Scheduler::released`](crate::scheduler::Scheduler::released), and ask again.
    Release(VcpuId),
    /// A sleep until `until`, unless kicked.
    Idle {
        /// The time at which to ask again; the end of time for never.
        until: HostTicks,
    },
}

/// The reason why a VCPU cannot be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PinError {
    /// No such CPU.
    #[error("there is no CPU {cpu}: this machine has {cpus}, numbered from 0")]
    NoCpu {
        /// The number given.
        cpu: u32,
        /// The number of CPUs.
        cpus: u32,
    },
    /// No such VCPU.
    #[error("the VM has no such VCPU, or does not run")]
    NoVcpu,
}
