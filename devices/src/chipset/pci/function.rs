//! What a function is to the bus.

use alloc::sync::Arc;
use core::fmt::{Arguments, Debug};

use super::config::{ConfigSpace, register};
use super::msix::MsixTable;
use crate::chipset::ChipsetHost;
use crate::guest_memory::GuestMemory;
use crate::time::{HostTicks, Now, TimerTicks};

/// The identity of a function, with which its configuration space begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Vendor and device.
    pub id: (u16, u16),
    /// Vendor and device of the subsystem.
    pub subsystem: (u16, u16),
    /// Base class, sub-class and programming interface.
    pub class: (u8, u8, u8),
    /// The revision.
    pub revision: u8,
}

impl Header {
    /// Returns the configuration space that begins so.
    #[must_use]
    pub fn config(&self) -> ConfigSpace {
        let mut config = ConfigSpace::new();
        config.set(register::VENDOR_ID, &self.id.0.to_le_bytes());
        config.set(register::DEVICE_ID, &self.id.1.to_le_bytes());
        config.set(register::REVISION_ID, &[self.revision]);
        let (base, sub, interface) = self.class;
        config.set(register::CLASS, &[interface, sub, base]);
        config.set(
            register::SUBSYSTEM_VENDOR_ID,
            &self.subsystem.0.to_le_bytes(),
        );
        config.set(register::SUBSYSTEM_ID, &self.subsystem.1.to_le_bytes());
        config
    }
}

/// An access to a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarAccess {
    /// The number of the BAR.
    pub bar: usize,
    /// The offset in it: less than its size.
    pub offset: u64,
    /// The number of bytes: 1, 2, 4 or 8.
    pub size: u8,
}

/// The part of a function that moves data between the guest's memory and wherever it comes from or goes to.
/// That takes long; so it is done without the chipset, which other processors may use meanwhile.
pub trait Work: Debug + Send + Sync {
    /// Does what there is to do, for a bounded time. Where another processor is at it already, does nothing: what
    /// that does not find any more is due afterwards. Returns whether something has come of it that the function is to
    /// [take up](PciFunction::after_work).
    fn run(&self, memory: &dyn GuestMemory) -> bool;
}

/// A function on the bus.
pub trait PciFunction: Debug + Send {
    /// Returns its configuration space after reset: with its BARs, not yet placed, and its
    /// capabilities.
    fn config(&mut self) -> ConfigSpace;

    /// Returns the BAR of its MSI-X table and how many vectors it has, if it has one. The bus
    /// keeps the table, and adds the BAR and the capability.
    fn msix(&self) -> Option<(usize, usize)> {
        None
    }

    /// Reads from one of its BARs.
    fn read(&mut self, access: BarAccess, cx: &mut FunctionContext<'_>) -> u64;

    /// Writes to one of its BARs. The bits of `value` beyond the size of the access are zero.
    fn write(&mut self, access: BarAccess, value: u64, cx: &mut FunctionContext<'_>);

    /// Is about to have `size` bytes of its configuration space read from `offset` on, of which it
    /// may bring those up to date that it has in there.
    fn before_config_read(
        &mut self,
        _config: &mut ConfigSpace,
        _offset: usize,
        _size: u8,
        _cx: &mut FunctionContext<'_>,
    ) {
    }

    /// Has had `size` bytes of its configuration space written from `offset` on.
    fn after_config_write(
        &mut self,
        _config: &ConfigSpace,
        _offset: usize,
        _size: u8,
        _cx: &mut FunctionContext<'_>,
    ) {
    }

    /// Returns when [`PciFunction::expire`] is next needed.
    fn next_deadline(&self) -> Option<TimerTicks> {
        None
    }

    /// Does what has come to be due.
    fn expire(&mut self, _cx: &mut FunctionContext<'_>) {}

    /// Returns its work, which is to be run after it has [said so](FunctionContext::want_work).
    fn work(&self) -> Option<Arc<dyn Work>> {
        None
    }

    /// Takes up what has come of its work.
    fn after_work(&mut self, _cx: &mut FunctionContext<'_>) {}

    /// Hears that something may have come for it from outside.
    fn input_arrived(&mut self, _cx: &mut FunctionContext<'_>) {}

    /// Returns the host time at which [`PciFunction::follow_host_time`] is next needed. It is for what
    /// a VM may have of the machine, and for nothing that the guest can take for its own time.
    fn next_host_deadline(&self) -> Option<HostTicks> {
        None
    }

    /// Hears that host time has come to `now`. What is due then is [due at once](Self::next_deadline).
    fn follow_host_time(&mut self, _now: HostTicks, _cx: &mut FunctionContext<'_>) {}

    /// Puts it back into the state after power-up.
    fn reset(&mut self);
}

/// The things that a function can reach during a call.
pub struct FunctionContext<'a> {
    /// The time.
    pub now: Now,
    /// Whether the guest lets the function be a bus master, which is to reach its RAM.
    pub is_master: bool,
    pub(super) wants_work: &'a mut bool,
    pub(super) msix: Option<&'a mut MsixTable>,
    /// The level of its interrupt pin, in the function's own sense.
    pub(super) pin: &'a mut bool,
    pub(super) host: &'a mut dyn ChipsetHost,
}

impl FunctionContext<'_> {
    /// Tells whether the function interrupts by messages; else it does by its pin.
    #[must_use]
    pub fn has_messages(&self) -> bool {
        self.msix.as_ref().is_some_and(|table| table.is_enabled())
    }

    /// Interrupts by the message of this vector.
    pub fn send_message(&mut self, vector: u16) {
        if let Some(table) = &mut self.msix {
            table.interrupt(vector, &mut |message| self.host.interrupt_message(message));
        }
    }

    /// Has the function's [work](PciFunction::work) run after this call.
    pub const fn want_work(&mut self) {
        *self.wants_work = true;
    }

    /// Tells the operator something.
    pub fn report(&mut self, message: Arguments<'_>) {
        self.host.report(message);
    }

    /// Drives the interrupt pin.
    pub fn set_pin(&mut self, asserted: bool) {
        *self.pin = asserted;
    }
}
