//! A VCPU and the physical CPU that it is on: coming, going, and moving to another.

use vmx::vmcs::HostState;

use super::Vcpu;
use super::backend::{GuestCpu, Refused};

/// A physical CPU, as a VCPU needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct HostCpu {
    /// Its number.
    pub index: u32,
    /// What exits from a guest load on it.
    pub host: HostState,
}

impl<C: GuestCpu> Vcpu<C> {
    /// Puts it on this CPU, which is `cpu`. No other CPU has it.
    ///
    /// # Errors
    /// If the processor refuses it.
    ///
    /// # Safety
    /// `cpu` describes this CPU, which is ready for guests; no other VCPU is loaded on it.
    pub unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), Refused> {
        let moved = self.host_cpu != Some(cpu.index);
        if moved {
            self.host_cpu = Some(cpu.index);
            self.memory_seen = self.vm.memory_map.generation();
        }
        // SAFETY: by the contract.
        unsafe { self.cpu.load(cpu, moved)? };
        self.note_cpu(true);
        self.attention = true;
        Ok(())
    }

    /// Takes it off this CPU, so that another can load it.
    ///
    /// # Errors
    /// If the processor refuses it.
    pub fn unload(&mut self) -> Result<(), Refused> {
        self.note_cpu(false);
        self.cpu.unload()
    }

    /// Drops what this CPU has cached of the VM's memory map.
    pub(super) fn flush_memory_map(&mut self) {
        self.memory_seen = self.vm.memory_map.generation();
        self.cpu.flush_nested_tlb();
    }
}
