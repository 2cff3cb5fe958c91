//! What a command works with.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::arguments::Arguments;
use super::clock::HostClock;
use super::command::Outcome;
use super::error::CommandError;
use super::host_facts::HostFacts;
use super::records::DoneLine;
use super::watcher::Watcher;
use crate::console::Answer;
use crate::ids::VmId;
use crate::manager::VmManager;
use crate::vm::Vm;

/// The environment of a command, given to it when it runs.
pub(crate) struct Context<'a> {
    /// The writer of its answer.
    pub answer: Answer<'a>,
    /// The VMs.
    pub vms: &'a VmManager,
    /// The host's time.
    pub clock: &'a HostClock,
    /// The machine.
    pub host: &'a HostFacts,
    /// The rules.
    pub watcher: &'a mut Watcher,
}

/// All of a command's environment but the answer.
pub(super) struct Surroundings<'a> {
    /// The VMs.
    pub vms: &'a VmManager,
    /// The host's time.
    pub clock: &'a HostClock,
    /// The machine.
    pub host: &'a HostFacts,
    /// The rules.
    pub watcher: &'a mut Watcher,
}

impl Surroundings<'_> {
    /// Returns the environment of a command that is to write `answer`.
    pub(super) fn context<'a>(&'a mut self, answer: Answer<'a>) -> Context<'a> {
        Context {
            answer,
            vms: self.vms,
            clock: self.clock,
            host: self.host,
            watcher: self.watcher,
        }
    }
}

impl Context<'_> {
    /// Returns the number of the VM that the argument `VM` names.
    ///
    /// # Errors
    /// If there is no VM of that name.
    pub(crate) fn vm_id(&self, arguments: &Arguments<'_>) -> Result<VmId, CommandError> {
        self.find_vm(arguments.required("VM")?)
    }

    fn find_vm(&self, name: &str) -> Result<VmId, CommandError> {
        self.vms
            .find(name)
            .ok_or_else(|| CommandError::unknown_vm(name, self.vms.names()))
    }

    /// Returns the VM `name`: what runs, or has run.
    ///
    /// # Errors
    /// If there is no VM of that name, or it has never run.
    pub(crate) fn vm_named(&self, name: &str) -> Result<Arc<Vm>, CommandError> {
        Ok(self.vms.vm(self.find_vm(name)?)?)
    }

    /// Returns the VM that the argument `VM` names: what runs, or has run.
    ///
    /// # Errors
    /// If there is no VM of that name, or it has never run.
    pub(crate) fn vm(&self, arguments: &Arguments<'_>) -> Result<Arc<Vm>, CommandError> {
        Ok(self.vms.vm(self.vm_id(arguments)?)?)
    }

    /// Returns all VMs that run or have run, by number.
    #[must_use]
    pub(crate) fn all_vms(&self) -> Vec<Arc<Vm>> {
        self.vms
            .ids()
            .filter_map(|id| self.vms.vm(id).ok())
            .collect()
    }

    /// Answers that the command has done what it says; `done` tells it in words.
    pub(crate) fn done(&mut self, done: &str) -> Outcome {
        self.answer.records([DoneLine { done }]);
        Outcome::Done
    }
}
