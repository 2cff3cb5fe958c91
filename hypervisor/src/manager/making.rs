//! A VM that is being made, in steps: who runs on the boot CPU waits for a step, not for the whole.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::{self, Vec};

use devices::lapic::LocalApic;

use super::factory::{CreateError, Load, NewVm, VmFactory};
use crate::ids::VmId;
use crate::scheduler::Runnable;
use crate::vm::Vm;
use crate::vm::ram::GuestRam;
use crate::vm_config::VmConfig;

/// A VM with as many of its VCPUs as there are yet.
pub(super) struct Making {
    vm: Arc<Vm>,
    ram: GuestRam,
    /// The local APICs of the VCPUs that there are not yet.
    lapics: vec::IntoIter<LocalApic>,
    vcpus: Vec<Box<dyn Runnable>>,
}

/// A VM that has all its VCPUs.
pub(super) struct Made {
    /// The state that they share.
    pub(super) vm: Arc<Vm>,
    /// Its RAM.
    pub(super) ram: GuestRam,
    /// The VCPUs, in the order of their numbers.
    pub(super) vcpus: Vec<Box<dyn Runnable>>,
}

impl Making {
    /// Begins to make the VM of `config` with the number `id`, in `ram`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn begin(
        factory: &dyn VmFactory,
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
    ) -> Result<Self, CreateError> {
        let NewVm { vm, lapics } = factory.make_vm(id, config, ram.clone())?;
        debug_assert_eq!(lapics.len(), config.vcpus as usize);
        Ok(Self {
            vm,
            ram,
            lapics: lapics.into_iter(),
            vcpus: Vec::new(),
        })
    }

    /// Makes the next VCPU. Returns whether there was one to make.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn step(
        &mut self,
        factory: &dyn VmFactory,
        config: &VmConfig<'static>,
        load: Load,
    ) -> Result<bool, CreateError> {
        let Some(lapic) = self.lapics.next() else {
            return Ok(false);
        };
        let index = self.vcpus.len() as u32;
        let vcpu = factory.make_vcpu(&self.vm, config, index, lapic, load)?;
        self.vcpus.push(vcpu);
        Ok(true)
    }

    /// Returns the VM, which has all its VCPUs.
    pub(super) fn end(self) -> Made {
        let Self { vm, ram, vcpus, .. } = self;
        Made { vm, ram, vcpus }
    }

    /// Gives the VM up. Returns its RAM.
    pub(super) fn abandon(self) -> GuestRam {
        self.ram
    }
}
