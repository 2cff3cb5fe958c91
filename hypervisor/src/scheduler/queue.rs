//! What the policy remembers of a VM and of a VCPU.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use devices::time::HostTicks;

use super::latency::Latency;

/// A set of CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuSet(u64);

impl CpuSet {
    pub(super) fn insert(&mut self, cpu: usize) {
        debug_assert!(cpu < 64, "there are not that many CPUs");
        self.0 |= 1 << cpu;
    }

    /// Returns whether there is none.
    #[must_use]
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the CPUs in it.
    pub(crate) fn iter(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |cpu| self.0 >> cpu & 1 != 0)
    }
}

/// The scheduling state of a VCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    /// A VCPU with nothing to do, until `wake_at` or until it is woken.
    Blocked { wake_at: HostTicks },
    /// A VCPU in the queue.
    Waiting,
    /// A VCPU on its CPU.
    Running,
}

#[derive(Clone, Debug)]
pub(super) struct VcpuEntry {
    pub(super) state: RunState,
    /// The CPU in whose queue it is.
    pub(super) home: usize,
    pub(super) pin: Option<u32>,
    /// The CPU that its state is in.
    pub(super) loaded_on: Option<usize>,
    /// Virtual time within its VM.
    pub(super) time: u128,
    /// The time at which it was woken, while it waits for the first turn since.
    pub(super) woken_at: Option<HostTicks>,
    pub(super) latency: Latency,
    /// CPU time in all.
    pub(super) received: u64,
}

impl VcpuEntry {
    pub(super) fn new(home: usize, pin: Option<u32>) -> Self {
        Self {
            state: RunState::Blocked {
                wake_at: HostTicks(u64::MAX),
            },
            home,
            pin,
            loaded_on: None,
            time: 0,
            woken_at: None,
            latency: Latency::default(),
            received: 0,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct VmEntry {
    pub(super) weight: u32,
    /// CPU time that it may have in a period.
    pub(super) budget: Option<u64>,
    /// CPU time that it has had in this period.
    pub(super) used: u64,
    pub(super) paused: bool,
    pub(super) stopping: bool,
    /// Virtual time on each CPU.
    pub(super) time: Vec<u128>,
    /// The virtual time within the VM up to which its VCPUs have been served on each CPU; never
    /// goes back.
    pub(super) floor: Vec<u128>,
    pub(super) vcpus: Vec<VcpuEntry>,
}

impl VmEntry {
    pub(super) fn new(weight: u32, budget: Option<u64>, cpus: usize) -> Self {
        Self {
            weight,
            budget,
            used: 0,
            paused: false,
            stopping: false,
            time: alloc::vec![0; cpus],
            floor: alloc::vec![0; cpus],
            vcpus: Vec::new(),
        }
    }

    pub(super) fn is_throttled(&self) -> bool {
        self.budget.is_some_and(|budget| self.used >= budget)
    }

    /// Returns how many of its VCPUs run now.
    pub(super) fn running(&self) -> usize {
        let running = |vcpu: &&VcpuEntry| matches!(vcpu.state, RunState::Running);
        self.vcpus.iter().filter(running).count()
    }

    /// Lets waits that the operator or the cap has caused not count as latency.
    pub(super) fn forget_wakes(&mut self) {
        for vcpu in &mut self.vcpus {
            vcpu.woken_at = None;
        }
    }
}
