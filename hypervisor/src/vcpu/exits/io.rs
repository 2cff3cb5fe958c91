//! IN, OUT, INS and OUTS.

use arch::gpr::RAX;
use devices::time::HostTicks;
use vmx::event::Event;

use crate::emulate::{
    Completed, Direction, EmulationError, Ports, StringIo, Unsupported, Width, emulate_string_io,
};
use crate::vcpu::backend::GuestCpu;
use crate::vcpu::backend::exit::{IoAccess, StringIoAccess};
use crate::vcpu::{StopReason, Vcpu};
use crate::vm::requests::Requests;

impl<C: GuestCpu> Vcpu<C> {
    #[inline]
    pub(in crate::vcpu) fn handle_io(
        &mut self,
        access: IoAccess,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        let IoAccess { port, width, input } = access;
        if input {
            let value = self.read_port(port, width, at);
            let rax = self.cpu.gpr(RAX);
            let kept = match width {
                Width::BYTE | Width::WORD => rax & !width.mask(),
                _ => 0,
            };
            self.cpu
                .set_gpr(RAX, kept | u64::from(value) & width.mask());
        } else {
            let value = (self.cpu.gpr(RAX) & width.mask()) as u32;
            self.with_devices(at, |_, devices| devices.write_port(port, width, value));
            self.wait_for_line();
        }
        self.cpu.skip_instruction();
        Ok(())
    }

    /// Reads a port. Reading one that shows the time, the commonest of all, changes nothing.
    #[inline]
    fn read_port(&mut self, port: u16, width: Width, at: HostTicks) -> u32 {
        let board = self.vm.board.lock();
        let now = board.clock.now(at);
        let time = board
            .chipset
            .port_read_clock(port, width.bytes() as u8, now);
        drop(board);
        match time {
            Some(value) => value,
            None => self.with_devices(at, |_, devices| devices.read_port(port, width)),
        }
    }

    /// Has the VCPU wait if it has written more to its console than there is room for.
    #[inline]
    fn wait_for_line(&mut self) {
        if self.vm.output.is_full() {
            self.waits_for_line = true;
            self.pending |= Requests::EVENT;
        }
    }

    pub(in crate::vcpu) fn handle_string_io(
        &mut self,
        access: StringIoAccess,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        let vm = self.vm.clone();
        let io = StringIo {
            port: access.io.port,
            width: access.io.width,
            direction: if access.io.input {
                Direction::In
            } else {
                Direction::Out
            },
            repeated: access.repeated,
            address_size: access.address_size,
            segment: access.segment,
            length: access.length,
        };
        let result = self.with_devices(at, |cpu, devices| {
            emulate_string_io(cpu, &vm.ram, devices, io)
        });
        self.wait_for_line();
        self.finish_emulation(result)
    }

    /// Turns the outcome of an emulation into what the guest sees.
    pub(super) fn finish_emulation(
        &mut self,
        result: Result<Completed, EmulationError>,
    ) -> Result<(), StopReason> {
        match result {
            Ok(Completed::Retired) => Ok(()),
            other => self.finish_otherwise(other),
        }
    }

    /// Does the same for what is not simply done.
    #[cold]
    #[inline(never)]
    fn finish_otherwise(
        &mut self,
        result: Result<Completed, EmulationError>,
    ) -> Result<(), StopReason> {
        match result {
            Ok(Completed::Retired) => Ok(()),
            Ok(Completed::Interrupted) => {
                self.cpu.pause_instruction();
                Ok(())
            }
            Err(EmulationError::Fault(fault)) => self.raise_fault(fault),
            Err(EmulationError::Unsupported(instruction)) => self.refuse(instruction),
        }
    }

    /// Has the guest raise #UD for an instruction that is not to be had, unless the guest cannot go on at all: it is
    /// for its kernel to say what becomes of a process that executes one.
    fn refuse(&mut self, instruction: Unsupported) -> Result<(), StopReason> {
        if instruction.reason.is_guests_end() {
            return Err(StopReason::Unsupported(instruction));
        }
        self.vm.tell_refused(&instruction, self.cpu.rip());
        self.raise(Event::INVALID_OPCODE)
    }
}
