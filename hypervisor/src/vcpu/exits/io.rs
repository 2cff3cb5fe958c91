//! IN, OUT, INS and OUTS.

use arch::gpr::RAX;
use devices::platform_map::port;
use devices::time::HostTicks;

use crate::emulate::{
    Completed, Direction, EmulationError, Ports, StringIo, Width, emulate_string_io,
};
use crate::vcpu::backend::GuestCpu;
use crate::vcpu::backend::exit::{IoAccess, StringIoAccess};
use crate::vcpu::{StopReason, Vcpu};

impl<C: GuestCpu> Vcpu<C> {
    #[inline]
    pub(in crate::vcpu) fn handle_io(
        &mut self,
        access: IoAccess,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        // A read of the PM timer, the commonest of all, changes nothing.
        self.attention |= access.port != port::PM_TIMER;
        let IoAccess { port, width, input } = access;
        self.with_devices(at, |cpu, devices| {
            let rax = cpu.gpr(RAX);
            if input {
                let value = u64::from(devices.read_port(port, width));
                let kept = match width {
                    Width::BYTE | Width::WORD => rax & !width.mask(),
                    _ => 0,
                };
                cpu.set_gpr(RAX, kept | value & width.mask());
            } else {
                devices.write_port(port, width, (rax & width.mask()) as u32);
            }
            cpu.skip_instruction();
        });
        self.waits_for_line = !access.input && self.vm.output.is_full();
        Ok(())
    }

    pub(in crate::vcpu) fn handle_string_io(
        &mut self,
        access: StringIoAccess,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        self.attention = true;
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
        self.waits_for_line = vm.output.is_full();
        self.finish_emulation(result)
    }

    /// Turns the outcome of an emulation into what the guest sees.
    pub(super) fn finish_emulation(
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
            Err(EmulationError::Unsupported(instruction)) => {
                Err(StopReason::Unsupported(instruction))
            }
        }
    }
}
