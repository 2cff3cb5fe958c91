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
    /// What caps are percentages of.
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

/// What a CPU is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Run this VCPU until then, unless kicked.
    Run {
        /// The VCPU.
        vcpu: VcpuId,
        /// When to ask again.
        until: HostTicks,
        /// Whether a VCPU of another VM waits for this CPU.
        contended: bool,
    },
    /// Take the state of this VCPU out of the processor, say so with [`Policy::released`](super::Policy::released), and
    /// ask again.
    Release(VcpuId),
    /// Sleep until then, unless kicked.
    Idle {
        /// When to ask again; the end of time for never.
        until: HostTicks,
    },
}

/// Why a VCPU cannot be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PinError {
    /// No such CPU.
    #[error("there is no CPU {cpu}: this machine has {cpus}, numbered from 0")]
    NoCpu {
        /// The number given.
        cpu: u32,
        /// How many there are.
        cpus: u32,
    },
    /// No such VCPU.
    #[error("the VM has no such VCPU, or does not run")]
    NoVcpu,
}
