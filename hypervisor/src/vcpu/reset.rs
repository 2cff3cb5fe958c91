//! INIT and start-up messages (SDM vol. 3A, 9.4 and 10.1).
#![forbid(unsafe_code)]

use devices::platform_map::port;
use devices::time::HostTicks;
use vmx::addr::GuestPhysAddr;

use super::backend::GuestCpu;
use super::events::EventQueue;
use super::{Activity, StopReason, Vcpu};
use crate::emulate::{Ports, Width};
use crate::guest_memory::GuestMemory;
use crate::vm::requests::Requests;

/// The CMOS byte by which the IBM PC AT's firmware learns what a reset is meant for.
const SHUTDOWN_STATUS: u32 = 0x0f;
/// Shutdown status: end the interrupt of the 8259 pair, and jump.
const END_INTERRUPT_AND_JUMP: u32 = 0x05;
/// Shutdown status: jump.
const JUMP: u32 = 0x0a;
/// The address of the far pointer to jump to (offset and segment), in the BIOS data area.
const WARM_RESET_VECTOR: GuestPhysAddr = GuestPhysAddr(0x467);

impl<C: GuestCpu> Vcpu<C> {
    /// Takes INIT and start-up messages.
    ///
    /// # Errors
    /// If the guest has reset its machine.
    #[cold]
    pub(super) fn handle_reset(&mut self, at: HostTicks) -> Result<(), StopReason> {
        if self.lapic.take_init() {
            self.lapic.init_reset();
            self.configure_apic();
            self.events = EventQueue::default();
            self.cpu.cancel_injection();
            self.forget_resume_point();
            self.cpu.init(self.vm.cpuid.signature());
            if self.lapic.apic_base().is_bootstrap() {
                self.run_firmware(at)?;
                self.activity = Activity::Running;
            } else {
                self.activity = Activity::WaitingForStartUp;
            }
        }
        if let Some(page) = self.lapic.take_start_up()
            && self.activity == Activity::WaitingForStartUp
        {
            // In real mode, at the page.
            self.cpu.jump_far(u16::from(page) << 8, 0);
            self.activity = Activity::Running;
        }
        self.pending |= Requests::EVENT | Requests::TIMERS;
        Ok(())
    }

    /// Lets the bootstrap processor go on at the reset vector, where a PC has firmware, and where it is.
    /// Without any, two things are known of it: it jumps where a guest has told it to, and
    /// otherwise it starts the machine anew.
    fn run_firmware(&mut self, at: HostTicks) -> Result<(), StopReason> {
        if self.vm.ram.rom().is_some() {
            return Ok(());
        }
        const END_OF_INTERRUPT: u32 = 0x20;
        let status = self.with_devices(at, |_, devices| {
            devices.write_port(port::RTC_INDEX, Width::BYTE, SHUTDOWN_STATUS);
            let status = devices.read_port(port::RTC_DATA, Width::BYTE);
            devices.write_port(port::RTC_DATA, Width::BYTE, 0);
            if status == END_INTERRUPT_AND_JUMP {
                for pic in [port::PIC_SLAVE, port::PIC_MASTER] {
                    devices.write_port(pic, Width::BYTE, END_OF_INTERRUPT);
                }
            }
            status
        });
        if !matches!(status, END_INTERRUPT_AND_JUMP | JUMP) {
            return Err(StopReason::Reset);
        }
        let target = self
            .vm
            .ram
            .read_u32(WARM_RESET_VECTOR)
            .map_err(StopReason::NotRam)?;
        self.cpu.jump_far((target >> 16) as u16, target as u16);
        Ok(())
    }
}
