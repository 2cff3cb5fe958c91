//! CPUID.

use arch::gpr;
use vmx::fields;

use crate::cpuid::Dynamic;
use crate::vcpu::Vcpu;

impl Vcpu {
    #[inline]
    pub(in crate::vcpu) fn handle_cpuid(&mut self) {
        let registers = &mut self.registers;
        let leaf = registers.eax();
        let subleaf = registers.ecx();
        let dynamic = || Dynamic {
            cr4: registers.vmcs.read(fields::GUEST_CR4),
            xcr0: self.live.xcr0,
            apic_enabled: self.lapic.apic_base().is_enabled(),
            in_64_bit_mode: registers.in_64_bit_mode(),
        };
        let answer = self.vm.cpuid.query(self.index, leaf, subleaf, dynamic);
        let gprs = &mut registers.gpr.gpr;
        gprs[gpr::RAX] = answer.eax.into();
        gprs[gpr::RBX] = answer.ebx.into();
        gprs[gpr::RCX] = answer.ecx.into();
        gprs[gpr::RDX] = answer.edx.into();
        registers.skip_instruction();
    }
}
