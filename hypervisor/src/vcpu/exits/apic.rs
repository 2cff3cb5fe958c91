//! Accesses to the local APIC that the processor virtualizes in part (SDM vol. 3C, ch. 30).

use devices::time::HostTicks;
use vmx::addr::GuestPhysAddr;

use crate::emulate::Violation;
use crate::vcpu::backend::GuestCpu;
use crate::vcpu::backend::exit::ApicAccess;
use crate::vcpu::{StopReason, Vcpu};

impl<C: GuestCpu> Vcpu<C> {
    /// Does the rest of a write to the register at `offset`, which the processor has put into the
    /// page.
    #[inline]
    pub(in crate::vcpu) fn handle_apic_write(&mut self, offset: u16, at: HostTicks) {
        self.with_devices(at, |_, devices| {
            let now = devices.now;
            let (lapic, mut messages) = devices.lapic();
            lapic.after_virtualized_write(now, offset, &mut messages);
        });
        self.follow_apic_enable();
    }

    /// Returns an access that the processor leaves to us whole.
    pub(in crate::vcpu) fn handle_apic_access(
        &mut self,
        access: ApicAccess,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        let address = GuestPhysAddr(arch::apic::DEFAULT_ADDRESS + u64::from(access.offset));
        if !access.read && !access.write && self.events.interrupted.is_none() {
            return self.handle_fetch_from_device();
        }
        self.emulate_access(
            Violation {
                address,
                write: access.write,
            },
            at,
        )
    }

    /// Tells the model that the guest has ended a level-triggered interrupt.
    pub(in crate::vcpu) fn handle_end_of_interrupt(&mut self, vector: u8, at: HostTicks) {
        self.with_devices(at, |_, devices| {
            let (lapic, mut messages) = devices.lapic();
            lapic.after_virtualized_eoi(vector, &mut messages);
        });
    }
}
