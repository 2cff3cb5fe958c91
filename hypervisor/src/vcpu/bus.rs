//! A VCPU's way to the devices: ports, device memory, and the messages of its local APIC.
#![forbid(unsafe_code)]

use alloc::sync::Arc;

use devices::apic_message::ApicMessage;
use devices::chipset::{Chipset, Environment};
use devices::lapic::{ApicBus, LocalApic, Mode};
use devices::time::Now;
use vmx::addr::GuestPhysAddr;

use crate::emulate::{Bus, Ports, Width};
use crate::vm::requests::Requests;
use crate::vm::{Board, BoardHost, Vm};

/// The bus that a local APIC sends on.
pub(super) struct Messages<'a> {
    vm: &'a Arc<Vm>,
    board: &'a mut Board,
}

impl ApicBus for Messages<'_> {
    fn send(&mut self, message: ApicMessage) {
        self.vm.route(&message);
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        let mut host = BoardHost::new(self.vm);
        self.board.chipset.end_of_interrupt(vector, &mut host);
    }
}

/// All that a VCPU can reach at one moment, with the board locked.
pub(super) struct Devices<'a> {
    vm: &'a Arc<Vm>,
    lapic: &'a mut LocalApic,
    board: &'a mut Board,
    pub(super) now: Now,
    /// The requests that an access leaves to be looked at before the next entry, besides those to
    /// VCPUs by messages.
    pub(super) pending: Requests,
}

impl<'a> Devices<'a> {
    /// Returns the devices of `vm`, whose board is locked, and the VCPU's `lapic`.
    #[inline]
    pub(super) const fn new(
        vm: &'a Arc<Vm>,
        lapic: &'a mut LocalApic,
        board: &'a mut Board,
        now: Now,
    ) -> Self {
        Self {
            vm,
            lapic,
            board,
            now,
            pending: Requests::empty(),
        }
    }

    /// Returns the offset of `address` in the LAPIC's register page, where that is now.
    fn lapic_offset(&self, address: GuestPhysAddr) -> Option<u16> {
        let offset = address.0.wrapping_sub(self.lapic.apic_base().address());
        (offset < 4096 && self.lapic.mode() == Mode::XApic).then_some(offset as u16)
    }

    /// Reads a port that is none of a clock. Apart, so that the exit loop has a small frame.
    #[inline(never)]
    fn read_device_port(&mut self, port: u16, size: u8) -> u32 {
        self.with_chipset(|chipset, env| chipset.port_read(port, size, env))
    }

    /// Calls the chipset with what surrounds it.
    fn with_chipset<R>(
        &mut self,
        access: impl FnOnce(&mut Chipset, &mut Environment<'_>) -> R,
    ) -> R {
        let mut host = BoardHost::new(self.vm);
        let result = access(&mut self.board.chipset, &mut host.environment(self.now));
        if host.power_requested {
            self.pending |= Requests::EVENT;
        }
        result
    }

    /// Reads a register of the LAPIC, which changes nothing.
    pub(super) fn read_lapic<R>(&mut self, read: impl FnOnce(&mut LocalApic, Now) -> R) -> R {
        read(self.lapic, self.now)
    }

    /// Returns the LAPIC and the bus that it sends on.
    pub(super) fn lapic(&mut self) -> (&mut LocalApic, Messages<'_>) {
        self.pending |= Requests::EVENT;
        (
            self.lapic,
            Messages {
                vm: self.vm,
                board: self.board,
            },
        )
    }
}

impl Bus for Devices<'_> {
    fn read(&mut self, address: GuestPhysAddr, width: Width) -> u64 {
        match self.lapic_offset(address) {
            Some(offset) => self.lapic.mmio_read(self.now, offset, width.bytes() as u8),
            None => {
                let size = width.bytes() as u8;
                self.with_chipset(|chipset, env| chipset.mmio_read(address.0, size, env))
                    .unwrap_or(u64::MAX)
            }
        }
    }

    fn write(&mut self, address: GuestPhysAddr, width: Width, value: u64) {
        let now = self.now;
        match self.lapic_offset(address) {
            Some(offset) => {
                let (lapic, mut messages) = self.lapic();
                lapic.mmio_write(now, offset, width.bytes() as u8, value, &mut messages);
            }
            None => {
                let size = width.bytes() as u8;
                self.with_chipset(|chipset, env| chipset.mmio_write(address.0, size, value, env));
            }
        }
    }
}

impl Ports for Devices<'_> {
    #[inline]
    fn read_port(&mut self, port: u16, width: Width) -> u32 {
        let size = width.bytes() as u8;
        match self.board.chipset.port_read_clock(port, size, self.now) {
            Some(value) => value,
            None => self.read_device_port(port, size),
        }
    }

    #[inline(never)]
    fn write_port(&mut self, port: u16, width: Width, value: u32) {
        let size = width.bytes() as u8;
        self.with_chipset(|chipset, env| chipset.port_write(port, size, value, env));
    }
}
