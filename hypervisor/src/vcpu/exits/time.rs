//! RDTSC and RDTSCP, which exit only without TSC scaling and while the clock's rate is not
//! one.

use arch::gpr;
use devices::time::HostTicks;

use crate::vcpu::Vcpu;

impl Vcpu {
    pub(in crate::vcpu) fn handle_rdtsc(&mut self, at: HostTicks, with_aux: bool) {
        let now = self.vm.board.lock().clock.now(at);
        self.registers.gpr.set_edx_eax(self.tsc.read(now));
        if with_aux {
            // TSC_AUX passes through: the guest's value is in the processor.
            // SAFETY: RDTSCP exits only where the CPU has it, and then IA32_TSC_AUX exists.
            let aux = unsafe { vmx::msr::read(arch::msr::IA32_TSC_AUX) };
            self.registers.gpr.gpr[gpr::RCX] = aux & 0xffff_ffff;
        }
        self.registers.skip_instruction();
    }
}
