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
            if fault.final_access && self.vm.memory_map.execute(fault.address)? {
                return Ok(());
            }
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

#[cfg(test)]
mod tests {
    use arch::gpr::RDI;
    use devices::time::HostTicks;
    use vmx::addr::GuestPhysAddr;
    use vmx::event::Event;

    use crate::guest_memory::GuestMemory;
    use crate::vcpu::backend::exit::{Exit, NestedPageFault};
    use crate::vcpu::backend::fake::{FakeCpu, Stay};
    use crate::vcpu::fixture::vcpu;
    use crate::vcpu::{RunExit, StopReason, Vcpu};

    /// Where nothing is but a hole for devices.
    const HOLE: u64 = 0xfed0_8000;

    /// A VCPU in real mode that comes to `code`, which reads at EDI.
    fn at_code(code: &[u8]) -> Vcpu<FakeCpu> {
        let mut vcpu = vcpu();
        vcpu.cpu.cr0 = 0x30;
        vcpu.cpu.efer = 0;
        vcpu.cpu.gprs[RDI] = HOLE;
        vcpu.vm.ram.write(GuestPhysAddr(0x1000), code).unwrap();
        vcpu.then(Stay::until(
            10,
            Exit::NestedPageFault(NestedPageFault {
                address: GuestPhysAddr(HOLE),
                write: false,
                fetch: false,
                final_access: true,
                nmi_unblocked: false,
            }),
        ));
        vcpu
    }

    #[test]
    fn an_instruction_that_the_emulator_does_not_do_is_undefined_for_the_guest_which_goes_on() {
        // fnsave [edi]
        let mut vcpu = at_code(&[0x67, 0xdd, 0x37]);
        let entry = vcpu.entry_after_script();
        assert_eq!(entry.event, Some(Event::INVALID_OPCODE));
        assert_eq!(vcpu.cpu.rip, 0x1000);
    }

    #[test]
    fn bytes_that_are_no_instruction_are_undefined_for_the_guest_which_goes_on() {
        // ud0, and what else the decoder does not know.
        let mut vcpu = at_code(&[0x0f, 0x0a]);
        let entry = vcpu.entry_after_script();
        assert_eq!(entry.event, Some(Event::INVALID_OPCODE));
    }

    /// A VCPU that fetches at `address`, which exits.
    fn fetching_at(address: u64) -> Vcpu<FakeCpu> {
        let mut vcpu = vcpu();
        vcpu.then(Stay::until(
            10,
            Exit::NestedPageFault(NestedPageFault {
                address: GuestPhysAddr(address),
                write: false,
                fetch: true,
                final_access: true,
                nmi_unblocked: false,
            }),
        ));
        vcpu
    }

    #[test]
    fn a_guest_goes_on_where_it_may_execute_by_now() {
        let entry = fetching_at(0x1000).entry_after_script();
        assert_eq!(entry.event, None);
    }

    #[test]
    fn a_guest_that_fetches_from_a_hole_for_devices_ends() {
        let exit = fetching_at(HOLE).run(HostTicks(u64::MAX));
        let expected = StopReason::FetchFromDevice(GuestPhysAddr(HOLE));
        assert_eq!(exit, RunExit::Stopped(expected));
    }

    #[test]
    fn code_outside_ram_ends_the_guest() {
        let mut vcpu = at_code(&[]);
        vcpu.cpu.rip = 0x7fff_0000;
        let exit = vcpu.run(HostTicks(u64::MAX));
        assert!(
            matches!(exit, RunExit::Stopped(StopReason::Unsupported(_))),
            "{exit:?}"
        );
    }
}
