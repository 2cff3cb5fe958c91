//! IN, OUT, INS and OUTS.

use arch::gpr;
use devices::platform_map::port;
use devices::time::HostTicks;
use vmx::exit::IoAccess;
use vmx::fields;

use crate::emulate::{
    Completed, Direction, EmulationError, Ports, SegmentRegister, StringIo, Width,
    emulate_string_io,
};
use crate::vcpu::{StopReason, Vcpu};

impl Vcpu {
    #[inline]
    pub(in crate::vcpu) fn handle_io(
        &mut self,
        access: IoAccess,
        at: HostTicks,
    ) -> Result<(), StopReason> {
        if access.string {
            return self.handle_string_io(access, at);
        }
        let width = width_of(access.size);
        // A read of the PM timer, the commonest of all, changes nothing.
        self.attention |= access.port != port::PM_TIMER;
        self.with_devices(at, |registers, devices| {
            let rax = &mut registers.gpr.gpr[gpr::RAX];
            if access.input {
                let value = u64::from(devices.read_port(access.port, width));
                *rax = match width {
                    Width::BYTE => *rax & !0xff | value & 0xff,
                    Width::WORD => *rax & !0xffff | value & 0xffff,
                    _ => value & 0xffff_ffff,
                };
            } else {
                let mask = u32::MAX >> (32 - 8 * u32::from(access.size));
                devices.write_port(access.port, width, *rax as u32 & mask);
            }
            registers.skip_instruction();
        });
        self.waits_for_line = !access.input && self.vm.output.is_full();
        Ok(())
    }

    fn handle_string_io(&mut self, access: IoAccess, at: HostTicks) -> Result<(), StopReason> {
        self.attention = true;
        let vm = self.vm.clone();
        let information = self
            .registers
            .vmcs
            .read(fields::EXIT_INSTRUCTION_INFORMATION);
        let address_size = match information >> 7 & 7 {
            0 => Width::WORD,
            1 => Width::DOUBLEWORD,
            _ => Width::QUADWORD,
        };
        let segment = match information >> 15 & 7 {
            0 => SegmentRegister::Es,
            1 => SegmentRegister::Cs,
            2 => SegmentRegister::Ss,
            4 => SegmentRegister::Fs,
            5 => SegmentRegister::Gs,
            _ => SegmentRegister::Ds,
        };
        let io = StringIo {
            port: access.port,
            width: width_of(access.size),
            direction: if access.input {
                Direction::In
            } else {
                Direction::Out
            },
            repeated: access.repeated,
            address_size,
            segment,
            length: self.registers.vmcs.read(fields::EXIT_INSTRUCTION_LENGTH) as u8,
        };
        let result = self.with_devices(at, |registers, devices| {
            emulate_string_io(registers, &vm.ram, devices, io)
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
                self.registers.pause_instruction();
                Ok(())
            }
            Err(EmulationError::Fault(fault)) => self.raise_fault(fault),
            Err(EmulationError::Unsupported(instruction)) => {
                Err(StopReason::Unsupported(instruction))
            }
        }
    }
}

/// The width of an access of 1, 2 or 4 bytes, the only ones that an exit reports.
const fn width_of(bytes: u8) -> Width {
    match bytes {
        1 => Width::BYTE,
        2 => Width::WORD,
        _ => Width::DOUBLEWORD,
    }
}
