//! Accesses to guest-physical memory that is not RAM.

use devices::time::HostTicks;

use crate::emulate::{Violation, emulate};
use crate::vcpu::backend::GuestCpu;
use crate::vcpu::backend::exit::NestedPageFault;
use crate::vcpu::{StopReason, Vcpu};

impl<C: GuestCpu> Vcpu<C> {
    #[inline]
    pub(in crate::vcpu) fn handle_nested_page_fault(
        &mut self,
        fault: NestedPageFault,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        if self.handle_guarded_root(fault) {
            return Ok(());
        }
        if fault.fetch {
            return Err(StopReason::FetchFromDevice(fault.address));
        }
        if !fault.final_access {
            return Err(StopReason::NotRam(crate::guest_memory::NotRam {
                address: fault.address,
                length: 8,
            }));
        }
        self.emulate_access(
            Violation {
                address: fault.address,
                write: fault.write,
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
        if self.events.interrupted.is_some() {
            // No instruction is at fault: the processor wanted to push, or to read the IDT or a
            // descriptor.
            return Err(StopReason::DeliveryThroughDevice(violation.address));
        }
        let vm = self.vm.clone();
        let result = self.with_devices(at, |cpu, devices| {
            emulate(cpu, &vm.ram, devices, Some(violation))
        });
        self.follow_apic_enable();
        self.finish_emulation(result)
    }
}
