//! A VCPU and the physical CPU that it is on: coming, going, and moving to another.

use vmx::vmcs::HostState;

use super::Vcpu;
use super::backend::{GuestCpu, Refused};

/// A physical CPU, as a VCPU needs to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostCpu {
    /// Its number.
    pub index: u32,
    /// The host state that exits from a guest load on it.
    pub host: HostState,
}

#[cfg(test)]
impl HostCpu {
    /// Returns a CPU of this number, on which no guest is ever entered.
    pub(crate) const fn without_tables(index: u32) -> Self {
        Self {
            index,
            host: HostState {
                cs: 0,
                data: 0,
                tr: 0,
                gs_base: 0,
                tss_base: 0,
                gdt_base: 0,
                idt_base: 0,
            },
        }
    }
}

/// The physical CPU that a VCPU is on, and what that CPU knows of it.
#[derive(Debug, Default)]
pub(super) struct Residence {
    /// The physical CPU that it is on or was last on.
    pub(super) cpu: Option<u32>,
    /// The generation of the VM's memory map for which that CPU's translations are right.
    memory_seen: u64,
}

impl<C: GuestCpu> Vcpu<C> {
    /// Puts it on this CPU, which is `cpu`. No other CPU has it.
    ///
    /// # Errors
    /// If the processor refuses it.
    ///
    /// # Safety
    /// `cpu` describes this CPU, which is ready for guests; no other VCPU is loaded on it.
    pub(crate) unsafe fn load(&mut self, cpu: &HostCpu) -> Result<(), Refused> {
        let moved = self.residence.cpu != Some(cpu.index);
        if moved {
            self.residence = Residence {
                cpu: Some(cpu.index),
                memory_seen: self.vm.memory_map.generation(),
            };
        }
        // SAFETY: by the contract.
        unsafe { self.cpu.load(cpu, moved)? };
        self.note_cpu(true);
        Ok(())
    }

    /// Takes it off this CPU, so that another can load it.
    ///
    /// # Errors
    /// If the processor refuses it.
    pub(crate) fn unload(&mut self) -> Result<(), Refused> {
        self.note_cpu(false);
        self.cpu.unload()
    }

    /// Drops what this CPU has cached of the VM's memory map, if that has changed since.
    pub(super) fn follow_memory_map(&mut self) {
        let generation = self.vm.memory_map.generation();
        if self.residence.memory_seen != generation {
            self.residence.memory_seen = generation;
            self.cpu.flush_nested_tlb();
        }
    }
}
