//! RDTSC and RDTSCP, which exit only without TSC scaling and while the clock's rate is not
//! one.

use arch::gpr::RCX;
use devices::time::HostTicks;

use crate::vcpu::Vcpu;
use crate::vcpu::backend::GuestCpu;

impl<C: GuestCpu> Vcpu<C> {
    pub(in crate::vcpu) fn handle_rdtsc(&mut self, at: HostTicks, with_aux: bool) {
        let now = self.vm.board.lock().clock.now(at);
        self.cpu.set_edx_eax(self.time.tsc.read(now));
        if with_aux {
            let aux = self.cpu.tsc_aux();
            self.cpu.set_gpr(RCX, aux & 0xffff_ffff);
        }
        self.cpu.skip_instruction();
    }
}
