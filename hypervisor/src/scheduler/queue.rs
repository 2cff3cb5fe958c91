//! What is remembered of a VM and of a VCPU, on whatever CPU it is.
#![forbid(unsafe_code)]

use alloc::boxed::Box;

use devices::time::HostTicks;

use super::latency::Latency;
use super::policy::Budget;
use crate::ids::VmId;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

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

/// A VCPU's own state. Only who has its home locked changes it.
#[derive(Clone, Debug)]
pub(super) struct VcpuEntry {
    pub(super) state: RunState,
    pub(super) pin: Option<u32>,
    /// Whether its state is in the processor of its home.
    pub(super) loaded: bool,
    /// Virtual time within its VM.
    pub(super) time: u128,
    /// The time at which it was woken, while it waits for the first turn since.
    pub(super) woken_at: Option<HostTicks>,
    pub(super) latency: Latency,
    /// CPU time in all.
    pub(super) received: u64,
}

impl VcpuEntry {
    /// Returns whether a CPU runs it or has its state, so that it cannot be moved.
    pub(super) const fn is_held(&self) -> bool {
        self.loaded || matches!(self.state, RunState::Running)
    }
}

/// A VCPU, and where it is.
#[derive(Debug)]
pub(super) struct VcpuSlot {
    /// The CPU in whose queue it is. Only who has that one and the next one locked changes it.
    home: AtomicU32,
    pub(super) entry: Mutex<VcpuEntry>,
}

impl VcpuSlot {
    /// Makes a blocked VCPU whose home is `home`.
    pub(super) const fn new(home: usize, pin: Option<u32>) -> Self {
        Self {
            home: AtomicU32::new(home as u32),
            entry: Mutex::new(VcpuEntry {
                state: RunState::Blocked {
                    wake_at: HostTicks(u64::MAX),
                },
                pin,
                loaded: false,
                time: 0,
                woken_at: None,
                latency: Latency {
                    max: 0,
                    total: 0,
                    count: 0,
                },
                received: 0,
            }),
        }
    }

    /// Returns the CPU in whose queue it is, or was just now for who does not have that one locked.
    pub(super) fn home(&self) -> usize {
        self.home.load(SeqCst) as usize
    }

    pub(super) fn set_home(&self, home: usize) {
        self.home.store(home as u32, SeqCst);
    }
}

/// The part of a VM that all CPUs see.
#[derive(Debug)]
pub(super) struct VmShares {
    pub(super) id: VmId,
    pub(super) weight: u32,
    /// The CPU time that it may have, if it has a cap.
    pub(super) budget: Option<Mutex<Budget>>,
    /// The number of its VCPUs that run now.
    pub(super) running: AtomicU32,
    pub(super) paused: AtomicBool,
    pub(super) stopping: AtomicBool,
    pub(super) vcpus: Box<[VcpuSlot]>,
}

impl VmShares {
    /// Returns whether the operator keeps it from running.
    pub(super) fn is_off(&self) -> bool {
        self.stopping.load(SeqCst) || self.paused.load(SeqCst)
    }

    /// Returns whether its budget is used up at `now`.
    pub(super) fn is_throttled(&self, now: HostTicks) -> bool {
        let budget = self.budget.as_ref();
        budget.is_some_and(|budget| budget.lock().is_used_up(now))
    }

    /// Lets waits that the operator or the cap has caused not count as latency.
    pub(super) fn forget_wakes(&self) {
        for vcpu in &self.vcpus {
            vcpu.entry.lock().woken_at = None;
        }
    }
}
