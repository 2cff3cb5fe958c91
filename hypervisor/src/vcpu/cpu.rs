//! A VCPU and the physical CPU that it is on: coming, going, and moving to another.

use vmx::translation;
use vmx::vmcs::{HostState, VmInstructionFailed};

use super::Vcpu;

/// A physical CPU, as a VCPU needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct HostCpu {
    /// Its number.
    pub index: u32,
    /// What VM exits load on it.
    pub host: HostState,
}

impl Vcpu {
    /// Puts it on this CPU, which is `cpu`. No other CPU has it.
    ///
    /// # Errors
    /// If the processor refuses the VMCS.
    ///
    /// # Safety
    /// `cpu` describes this CPU, which is in VMX operation; no other VCPU is loaded on it.
    pub unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), VmInstructionFailed> {
        self.registers.vmcs.load()?;
        if self.cpu != Some(cpu.index) {
            self.cpu = Some(cpu.index);
            // SAFETY: by the contract.
            unsafe { self.registers.vmcs.set_host_state(&cpu.host) };
            self.registers.gpr.forget_host();
            // What this CPU remembers of the VPID is from an earlier stay, or from another VM
            // that had it: the guest's invalidations since were executed elsewhere.
            translation::invalidate_vpid(&self.capabilities.translation, self.vpid);
            self.flush_memory_map();
        }
        self.live.load();
        self.note_cpu(true);
        self.attention = true;
        Ok(())
    }

    /// Takes it off this CPU, so that another can load it.
    ///
    /// # Errors
    /// If the processor refuses the VMCS.
    pub fn unload(&mut self) -> Result<(), VmInstructionFailed> {
        self.note_cpu(false);
        self.live.save();
        self.release_vmcs()
    }

    pub(super) fn release_vmcs(&mut self) -> Result<(), VmInstructionFailed> {
        self.launched = false;
        self.registers.vmcs.clear()
    }

    /// Drops what this CPU has cached of the VM's memory map.
    pub(super) fn flush_memory_map(&mut self) {
        self.memory_seen = self.vm.memory_generation();
        translation::invalidate_ept(&self.capabilities.translation, self.vm.ept_pointer());
    }
}
