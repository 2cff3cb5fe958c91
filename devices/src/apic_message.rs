//! Interrupt messages: what APICs say to each other.
//!
//! SDM vol. 3A, 11.6 (interprocessor interrupts) and 11.11 (message-signaled interrupts).

/// The way in which a message interrupts its receivers (SDM vol. 3A, 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, at every destination.
    Fixed,
    /// The vector, at the one destination that runs at the lowest priority.
    LowestPriority,
    /// A system-management interrupt.
    Smi,
    /// A non-maskable interrupt; the vector means nothing.
    Nmi,
    /// A reset of the processor, short of power-up.
    Init,
    /// A start of a processor that waits after INIT, at real-mode segment `vector << 8`.
    StartUp,
    /// An interrupt whose vector the 8259 pair knows.
    ExtInt,
}

impl DeliveryMode {
    /// Returns the mode encoded in the three bits of an ICR, LVT or redirection entry; `None` for
    /// the reserved encoding 3. Higher bits are ignored.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// Whether an interrupt's receiver must tell its source when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// An event: over when accepted.
    Edge,
    /// A state: the source hears of the end of interrupt, and interrupts again if the state
    /// lasts.
    Level,
}

/// The meaning of the eight bits of a destination, or of the 32 bits of an x2APIC's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationMode {
    /// An APIC ID.
    Physical,
    /// A set of logical APIC IDs.
    Logical,
}

/// The receivers of a message. Shorthands and broadcasts are resolved by the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC of this ID.
    Physical(u32),
    /// Every local APIC whose logical ID matches this message destination address.
    Logical(u32),
    /// Every local APIC.
    All,
    /// Every local APIC except the one of this ID, which is the sender.
    AllExcept(u32),
}

impl Destination {
    /// Returns the destination named by the eight bits of an xAPIC's ICR or an I/O APIC's
    /// redirection entry. All ones is a broadcast in either mode (SDM vol. 3A, 11.6.2).
    #[must_use]
    pub const fn from_xapic(mode: DestinationMode, destination: u8) -> Self {
        if destination == u8::MAX {
            return Self::All;
        }
        match mode {
            DestinationMode::Physical => Self::Physical(destination as u32),
            DestinationMode::Logical => Self::Logical(destination as u32),
        }
    }

    /// Returns the destination named by the 32 bits of an x2APIC's ICR. All ones is a broadcast in
    /// either mode (SDM vol. 3A, 11.12.9).
    #[must_use]
    pub const fn from_x2apic(mode: DestinationMode, destination: u32) -> Self {
        if destination == u32::MAX {
            return Self::All;
        }
        match mode {
            DestinationMode::Physical => Self::Physical(destination),
            DestinationMode::Logical => Self::Logical(destination),
        }
    }
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// The receivers of the message.
    pub destination: Destination,
    /// The way in which it interrupts them.
    pub delivery_mode: DeliveryMode,
    /// The interrupt vector; for [`DeliveryMode::StartUp`] the page number to start at.
    pub vector: u8,
    /// Whether the receiver's end of interrupt is to be broadcast.
    pub trigger: Trigger,
}

impl ApicMessage {
    /// Returns a message of the eight address and 32 data bits that a redirection entry or a
    /// message-signaled interrupt has in common: `vector` in bits 0 to 7, delivery mode in
    /// bits 8 to 10 of `data`. `None` if the delivery mode is reserved or cannot be sent by
    /// a device (a start-up).
    #[must_use]
    pub const fn from_device(
        destination: Destination,
        data: u32,
        trigger: Trigger,
    ) -> Option<Self> {
        let Some(delivery_mode) = DeliveryMode::from_bits(data >> 8) else {
            return None;
        };
        // Only vectors have a level: the others are events however the pin is programmed.
        let trigger = match delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => trigger,
            DeliveryMode::StartUp => return None,
            _ => Trigger::Edge,
        };
        Some(Self {
            destination,
            delivery_mode,
            vector: data as u8,
            trigger,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_ones_broadcast_from_an_xapic_but_not_from_an_x2apic() {
        use DestinationMode::{Logical, Physical};
        assert_eq!(Destination::from_xapic(Physical, 0xff), Destination::All);
        assert_eq!(Destination::from_xapic(Logical, 0xff), Destination::All);
        assert_eq!(
            Destination::from_x2apic(Physical, 0xff),
            Destination::Physical(0xff)
        );
        assert_eq!(
            Destination::from_x2apic(Logical, u32::MAX),
            Destination::All
        );
    }

    #[test]
    fn devices_send_no_startups_and_only_vectors_have_a_level() {
        let to = Destination::Physical(0);
        assert_eq!(ApicMessage::from_device(to, 0x631, Trigger::Edge), None);
        assert_eq!(ApicMessage::from_device(to, 0x331, Trigger::Edge), None);
        let nmi = ApicMessage::from_device(to, 0x400, Trigger::Level).unwrap();
        assert_eq!(
            (nmi.delivery_mode, nmi.trigger),
            (DeliveryMode::Nmi, Trigger::Edge)
        );
        let fixed = ApicMessage::from_device(to, 0x031, Trigger::Level).unwrap();
        assert_eq!(
            (fixed.delivery_mode, fixed.vector, fixed.trigger),
            (DeliveryMode::Fixed, 0x31, Trigger::Level)
        );
    }
}
