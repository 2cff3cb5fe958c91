//! Accesses to guest-physical memory that is not RAM.

use devices::time::HostTicks;
use vmx::exit::EptViolation;

use crate::emulate::{Violation, emulate};
use crate::vcpu::{StopReason, Vcpu};

impl Vcpu {
    #[inline]
    pub(in crate::vcpu) fn handle_ept_violation(
        &mut self,
        violation: EptViolation,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        if violation.fetch {
            return Err(StopReason::FetchFromDevice(violation.address));
        }
        if !violation.final_access {
            return Err(StopReason::NotRam(crate::guest_memory::NotRam {
                address: violation.address,
                length: 8,
            }));
        }
        self.emulate_access(
            Violation {
                address: violation.address,
                write: violation.write,
            },
            at,
        )
    }

    /// Emulates the instruction at RIP, which touches device memory.
    pub(super) fn emulate_access(
        &mut self,
        violation: Violation,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        if self.being_delivered.is_some() {
            // No instruction is at fault: the processor wanted to push, or to read the IDT or a
            // descriptor.
            return Err(StopReason::DeliveryThroughDevice(violation.address));
        }
        self.attention = true;
        let vm = self.vm.clone();
        let result = self.with_devices(at, |registers, devices| {
            emulate(registers, &vm.ram, devices, Some(violation))
        });
        self.follow_apic_enable();
        self.finish_emulation(result)
    }
}
