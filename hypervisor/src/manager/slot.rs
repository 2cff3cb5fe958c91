//! One VM in the table: what the operator wants it to be, and what it is now.
#![forbid(unsafe_code)]

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::kept_disks::KeptDisks;
use super::making::Making;
use super::restarts::Restarts;
use super::state::{RequestError, VmState};
use crate::sync::Mutex;
use crate::vm::Vm;
use crate::vm::ram::GuestRam;
use crate::vm_config::VmConfig;

/// A VM's place in the table, for as long as the machine runs.
pub(super) struct VmSlot {
    pub(super) config: VmConfig<'static>,
    pub(super) life: Mutex<Life>,
    /// The bytes typed for its serial port that have not been taken yet.
    pub(super) input: Mutex<VecDeque<u8>>,
}

/// The part of a VM's slot that changes.
pub(super) struct Life {
    pub(super) state: VmState,
    /// The CPU that each VCPU is pinned to: kept over restarts.
    pub(super) pins: Vec<Option<u32>>,
    /// The one that runs, or the last one that did.
    pub(super) vm: Option<Arc<Vm>>,
    /// The one that was there before it, until there is time to clear it away.
    pub(super) former: Option<Arc<Vm>>,
    /// The one that is being made, if it is.
    pub(super) making: Option<Making>,
    /// The guest's RAM, kept over restarts: it will fit.
    pub(super) ram: Option<GuestRam>,
    /// The disks that are kept over restarts.
    pub(super) disks: KeptDisks,
    /// Whether its guest has been loaded since it was made.
    pub(super) loaded: bool,
    /// The times of its automatic restarts.
    pub(super) restarts: Restarts,
}

impl VmSlot {
    pub(super) fn new(config: VmConfig<'static>) -> Self {
        let pins = (0..config.vcpus as usize)
            .map(|index| config.pins.get(index).copied())
            .collect();
        Self {
            config,
            life: Mutex::new(Life {
                state: VmState::Defined,
                pins,
                vm: None,
                former: None,
                making: None,
                ram: None,
                disks: KeptDisks::default(),
                loaded: false,
                restarts: Restarts::default(),
            }),
            input: Mutex::new(VecDeque::new()),
        }
    }

    /// Returns the error for a request that `state` does not allow.
    pub(super) fn refuse(&self, state: &VmState, request: &'static str) -> RequestError {
        RequestError::WrongState {
            name: self.config.name.clone(),
            state: state.name(),
            request,
        }
    }
}
