//! A VM that is being made, in steps: who runs on the boot CPU waits for a step, not for the whole.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::{self, Vec};

use devices::lapic::LocalApic;

use super::factory::{CreateError, Load, NewVm, VmFactory};
use crate::ids::VmId;
use crate::scheduler::Runnable;
use crate::vm::ram::GuestRam;
use crate::vm::{Vm, VmDisk};
use crate::vm_config::VmConfig;

/// A VM with as many of its VCPUs as there are yet.
pub(super) struct Making {
    /// The state that the VCPUs share.
    pub(super) vm: Arc<Vm>,
    /// Its RAM.
    pub(super) ram: GuestRam,
    /// The VCPUs that there are, in the order of their numbers.
    pub(super) vcpus: Vec<Box<dyn Runnable>>,
    /// The local APICs of those that there are not yet.
    lapics: vec::IntoIter<LocalApic>,
}

impl Making {
    /// Begins to make the VM of `config` with the number `id`, in `ram`, with these `disks`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn begin(
        factory: &dyn VmFactory,
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
        disks: Vec<VmDisk>,
    ) -> Result<Self, CreateError> {
        let NewVm { vm, lapics } = factory.make_vm(id, config, ram.clone(), disks)?;
        debug_assert_eq!(lapics.len(), config.vcpus as usize);
        Ok(Self {
            vm,
            ram,
            vcpus: Vec::new(),
            lapics: lapics.into_iter(),
        })
    }

    /// Makes the next VCPU. Returns whether there was one to make: if not, there are all.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn step(
        &mut self,
        factory: &dyn VmFactory,
        load: Load,
    ) -> Result<bool, CreateError> {
        let Some(lapic) = self.lapics.next() else {
            return Ok(false);
        };
        let index = self.vcpus.len() as u32;
        let vcpu = factory.make_vcpu(&self.vm, index, lapic, load)?;
        self.vcpus.push(vcpu);
        Ok(true)
    }
}
