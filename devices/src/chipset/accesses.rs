//! A processor's accesses: to which device each goes, and how wide.

use super::bus::Access;
use super::{Chipset, Environment, Id, context};
use crate::platform_map::port;
use crate::time::Now;

/// Returns the bits of a value of `size` bytes.
const fn mask(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    }
}

impl Chipset {
    /// Reads `size` bytes (1, 2 or 4) from port `port` on, as [`Chipset::port_read`] does, if
    /// they depend on nothing but the time. That is the PM timer, which Linux reads most of all:
    /// here it comes ahead of the search for the others.
    #[inline]
    #[must_use]
    pub const fn port_read_clock(&self, port: u16, size: u8, now: Now) -> Option<u32> {
        if port == port::PM_TIMER {
            Some(self.devices.acpi.timer(now) & mask(size))
        } else {
            None
        }
    }

    /// Reads `size` bytes (1, 2 or 4; anything else counts as 4) from port `port` on.
    ///
    /// Where there is nothing, all bits read as ones. The bits beyond `size` bytes are zero.
    pub fn port_read(&mut self, port: u16, size: u8, env: &mut Environment<'_>) -> u32 {
        if let Some((id, access)) = self.ports.find(port.into(), size) {
            return self.read(id, access, env) as u32 & mask(size);
        }
        if size == 1 {
            return 0xff;
        }
        // Byte-wide devices: the bus makes byte accesses of a wider one.
        let mut value = 0;
        for byte in 0..u16::from(size.min(4)) {
            let port = port.wrapping_add(byte);
            value |= self.port_read(port, 1, env) << (8 * byte);
        }
        value
    }

    /// Writes the low `size` bytes (1, 2 or 4; anything else counts as 4) of `value` to port
    /// `port` on. Where there is nothing, nothing happens.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32, env: &mut Environment<'_>) {
        if let Some((id, access)) = self.ports.find(port.into(), size) {
            return self.write(id, access, u64::from(value & mask(size)), env);
        }
        if size == 1 {
            return;
        }
        for byte in 0..u16::from(size.min(4)) {
            let port = port.wrapping_add(byte);
            self.port_write(port, 1, value >> (8 * byte), env);
        }
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at the guest-physical address `address`; `None` if
    /// no device of the chipset is there.
    pub fn mmio_read(&mut self, address: u64, size: u8, env: &mut Environment<'_>) -> Option<u64> {
        let (id, access) = self.memory.find(address, size)?;
        Some(self.read(id, access, env))
    }

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value` at the guest-physical address
    /// `address`. Tells whether a device of the chipset is there.
    pub fn mmio_write(
        &mut self,
        address: u64,
        size: u8,
        value: u64,
        env: &mut Environment<'_>,
    ) -> bool {
        let Some((id, access)) = self.memory.find(address, size) else {
            return false;
        };
        let mask = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        self.write(id, access, value & mask, env);
        true
    }

    fn read(&mut self, id: Id, access: Access, env: &mut Environment<'_>) -> u64 {
        let may_listen = self.edge_sources != 0 && id.controls_interrupts();
        if may_listen {
            self.expire_edge_sources(env);
        }
        let mut cx = context(&mut self.interrupts, id, env);
        let value = self.devices.get(id).read(access, &mut cx);
        self.update_deadline(id);
        if may_listen {
            self.update_edge_sources();
        }
        value
    }

    fn write(&mut self, id: Id, access: Access, value: u64, env: &mut Environment<'_>) {
        let may_listen = self.edge_sources != 0 && id.controls_interrupts();
        if may_listen {
            self.expire_edge_sources(env);
        }
        let mut cx = context(&mut self.interrupts, id, env);
        self.devices.get(id).write(access, value, &mut cx);
        self.update_deadline(id);
        if may_listen {
            self.update_edge_sources();
        }
    }
}

impl Id {
    /// Returns whether an access to the device may change what is heard of other devices: it masks
    /// interrupts, answers them, routes them, or drives their wires.
    const fn controls_interrupts(self) -> bool {
        matches!(
            self,
            Self::pic | Self::ioapic | Self::hpet | Self::test_device
        )
    }
}
