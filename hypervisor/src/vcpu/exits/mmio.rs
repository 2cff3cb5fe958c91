//! Accesses to guest-physical memory that is not RAM.

use arch::{ExceptionVector, PageFaultErrorCode};
use devices::time::HostTicks;
use vmx::event::Event;

use crate::emulate::{Fault, Violation, emulate};
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
        if !fault.final_access {
            return self.handle_missing_table(fault);
        }
        if fault.fetch {
            if self.vm.memory_map.execute(fault.address)? {
                return Ok(());
            }
            return self.handle_fetch_from_device();
        }
        self.emulate_access(
            Violation {
                address: fault.address,
                write: fault.write,
            },
            at,
        )
    }

    /// Has the guest raise #UD for code where no RAM is: nobody drives the bus, and all ones are no instruction.
    #[cold]
    pub(super) fn handle_fetch_from_device(&mut self) -> Result<(), StopReason> {
        self.raise(Event::INVALID_OPCODE)
    }

    /// Has the guest raise the exception of a paging structure that is not in RAM: its entries are all ones, with
    /// reserved bits among them. That the access was a write may be unknown: the exit tells of the one to the structure.
    #[cold]
    fn handle_missing_table(&mut self, fault: NestedPageFault) -> Result<(), StopReason> {
        let Some(address) = self.cpu.faulting_linear_address() else {
            // A load of PDPTEs, which are not loaded (SDM vol. 3A, 4.4.1).
            return self.raise(Event::GENERAL_PROTECTION);
        };
        let mut error_code =
            PageFaultErrorCode::PROTECTION_VIOLATION | PageFaultErrorCode::MALFORMED_TABLE;
        error_code.set(PageFaultErrorCode::CAUSED_BY_WRITE, fault.write);
        error_code.set(PageFaultErrorCode::USER_MODE, self.cpu.cpl() == 3);
        self.raise_fault(Fault {
            vector: ExceptionVector::Page,
            error_code: Some(error_code.bits() as u32),
            cr2: Some(address),
        })
    }

    /// Has the guest raise an exception where an event was being delivered, and its stack (which is written) or a
    /// table (which is read) is in device memory or nothing.
    #[cold]
    fn handle_delivery_through_device(&mut self, violation: Violation) -> Result<(), StopReason> {
        self.raise(match violation.write {
            true => Event::exception(ExceptionVector::Stack, Some(0)),
            false => Event::GENERAL_PROTECTION,
        })
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
            return self.handle_delivery_through_device(violation);
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
    use arch::ExceptionVector;
    use arch::gpr::RDI;
    use devices::time::HostTicks;
    use vmx::addr::GuestPhysAddr;
    use vmx::event::Event;

    use crate::emulate::Violation;
    use crate::guest_memory::GuestMemory;
    use crate::vcpu::backend::exit::{Exit, NestedPageFault};
    use crate::vcpu::backend::fake::{FakeCpu, Stay};
    use crate::vcpu::fixture::vcpu;
    use crate::vcpu::{StopReason, Vcpu};

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
    fn code_where_no_ram_is_is_undefined_for_the_guest_which_goes_on() {
        let entry = fetching_at(HOLE).entry_after_script();
        assert_eq!(entry.event, Some(Event::INVALID_OPCODE));
    }

    #[test]
    fn code_that_is_not_in_ram_any_more_is_undefined_for_the_guest_which_goes_on() {
        let mut vcpu = at_code(&[]);
        vcpu.cpu.rip = 0x7fff_0000;
        let entry = vcpu.entry_after_script();
        assert_eq!(entry.event, Some(Event::INVALID_OPCODE));
    }

    /// A walk that finds a paging structure where nothing is but a hole for devices.
    const TABLE_IN_HOLE: NestedPageFault = NestedPageFault {
        address: GuestPhysAddr(HOLE),
        write: false,
        fetch: false,
        final_access: false,
        nmi_unblocked: false,
    };

    /// A VCPU whose processor finds a paging structure outside RAM, as it accesses `linear`.
    fn without_table(linear: Option<u64>) -> Vcpu<FakeCpu> {
        let mut vcpu = vcpu();
        vcpu.cpu.faulting_address = linear;
        vcpu.then(Stay::until(
            10,
            Exit::NestedPageFault(NestedPageFault {
                write: true,
                ..TABLE_IN_HOLE
            }),
        ));
        vcpu
    }

    #[test]
    fn a_paging_structure_outside_ram_is_one_with_reserved_bits() {
        let mut vcpu = without_table(Some(0xffff_8000_1234_5678));
        let entry = vcpu.entry_after_script();
        // P, W, RSVD.
        let expected = Event::exception(ExceptionVector::Page, Some(0xb));
        assert_eq!(entry.event, Some(expected));
        assert_eq!(vcpu.cpu.cr2, 0xffff_8000_1234_5678);
    }

    #[test]
    fn pdptes_outside_ram_cannot_be_loaded() {
        let entry = without_table(None).entry_after_script();
        assert_eq!(entry.event, Some(Event::GENERAL_PROTECTION));
    }

    #[test]
    fn a_page_fault_whose_handlers_table_is_outside_ram_is_a_double_fault_and_then_the_end() {
        let first = Event::exception(ExceptionVector::Page, Some(0));
        let mut vcpu = without_table(Some(0x5000));
        vcpu.events.interrupted = Some(first);
        let walk =
            |vcpu: &mut Vcpu<FakeCpu>| vcpu.handle_nested_page_fault(TABLE_IN_HOLE, HostTicks(10));
        assert_eq!(walk(&mut vcpu), Ok(()));
        let double = Event::exception(ExceptionVector::Double, Some(0));
        assert_eq!(vcpu.events.exception, Some(double));
        vcpu.events.interrupted = Some(double);
        assert_eq!(walk(&mut vcpu), Err(StopReason::TripleFault));
    }

    #[test]
    fn an_event_whose_stack_is_a_device_is_a_stack_fault_and_one_whose_table_is_a_general_one() {
        for (write, expected) in [
            (true, Event::exception(ExceptionVector::Stack, Some(0))),
            (false, Event::GENERAL_PROTECTION),
        ] {
            let mut vcpu = vcpu();
            vcpu.events.interrupted = Some(Event::interrupt(0x40));
            let violation = Violation {
                address: GuestPhysAddr(HOLE),
                write,
            };
            assert_eq!(vcpu.emulate_access(violation, HostTicks(10)), Ok(()));
            assert_eq!(vcpu.events.exception, Some(expected));
        }
    }
}
