//! PCI configuration space by ports: mechanism #1, with a host bridge and nothing else.
//!
//! Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 and 6.1.
//!
//! There is no PCI device in the machine, and no PCI root in the DSDT. But Linux complains
//! at boot ("Fatal: No config space access function found") when there is no configuration
//! mechanism, and takes one for granted only when it finds a host bridge behind it. So there
//! is one; a scan is 33 reads, and the bridge has nothing to configure.

use super::bus::{Access, Context, Device};

/// The region of CONFIG_ADDRESS; the other is the data window.
const ADDRESS: usize = 0;

/// CONFIG_ADDRESS: the configuration space is enabled.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: the bits that are there.
const IMPLEMENTED: u32 = 0x80ff_fffc;
/// CONFIG_ADDRESS: bus, device and function; all zero is the host bridge.
const FUNCTION: u32 = 0x00ff_ff00;
/// CONFIG_ADDRESS: the register.
const REGISTER: u32 = 0xfc;

/// Vendor 8086h, device 0D57h: the virtual host bridge that other small hypervisors show,
/// for which no operating system has a driver or a workaround.
const IDENTIFICATION: u32 = 0x0d57_8086;
/// Base class 06h (bridge), sub-class 00h (host), revision 0.
const CLASS: u32 = 0x0600_0000;

/// The configuration address register and what lies behind the data window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PciConfig {
    address: u32,
}

impl PciConfig {
    pub(super) const fn new() -> Self {
        Self { address: 0 }
    }

    /// Reads CONFIG_ADDRESS. (The register takes 32-bit accesses only; others, at its
    /// ports, are none of its business.)
    pub(super) const fn read_address(&self) -> u32 {
        self.address
    }

    /// Writes CONFIG_ADDRESS.
    pub(super) const fn write_address(&mut self, value: u32) {
        self.address = value & IMPLEMENTED;
    }

    /// Reads the data window from its byte `offset` (0 to 3) on, as many bytes as the caller
    /// takes of the result. All ones where there is no device.
    pub(super) const fn read_data(&self, offset: u16) -> u32 {
        if self.address & (ENABLE | FUNCTION) != ENABLE {
            return u32::MAX;
        }
        let register = match self.address & REGISTER {
            0x00 => IDENTIFICATION,
            0x08 => CLASS,
            _ => 0,
        };
        register >> (8 * (offset & 3))
    }
}

impl Device for PciConfig {
    fn read(&mut self, access: Access, _: &mut Context<'_>) -> u64 {
        let value = match access.region {
            ADDRESS => self.read_address(),
            _ => self.read_data(access.offset16()),
        };
        value.into()
    }

    fn write(&mut self, access: Access, value: u64, _: &mut Context<'_>) {
        if access.region == ADDRESS {
            self.write_address(value as u32);
        }
    }

    fn reset(&mut self, _: &mut Context<'_>) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: u32) -> u32 {
        let mut config = PciConfig::new();
        config.write_address(address);
        config.read_data(0)
    }

    #[test]
    fn linux_finds_mechanism_1_with_a_host_bridge() {
        // pci_check_type1() and pci_sanity_check().
        let mut config = PciConfig::new();
        config.write_address(0x8000_0000);
        assert_eq!(config.read_address(), 0x8000_0000);
        config.write_address(0x8000_0008);
        assert_eq!(config.read_data(2) as u16, 0x0600);
    }

    #[test]
    fn nothing_else_is_on_the_bus() {
        for function in 1..0x1_0000 {
            assert_eq!(read(0x8000_0000 | function << 8), u32::MAX);
        }
    }

    #[test]
    fn without_the_enable_bit_there_is_no_configuration_space() {
        assert_eq!(read(0), u32::MAX);
    }

    #[test]
    fn the_bridge_has_a_single_function_and_no_resources() {
        for register in (0x0c..0x100).step_by(4) {
            assert_eq!(read(0x8000_0000 | register), 0);
        }
    }
}
