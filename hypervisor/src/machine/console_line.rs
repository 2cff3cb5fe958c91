//! Which serial line the console is on.
#![forbid(unsafe_code)]

use core::fmt;
use core::str::FromStr;

use crate::numbers::{decimal, hexadecimal};

/// A serial line with a UART of the 16550 kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConsoleLine {
    /// The first of its eight I/O ports.
    pub port: u16,
    /// Its speed in baud.
    pub baud: u32,
}

/// The lines of a PC, in the order in which they are looked for.
pub(crate) const COM_PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
/// The interrupts of the first and the third, and of the second and the fourth of them.
const COM_IRQS: [u8; 2] = [4, 3];
const DEFAULT_BAUD: u32 = 115_200;
/// The speed that the UART's clock gives with the divisor 1, in baud; others are fractions of it.
const FASTEST_BAUD: u32 = 115_200;
/// The last port that has seven more behind it.
const LAST_PORT: u16 = 0xfff8;

impl ConsoleLine {
    /// Returns the line at `port`, with the usual speed.
    #[must_use]
    pub(crate) const fn at(port: u16) -> Self {
        Self {
            port,
            baud: DEFAULT_BAUD,
        }
    }

    /// Returns the number of its interrupt on the ISA bus, if it is one of a PC's.
    #[must_use]
    pub(super) fn isa_irq(self) -> Option<u8> {
        let index = COM_PORTS.iter().position(|port| *port == self.port)?;
        Some(COM_IRQS[index % 2])
    }

    /// Returns the line at `port` with the speed `baud`; `None` if no UART can be there, or have that speed.
    #[must_use]
    pub(crate) const fn new(port: u16, baud: u32) -> Option<Self> {
        let has_divisor = baud != 0 && FASTEST_BAUD.is_multiple_of(baud) && baud >= 2;
        if port == 0 || port > LAST_PORT || !has_divisor {
            return None;
        }
        Some(Self { port, baud })
    }
}

impl fmt::Display for ConsoleLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match COM_PORTS.iter().position(|port| *port == self.port) {
            Some(index) => write!(f, "com{}", index + 1)?,
            None => write!(f, "{:#x}", self.port)?,
        }
        write!(f, ",{}", self.baud)
    }
}

/// A word that names no serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoLine;

impl FromStr for ConsoleLine {
    type Err = NoLine;

    /// Parses `com1`, `com2`, `com3`, `com4` or a port in hexadecimal digits behind `0x`, and with a
    /// comma perhaps a speed.
    fn from_str(text: &str) -> Result<Self, NoLine> {
        let (port, baud) = match text.split_once(',') {
            Some((port, baud)) => (port, Some(baud)),
            None => (text, None),
        };
        let port = match port {
            "com1" => COM_PORTS[0],
            "com2" => COM_PORTS[1],
            "com3" => COM_PORTS[2],
            "com4" => COM_PORTS[3],
            _ => {
                let digits = port.strip_prefix("0x").ok_or(NoLine)?;
                let port = hexadecimal(digits).ok_or(NoLine)?;
                u16::try_from(port).map_err(|_| NoLine)?
            }
        };
        let baud = match baud {
            None => DEFAULT_BAUD,
            Some(baud) => decimal(baud).ok_or(NoLine)?,
        };
        Self::new(port, baud).ok_or(NoLine)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    fn parse(text: &str) -> Result<ConsoleLine, NoLine> {
        text.parse()
    }

    #[test]
    fn lines_are_named_by_their_number_or_port_and_may_have_a_speed() {
        assert_eq!(parse("com2"), Ok(ConsoleLine::at(0x2f8)));
        assert_eq!(parse("0x2e8"), parse("com4"));
        let line = parse("0xc000,9600").unwrap();
        assert_eq!((line.port, line.baud), (0xc000, 9600));
        assert_eq!(line.to_string(), "0xc000,9600");
        assert_eq!(parse("com3,57600").unwrap().to_string(), "com3,57600");
    }

    #[test]
    fn the_lines_of_a_pc_have_interrupts() {
        let irqs = ["com1", "com2", "com3", "com4", "0xc000"];
        let irqs = irqs.map(|text| parse(text).unwrap().isa_irq());
        assert_eq!(irqs, [Some(4), Some(3), Some(4), Some(3), None]);
    }

    #[test]
    fn what_is_no_line_is_none() {
        for text in [
            "",
            "com",
            "com0",
            "com5",
            "0x",
            "0x+3f8",
            "0x10000",
            "0xfff9",
            "0x0",
            "3f8",
            "com1,",
            "com1,0",
            "com1,9601",
            "com1,+9600",
            "com1,230400",
            "com1,9600n8",
        ] {
            assert_eq!(parse(text), Err(NoLine), "{text}");
        }
    }
}
