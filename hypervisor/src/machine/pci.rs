//! The host's PCI devices, which tarpit keeps silent: none writes to memory, none interrupts (PCI Local
//! Bus Specification 3.0, 3.2.2.3.2 and 6.2).

use core::fmt;
use core::str::FromStr;

use x86_64::instructions::port::Port;

/// A function of a PCI device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Function {
    /// The number of its bus.
    pub bus: u8,
    /// Its number there: below 32.
    pub device: u8,
    /// The number of the function: below 8.
    pub function: u8,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bus,
            device,
            function,
        } = self;
        write!(f, "{bus:02x}:{device:02x}.{function}")
    }
}

/// A word that names no function of a PCI device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoFunction;

impl FromStr for Function {
    type Err = NoFunction;

    /// Parses `BUS:DEVICE.FUNCTION`, hexadecimal as `lspci` shows it.
    fn from_str(text: &str) -> Result<Self, NoFunction> {
        let (bus, rest) = text.split_once(':').ok_or(NoFunction)?;
        let (device, function) = rest.split_once('.').ok_or(NoFunction)?;
        let number = |digits: &str, end: u16| {
            let plain = (1..=2).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let number = u8::from_str_radix(digits, 16).ok().filter(|_| plain);
            number.filter(|&it| u16::from(it) < end).ok_or(NoFunction)
        };
        Ok(Self {
            bus: number(bus, 256)?,
            device: number(device, 32)?,
            function: number(function, 8)?,
        })
    }
}

/// The functions' configuration space, by aligned words of 32 bits.
trait ConfigurationSpace {
    fn read(&mut self, function: Function, offset: u8) -> u32;
    fn write(&mut self, function: Function, offset: u8, value: u32);
}

/// The configuration space behind the ports of configuration mechanism #1.
struct Ports;

impl Ports {
    fn select(function: Function, offset: u8) -> Port<u32> {
        let address = 1 << 31
            | u32::from(function.bus) << 16
            | u32::from(function.device) << 11
            | u32::from(function.function) << 8
            | u32::from(offset & !3);
        // SAFETY: by the contract of `silence`, the ports are ours; the address alone does nothing.
        unsafe { Port::<u32>::new(0xcf8).write(address) };
        Port::new(0xcfc)
    }
}

impl ConfigurationSpace for Ports {
    fn read(&mut self, function: Function, offset: u8) -> u32 {
        // SAFETY: reading configuration space has no effect.
        unsafe { Self::select(function, offset).read() }
    }

    fn write(&mut self, function: Function, offset: u8, value: u32) {
        // SAFETY: by the contract of `silence`.
        unsafe { Self::select(function, offset).write(value) };
    }
}

/// The numbers of functions that were found and silenced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Silenced {
    /// The functions that there are.
    pub functions: u32,
    /// Those that could write to memory.
    pub masters: u32,
    /// Those that interrupted by messages.
    pub message_interrupts: u32,
    /// Those that were left alone.
    pub left: u32,
}

/// Lets no PCI device interrupt or write to memory any more, but those in `leave`.
///
/// # Safety
/// The ports 0xcf8 and 0xcfc are the caller's alone, and nothing depends on what devices do.
pub(crate) unsafe fn silence(leave: &[Function]) -> Silenced {
    silence_all(&mut Ports, leave)
}

const COMMAND: u8 = 0x04;
const HEADER_TYPE: u8 = 0x0c;
const CAPABILITIES: u8 = 0x34;
const BUS_MASTER: u32 = 1 << 2;
const INTERRUPT_DISABLE: u32 = 1 << 10;
/// The bit of the status register, the upper half of the command register's word, that tells of a
/// list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;
const MSI: u32 = 0x05;
const MSI_X: u32 = 0x11;

fn silence_all(space: &mut impl ConfigurationSpace, leave: &[Function]) -> Silenced {
    let mut silenced = Silenced::default();
    for (bus, device) in (0..=u8::MAX).flat_map(|bus| (0..32).map(move |device| (bus, device))) {
        let at = |function| Function {
            bus,
            device,
            function,
        };
        if !exists(space, at(0)) {
            continue;
        }
        let is_multifunction = space.read(at(0), HEADER_TYPE) >> 23 & 1 != 0;
        for number in 0..if is_multifunction { 8 } else { 1 } {
            let function = at(number);
            if !exists(space, function) {
                continue;
            }
            silenced.functions += 1;
            if leave.contains(&function) {
                silenced.left += 1;
            } else {
                silence_function(space, function, &mut silenced);
            }
        }
    }
    silenced
}

fn exists(space: &mut impl ConfigurationSpace, function: Function) -> bool {
    space.read(function, 0) & 0xffff != 0xffff
}

fn silence_function(
    space: &mut impl ConfigurationSpace,
    function: Function,
    silenced: &mut Silenced,
) {
    let word = space.read(function, COMMAND);
    // A bridge's bus mastering is that of the devices behind it, which are silenced themselves unless
    // they are to be left alone.
    let is_bridge = space.read(function, HEADER_TYPE) >> 16 & 0x7f != 0;
    if word & BUS_MASTER != 0 && !is_bridge {
        silenced.masters += 1;
    }
    let mut command = word & 0xffff | INTERRUPT_DISABLE;
    if !is_bridge {
        command &= !BUS_MASTER;
    }
    // The status register is written with zeros, which change nothing.
    space.write(function, COMMAND, command);
    if word & HAS_CAPABILITIES != 0 && silence_messages(space, function) {
        silenced.message_interrupts += 1;
    }
}

/// Switches MSI and MSI-X off. Returns whether one was on.
fn silence_messages(space: &mut impl ConfigurationSpace, function: Function) -> bool {
    /// The most capabilities that there is room for.
    const MOST: usize = 48;
    /// The enable bits in the message control registers, the upper halves of their words.
    const MSI_ENABLE: u32 = 1 << 16;
    const MSI_X_ENABLE: u32 = 1 << 31;
    let mut was_on = false;
    let mut at = space.read(function, CAPABILITIES) as u8 & !3;
    for _ in 0..MOST {
        if at < 0x40 {
            break;
        }
        let word = space.read(function, at);
        let enable = match word & 0xff {
            MSI => MSI_ENABLE,
            MSI_X => MSI_X_ENABLE,
            _ => 0,
        };
        if word & enable != 0 {
            was_on = true;
            space.write(function, at, word & !enable);
        }
        at = (word >> 8) as u8 & !3;
    }
    was_on
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    /// Functions with their configuration space; the others are not there.
    #[derive(Default)]
    struct Fake(BTreeMap<Function, [u32; 64]>);

    impl ConfigurationSpace for Fake {
        fn read(&mut self, function: Function, offset: u8) -> u32 {
            let space = self.0.get(&function);
            space.map_or(u32::MAX, |space| space[usize::from(offset / 4)])
        }

        fn write(&mut self, function: Function, offset: u8, value: u32) {
            if let Some(space) = self.0.get_mut(&function) {
                let word = &mut space[usize::from(offset / 4)];
                *word = if offset == COMMAND {
                    // Ones clear the status.
                    *word & 0xffff_0000 & !(value & 0xffff_0000) | value & 0xffff
                } else {
                    value
                };
            }
        }
    }

    fn function(text: &str) -> Function {
        text.parse().unwrap()
    }

    /// A function whose command register and status are `command`, of this header type.
    fn device(command: u32, header_type: u32) -> [u32; 64] {
        let mut space = [0; 64];
        space[0] = 0x1234_8086;
        space[1] = command;
        space[3] = header_type << 16;
        space
    }

    #[test]
    fn a_device_neither_masters_the_bus_nor_interrupts_afterwards() {
        let mut space = Fake::default();
        let mut card = device(HAS_CAPABILITIES | 0x0007, 0);
        // MSI-X at 0x50, then MSI at 0x60, both on.
        card[0x34 / 4] = 0x50;
        card[0x50 / 4] = 0x8003_6011;
        card[0x60 / 4] = 0x0081_0005;
        space.0.insert(function("02:1f.0"), card);
        let silenced = silence_all(&mut space, &[]);
        assert_eq!(
            silenced,
            Silenced {
                functions: 1,
                masters: 1,
                message_interrupts: 1,
                left: 0
            }
        );
        let card = space.0[&function("02:1f.0")];
        // It still decodes its ports and memory.
        assert_eq!(card[1] & 0xffff, INTERRUPT_DISABLE | 3);
        assert_eq!(card[0x50 / 4], 0x0003_6011);
        assert_eq!(card[0x60 / 4], 0x0080_0005);
    }

    #[test]
    fn all_functions_of_a_device_are_found_but_no_ghosts_of_a_single_one() {
        let mut space = Fake::default();
        space.0.insert(function("00:01.0"), device(4, 0x80));
        space.0.insert(function("00:01.3"), device(4, 0));
        // One that answers to all function numbers, as some do.
        for number in 0..8 {
            let ghost = function(&std::format!("00:02.{number}"));
            space.0.insert(ghost, device(4, 0));
        }
        let silenced = silence_all(&mut space, &[]);
        assert_eq!((silenced.functions, silenced.masters), (3, 3));
    }

    #[test]
    fn bridges_pass_on_what_those_behind_them_send() {
        let mut space = Fake::default();
        space.0.insert(function("00:1c.0"), device(0x0007, 1));
        space.0.insert(function("03:00.0"), device(0x0006, 0));
        let leave = [function("03:00.0")];
        let silenced = silence_all(&mut space, &leave);
        assert_eq!((silenced.masters, silenced.left), (0, 1));
        assert_eq!(space.0[&function("00:1c.0")][1], 7 | INTERRUPT_DISABLE);
        assert_eq!(space.0[&function("03:00.0")][1], 6);
    }

    #[test]
    fn functions_are_written_as_lspci_does() {
        assert_eq!(function("1f:0a.7").to_string(), "1f:0a.7");
        assert_eq!(function("0:2.1").to_string(), "00:02.1");
        for wrong in [
            "",
            "0",
            "0:1",
            "0:20.0",
            "0:0.8",
            "100:0.0",
            "+1:0.0",
            "0:0.",
            "0000:00:1f.2",
        ] {
            assert_eq!(wrong.parse::<Function>(), Err(NoFunction), "{wrong}");
        }
    }

    proptest! {
        /// A list of capabilities that runs in circles, or out of itself, has an end.
        #[test]
        fn whatever_a_device_says_it_is_done_with_at_last(words in prop::collection::vec(any::<u32>(), 64)) {
            let mut space = Fake::default();
            let mut card: [u32; 64] = words.try_into().unwrap();
            card[0] = 0x8086;
            space.0.insert(function("00:00.0"), card);
            silence_all(&mut space, &[]);
            let command = space.0[&function("00:00.0")][1];
            prop_assert_ne!(command & INTERRUPT_DISABLE, 0);
        }
    }
}
