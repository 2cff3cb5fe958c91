//! CPUID.

use arch::gpr::{RAX, RBX, RCX, RDX};

use crate::cpuid::Dynamic;
use crate::vcpu::Vcpu;
use crate::vcpu::backend::GuestCpu;

impl<C: GuestCpu> Vcpu<C> {
    #[inline]
    pub(in crate::vcpu) fn handle_cpuid(&mut self) {
        let cpu = &mut self.cpu;
        let leaf = cpu.gpr(RAX) as u32;
        let subleaf = cpu.gpr(RCX) as u32;
        let dynamic = || Dynamic {
            cr4: cpu.cr4(),
            xcr0: cpu.xcr0(),
            apic_enabled: self.lapic.apic_base().is_enabled(),
            in_64_bit_mode: cpu.in_64_bit_mode(),
        };
        let answer = self.vm.cpuid.query(self.index, leaf, subleaf, dynamic);
        cpu.set_gpr(RAX, answer.eax.into());
        cpu.set_gpr(RBX, answer.ebx.into());
        cpu.set_gpr(RCX, answer.ecx.into());
        cpu.set_gpr(RDX, answer.edx.into());
        cpu.skip_instruction();
    }
}
