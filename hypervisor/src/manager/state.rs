//! The life of a VM, and what may be asked of it when.
#![forbid(unsafe_code)]

use alloc::string::String;

use thiserror::Error;

use super::factory::CreateError;
use crate::scheduler::PinError;
use crate::vcpu::StopReason;

/// The state of a VM.
///
/// ```text
///   Defined ──┐                      ┌───────────── pause ────────────┐
///             │ start                │                                │
///             ▼                      │                                ▼
///   ┌────► Starting ──made──► Loading ──loaded──► Running ──pause──► Paused
///   │         │  │               │  ▲                │  ▲              │  │
///   │         │  │               │  └─── resume, if not loaded ────────┤  │
///   │         │  │               │                   │  └── resume ────┘  │
///   │         │  └──────────────stop, restart, or the guest's end─────────┘
///   │         │                            │
///   │         │ cannot be made             ▼
///   │         │                         Stopping ──restart asked for──► Starting
///   │         ▼                            │
///   └────── Stopped ◄── off all CPUs ──────┘
///    start
/// ```
///
/// The operator's requests and the guest's end lead from state to state at once; what needs a
/// CPU without a VCPU (making a VM, clearing one away) is done by [`VmManager::work`], which
/// leads out of `Starting` and `Stopping`.
///
/// [`VmManager::work`]: super::VmManager::work
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VmState {
    /// A VM that has not been started yet.
    Defined,
    /// A VM that is about to be made.
    Starting,
    /// A VM whose first VCPU clears its RAM and loads its guest, in its own CPU time.
    Loading,
    /// A VM whose VCPUs get CPU time.
    Running,
    /// A VM that the operator has paused, with its clock.
    Paused,
    /// A VM whose VCPUs are coming off their CPUs.
    Stopping {
        /// The reason for its end.
        reason: StopReason,
        /// Whether it is to be started again then.
        restart: bool,
    },
    /// A VM that does not run any more; its RAM is as it left it.
    Stopped(StopCause),
}

/// The cause for which a VM does not run any more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum StopCause {
    /// The end of the VM, for this reason.
    #[error("{0}")]
    Ended(StopReason),
    /// The failure to make the VM.
    #[error("{0}")]
    NotCreated(#[from] CreateError),
    /// A pin to a CPU that does not exist.
    #[error("{0}")]
    Pin(#[from] PinError),
}

impl VmState {
    /// Returns its name, as the operator and programs see it.
    #[must_use]
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Defined => "defined",
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping { .. } => "stopping",
            Self::Stopped(_) => "ended",
        }
    }

    /// Returns whether its VCPUs are with the scheduler, and may be in the guest.
    #[must_use]
    pub(crate) const fn is_live(&self) -> bool {
        matches!(self, Self::Loading | Self::Running | Self::Paused)
    }
}

/// The reason why a request is refused; nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RequestError {
    /// No such VM.
    #[error("there is no such VM")]
    NoVm,
    /// A state of the VM that does not allow the request.
    #[error("{name} is {state}, so it cannot be {request}: `vms` shows it")]
    WrongState {
        /// Its name.
        name: String,
        /// The name of its state.
        state: &'static str,
        /// The request, as a past participle: `paused`, for instance.
        request: &'static str,
    },
    /// A VM that has never been made, so that there is nothing to look at.
    #[error("{0} has not run yet: `start` it")]
    NeverRan(String),
    /// A VCPU that cannot be pinned.
    #[error("{0}")]
    Pin(#[from] PinError),
}

impl RequestError {
    /// Returns a name of the error for programs.
    #[must_use]
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::NoVm => "unknown_vm",
            Self::WrongState { .. } | Self::NeverRan(_) => "wrong_state",
            Self::Pin(PinError::NoCpu { .. }) => "no_cpu",
            Self::Pin(PinError::NoVcpu) => "no_vcpu",
        }
    }
}
