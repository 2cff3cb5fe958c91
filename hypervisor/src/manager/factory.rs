//! What the manager has VMs made by.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use devices::lapic::LocalApic;
use thiserror::Error;
use vmx::ept::EptError;

use crate::guest_boot::LoadError;
use crate::ids::VmId;
use crate::scheduler::Runnable;
use crate::vcpu::backend::Refused;
#[cfg(test)]
use crate::vm::host::{SerialOutput, Waker};
use crate::vm::ram::GuestRam;
#[cfg(test)]
use crate::vm::test_vm;
use crate::vm::{Vm, VmDisk};
use crate::vm_config::VmConfig;

/// The reason why a VM cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum CreateError {
    /// A lack of memory for the guest's RAM.
    #[error(
        "not enough memory for {wanted} MiB of RAM: {free} MiB are free, of which a VM can have \
         {largest}; give it less with `mem=`, or the machine more"
    )]
    Memory {
        /// The RAM that the VM wants, in MiB.
        wanted: u64,
        /// The memory that is free, in MiB.
        free: u64,
        /// The most that a VM can have of it, in MiB.
        largest: u64,
    },
    /// No memory for the VM's structures.
    #[error("not enough memory for the VM's tables")]
    Tables,
    /// A guest that cannot be loaded.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// A VM whose guest has not been prepared: a bug of tarpit's.
    #[error("its guest has not been prepared")]
    NotPrepared,
    /// Too many VCPUs in all VMs for the identifiers that tag their translations.
    #[error("too many VCPUs in all VMs")]
    Vpids,
    /// The processor refuses a VMCS: a bug of tarpit's.
    #[error("the processor refuses the VMCS")]
    Vmcs,
}

impl From<Refused> for CreateError {
    fn from(_: Refused) -> Self {
        Self::Vmcs
    }
}

impl From<EptError> for CreateError {
    fn from(_: EptError) -> Self {
        Self::Tables
    }
}

/// The time at which a VM's guest is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// The time at which the VM is made: nothing else runs yet.
    Now,
    /// The CPU time of its first VCPU, which loads it: other VMs run by now.
    Later,
}

/// A VM without VCPUs.
pub(crate) struct NewVm {
    /// The state that its VCPUs will share.
    pub vm: Arc<Vm>,
    /// The local APICs of its VCPUs, in the order of their numbers.
    pub lapics: Vec<LocalApic>,
}

#[cfg(test)]
impl NewVm {
    /// Makes the VM of `config` for tests, whose VCPUs are on no processor.
    pub(crate) fn for_test(
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
        disks: Vec<VmDisk>,
        waker: Arc<dyn Waker>,
        output: Box<dyn SerialOutput>,
    ) -> Self {
        let lapics = test_vm::lapics(config.vcpus);
        Self {
            vm: test_vm::vm_with(id, &config.name, &lapics, ram, disks, waker, output),
            lapics,
        }
    }
}

/// A factory of VMs. The manager's tests have one that makes VCPUs of no processor.
pub(crate) trait VmFactory: Send + Sync {
    /// Returns the ticks of host time in a second.
    fn ticks_per_second(&self) -> u64;

    /// Returns `size` bytes of RAM for a guest.
    ///
    /// # Errors
    /// If the machine does not have that much left.
    fn allocate_ram(&self, size: u64) -> Result<GuestRam, CreateError>;

    /// Makes the VM of `config` with the number `id` in `ram`, whose size is that of the configuration, with
    /// these `disks`; its VCPUs come later.
    ///
    /// # Errors
    /// If there is no memory, or its files make no guest.
    fn make_vm(
        &self,
        id: VmId,
        config: &VmConfig<'static>,
        ram: GuestRam,
        disks: Vec<VmDisk>,
    ) -> Result<NewVm, CreateError>;

    /// Makes VCPU `index` of `vm` with its local APIC. The first one has the guest loaded. On a CPU that has no VCPU loaded.
    ///
    /// # Errors
    /// If there is no memory, or the guest is loaded now and cannot be.
    fn make_vcpu(
        &self,
        vm: &Arc<Vm>,
        index: u32,
        lapic: LocalApic,
        load: Load,
    ) -> Result<Box<dyn Runnable>, CreateError>;
}
