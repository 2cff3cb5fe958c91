//! XSETBV.

use vmx::event::Event;

use crate::vcpu::live_state::{set_xcr0, xcr0_is_legal};
use crate::vcpu::{Ending, Vcpu};

impl Vcpu {
    /// The processor has checked CPL and CR4.OSXSAVE before the exit.
    pub(in crate::vcpu) fn handle_xsetbv(&mut self) -> Result<(), Ending> {
        let value = self.registers.gpr.edx_eax();
        let allowed = self.live.features().xcr0;
        if self.registers.ecx() != 0 || !xcr0_is_legal(value, allowed) {
            return self.raise(Event::GENERAL_PROTECTION);
        }
        // SAFETY: the value is a legal combination of components that this CPU has, and
        // CR4.OSXSAVE of the host is set if there are any.
        unsafe { set_xcr0(value) };
        self.live.xcr0 = value;
        self.registers.skip_instruction();
        Ok(())
    }
}
