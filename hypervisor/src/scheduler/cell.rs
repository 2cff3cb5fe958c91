//! A VCPU as the scheduler and the CPUs' loops hold it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;

use devices::time::HostTicks;

use crate::ids::VcpuId;
use crate::sync::Mutex;
use crate::vcpu::backend::{GuestCpu, Refused};
use crate::vcpu::{HostCpu, RunExit, Vcpu};
use crate::vm::Vm;
use crate::vm::requests::VcpuRequests;

/// A VCPU that a CPU can run, whatever it is made of.
pub(crate) trait Runnable: Send {
    /// Puts it on this CPU, which is `cpu`. No other CPU has it.
    ///
    /// # Errors
    /// If the processor refuses it: a bug of tarpit's.
    ///
    /// # Safety
    /// `cpu` describes this CPU, which is in VMX operation; no other VCPU is loaded on it.
    unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), Refused>;

    /// Takes it off this CPU, so that another can load it.
    ///
    /// # Errors
    /// As for [`Runnable::load`].
    fn unload(&mut self) -> Result<(), Refused>;

    /// Runs its guest until host time `until`, or until there is nothing to run. It is loaded.
    fn run(&mut self, until: HostTicks) -> RunExit;

    /// Returns the ticks of its CPU time that suppression has taken since the last call.
    fn take_suppression_time(&mut self) -> u64 {
        0
    }

    /// Returns when it wants to run next although it is halted; the end of time for never.
    fn deadline(&self) -> HostTicks;

    /// Describes what it was doing, for the operator. It is loaded.
    fn dump(&self) -> String;
}

impl<C: GuestCpu> Runnable for Vcpu<C> {
    unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), Refused> {
        // SAFETY: by the contract, which is the same.
        unsafe { Self::load(self, cpu) }
    }

    fn unload(&mut self) -> Result<(), Refused> {
        Self::unload(self)
    }

    fn run(&mut self, until: HostTicks) -> RunExit {
        Self::run(self, until)
    }

    fn take_suppression_time(&mut self) -> u64 {
        Self::take_suppression_time(self)
    }

    fn deadline(&self) -> HostTicks {
        Self::deadline(self)
    }

    fn dump(&self) -> String {
        let mut dump = String::new();
        // Writing to a string does not fail.
        let _ = self.write_dump(&mut dump);
        dump
    }
}

/// A VCPU that any CPU may run, one at a time.
pub(crate) struct VcpuCell {
    vm: Arc<Vm>,
    index: u32,
    /// The VCPU; locked while a CPU runs it.
    pub vcpu: Mutex<Box<dyn Runnable>>,
}

impl VcpuCell {
    pub(super) fn new(vm: Arc<Vm>, index: u32, vcpu: Box<dyn Runnable>) -> Self {
        Self {
            vm,
            index,
            vcpu: Mutex::new(vcpu),
        }
    }

    /// Returns its VM.
    #[must_use]
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Returns its VM and its number there.
    #[must_use]
    pub(crate) fn id(&self) -> VcpuId {
        VcpuId {
            vm: self.vm.id,
            index: self.index,
        }
    }

    /// Returns what others ask of it.
    #[must_use]
    pub(crate) fn requests(&self) -> &VcpuRequests {
        self.vm.requests(self.index)
    }
}
