//! The side of a local APIC that other CPUs see.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use arch::apic::Register;

use super::base::Mode;
use super::page::{ApicPage, VectorRegister};
use super::posted::PostedInterrupts;
use crate::apic_message::{ApicMessage, DeliveryMode, Destination, Trigger};

/// The part of a local APIC that all CPUs share: where it is addressed, how busy it is, and
/// what others have posted to it. Nothing here waits for anyone.
///
/// Whoever posts asks [`ApicPort::accepts`] first, posts, and, where [`ApicPort::post`] says
/// so, makes the owner look: the owner takes it over with
/// [`LocalApic::accept_incoming`](super::LocalApic::accept_incoming) before each VM entry.
#[derive(Default)]
#[repr(C)]
pub struct ApicPort {
    page: ApicPage,
    posted: PostedInterrupts,
    level_requests: [AtomicU64; 4],
    events: AtomicU32,
    addressing: AtomicU64,
}

/// The messages that others have posted and the owner has not accepted yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub(super) edge: [u64; 4],
    pub(super) level: [u64; 4],
    pub(super) events: Events,
}

/// Messages that are not vectors, packed into one word: see the constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events(u32);

impl Events {
    /// NMIs, of which no more than two count: one to take and one to latch meanwhile.
    const NMIS: u32 = 3;
    const INIT: u32 = 1 << 2;
    const START_UP: u32 = 1 << 3;
    const EXT_INT: u32 = 1 << 4;
    const ILLEGAL_VECTOR: u32 = 1 << 5;
    const LEVEL_REQUESTS: u32 = 1 << 6;
    const START_UP_VECTOR: u32 = 0xff << 8;

    pub(super) const fn nmis(self) -> u8 {
        (self.0 & Self::NMIS) as u8
    }

    pub(super) const fn init(self) -> bool {
        self.0 & Self::INIT != 0
    }

    /// Returns the vector of a start-up that came after any INIT.
    pub(super) const fn start_up(self) -> Option<u8> {
        if self.0 & Self::START_UP != 0 {
            Some((self.0 >> 8) as u8)
        } else {
            None
        }
    }

    pub(super) const fn ext_int(self) -> bool {
        self.0 & Self::EXT_INT != 0
    }

    pub(super) const fn illegal_vector(self) -> bool {
        self.0 & Self::ILLEGAL_VECTOR != 0
    }

    const fn with(self, delivery_mode: DeliveryMode, vector: u8) -> Self {
        Self(match delivery_mode {
            DeliveryMode::Nmi if self.nmis() < 2 => self.0 + 1,
            // Whatever a start-up before the reset would have done, the reset undoes.
            DeliveryMode::Init => (self.0 | Self::INIT) & !(Self::START_UP | Self::START_UP_VECTOR),
            DeliveryMode::StartUp => {
                self.0 & !Self::START_UP_VECTOR | Self::START_UP | (vector as u32) << 8
            }
            DeliveryMode::ExtInt => self.0 | Self::EXT_INT,
            _ => self.0,
        })
    }
}

/// The state that decides whether a message is for an APIC, packed into one word so that it can be
/// published at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addressing {
    /// The initial APIC ID, with all its 32 bits.
    pub(super) id: u32,
    /// Bits 24 to 31 of the LDR; means nothing in x2APIC mode.
    pub(super) logical_id: u8,
    /// Bits 28 to 31 of the DFR; means nothing in x2APIC mode.
    pub(super) model: u8,
    pub(super) mode: Mode,
    /// Whether the APIC is enabled, by software too (SVR).
    pub(super) enabled: bool,
}

impl Addressing {
    const fn pack(self) -> u64 {
        let mode = match self.mode {
            Mode::Disabled => 0,
            Mode::XApic => 1,
            Mode::X2Apic => 2,
        };
        self.id as u64
            | (self.logical_id as u64) << 32
            | ((self.model & 0xf) as u64) << 40
            | mode << 44
            | (self.enabled as u64) << 46
    }

    const fn unpack(bits: u64) -> Self {
        Self {
            id: bits as u32,
            logical_id: (bits >> 32) as u8,
            model: (bits >> 40) as u8 & 0xf,
            mode: match bits >> 44 & 3 {
                1 => Mode::XApic,
                2 => Mode::X2Apic,
                _ => Mode::Disabled,
            },
            enabled: bits >> 46 & 1 != 0,
        }
    }

    const fn is_physical(self, id: u32) -> bool {
        match self.mode {
            Mode::Disabled => false,
            Mode::XApic => id == self.id & 0xff || id == 0xff,
            Mode::X2Apic => id == self.id,
        }
    }

    /// Returns whether a logical destination is this one (SDM vol. 3A, 11.6.2.2: flat, cluster;
    /// 11.12.10.2: x2APIC).
    const fn is_logical(self, address: u32) -> bool {
        match self.mode {
            Mode::Disabled => false,
            Mode::XApic => {
                let address = if address > 0xff { 0 } else { address as u8 };
                let common = address & self.logical_id;
                match self.model {
                    0xf => common != 0,
                    0 => address >> 4 == self.logical_id >> 4 && common & 0xf != 0,
                    _ => false,
                }
            }
            Mode::X2Apic => {
                let own = x2apic_logical_id(self.id);
                address >> 16 == own >> 16 && address & own & 0xffff != 0
            }
        }
    }

    const fn is_destination(self, destination: Destination) -> bool {
        match destination {
            Destination::Physical(id) => self.is_physical(id),
            Destination::Logical(address) => self.is_logical(address),
            Destination::All => !matches!(self.mode, Mode::Disabled),
            Destination::AllExcept(id) => !matches!(self.mode, Mode::Disabled) && self.id != id,
        }
    }
}

/// Returns the logical ID that an x2APIC has by its ID (SDM vol. 3A, 11.12.10.2).
pub(super) const fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

impl ApicPort {
    /// Returns the registers, as the hardware and other CPUs may see them.
    #[must_use]
    #[inline]
    pub fn page(&self) -> &ApicPage {
        &self.page
    }

    /// Returns the posted-interrupt descriptor, for the hardware.
    #[must_use]
    pub fn posted(&self) -> &PostedInterrupts {
        &self.posted
    }

    pub(super) fn publish(&self, addressing: Addressing) {
        self.addressing.store(addressing.pack(), SeqCst);
    }

    pub(super) fn addressing(&self) -> Addressing {
        Addressing::unpack(self.addressing.load(SeqCst))
    }

    /// Returns whether `message` is for this APIC. One that software has disabled is still reached
    /// by NMI, INIT and start-up (SDM vol. 3A, 11.4.7.2).
    #[must_use]
    pub fn accepts(&self, message: &ApicMessage) -> bool {
        let addressing = self.addressing();
        let reachable = match message.delivery_mode {
            DeliveryMode::Nmi | DeliveryMode::Init | DeliveryMode::StartUp | DeliveryMode::Smi => {
                true
            }
            _ => addressing.enabled,
        };
        reachable && addressing.is_destination(message.destination)
    }

    /// Returns the arbitration priority (SDM vol. 3A, 11.6.2.4): of several destinations of a
    /// lowest-priority message, the one with the lowest value takes it.
    #[must_use]
    pub fn arbitration_priority(&self) -> u8 {
        let task = self.page.read(Register::TPR) as u8;
        let request = self.page.highest(VectorRegister::Irr).unwrap_or(0);
        let service = self.page.highest(VectorRegister::Isr).unwrap_or(0);
        if task >> 4 >= request >> 4 && task >> 4 > service >> 4 {
            task
        } else {
            (task & 0xf0).max(request & 0xf0).max(service & 0xf0)
        }
    }

    /// Leaves `message` for the owner, whatever its destination says. True if the owner has
    /// to be made to look; false if it has been told already, or there is nothing to see.
    pub fn post(&self, message: &ApicMessage) -> bool {
        let vector = message.vector;
        match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.addressing().enabled {
                    false
                } else if vector < 16 {
                    self.post_event(|events| Events(events.0 | Events::ILLEGAL_VECTOR))
                } else if message.trigger == Trigger::Edge {
                    self.posted.post(vector)
                } else {
                    self.level_requests[usize::from(vector >> 6)]
                        .fetch_or(1 << (vector & 63), SeqCst);
                    self.post_event(|events| Events(events.0 | Events::LEVEL_REQUESTS))
                }
            }
            // There is no system-management mode to go to.
            DeliveryMode::Smi => false,
            mode => self.post_event(|events| events.with(mode, vector)),
        }
    }

    fn post_event(&self, change: impl Fn(Events) -> Events) -> bool {
        let before = self
            .events
            .fetch_update(SeqCst, SeqCst, |events| Some(change(Events(events)).0));
        // The update itself never fails.
        before == Ok(0)
    }

    /// Tells whether others have posted something.
    #[must_use]
    #[inline]
    pub fn has_incoming(&self) -> bool {
        self.posted.is_outstanding() || self.events.load(SeqCst) != 0
    }

    pub(super) fn take_incoming(&self) -> Incoming {
        let edge = self.posted.take();
        let events = Events(self.events.swap(0, SeqCst));
        let level = if events.0 & Events::LEVEL_REQUESTS != 0 {
            core::array::from_fn(|word| self.level_requests[word].swap(0, SeqCst))
        } else {
            [0; 4]
        };
        Incoming {
            edge,
            level,
            events,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XAPIC: Addressing = Addressing {
        id: 3,
        logical_id: 0b1000,
        model: 0xf,
        mode: Mode::XApic,
        enabled: true,
    };

    #[test]
    fn published_addressing_is_read_back_whole() {
        for addressing in [
            XAPIC,
            Addressing {
                id: 0xdead_beef,
                logical_id: 0xff,
                model: 0,
                mode: Mode::X2Apic,
                enabled: false,
            },
        ] {
            let port = ApicPort::default();
            port.publish(addressing);
            assert_eq!(port.addressing(), addressing);
        }
    }

    #[test]
    fn flat_model_matches_any_common_bit() {
        assert!(XAPIC.is_logical(0b1010));
        assert!(!XAPIC.is_logical(0b0111));
        assert!(!XAPIC.is_logical(0x1008), "no eight-bit address");
    }

    #[test]
    fn cluster_model_matches_the_cluster_and_a_common_bit() {
        let cluster = Addressing {
            logical_id: 0x24,
            model: 0,
            ..XAPIC
        };
        assert!(cluster.is_logical(0x2c));
        assert!(!cluster.is_logical(0x2b));
        assert!(!cluster.is_logical(0x34));
        assert!(
            !Addressing {
                model: 7,
                ..cluster
            }
            .is_logical(0x2c),
            "reserved model"
        );
    }

    #[test]
    fn x2apic_logical_id_follows_from_the_id() {
        let x2apic = Addressing {
            id: 0x123,
            mode: Mode::X2Apic,
            ..XAPIC
        };
        assert_eq!(x2apic_logical_id(0x123), 0x0012_0008);
        assert!(x2apic.is_logical(0x0012_ffff));
        assert!(!x2apic.is_logical(0x0013_ffff));
        assert!(!x2apic.is_logical(0x0012_fff7));
    }

    #[test]
    fn physical_destinations_have_8_bits_in_xapic_and_32_in_x2apic_mode() {
        assert!(XAPIC.is_physical(3));
        assert!(XAPIC.is_physical(0xff), "broadcast");
        assert!(!XAPIC.is_physical(0x103));
        let x2apic = Addressing {
            mode: Mode::X2Apic,
            id: 0x103,
            ..XAPIC
        };
        assert!(x2apic.is_physical(0x103));
        assert!(!x2apic.is_physical(3));
        assert!(!x2apic.is_physical(0xff));
    }

    #[test]
    fn a_disabled_apic_hears_nothing() {
        let disabled = Addressing {
            mode: Mode::Disabled,
            ..XAPIC
        };
        assert!(!disabled.is_destination(Destination::All));
        assert!(!disabled.is_destination(Destination::AllExcept(9)));
        assert!(!disabled.is_destination(Destination::Physical(3)));
        assert!(!disabled.is_destination(Destination::Logical(0xff)));
    }

    #[test]
    fn a_software_disabled_apic_hears_only_nmi_init_and_start_up() {
        let port = ApicPort::default();
        port.publish(Addressing {
            enabled: false,
            ..XAPIC
        });
        let message = |delivery_mode| ApicMessage {
            destination: Destination::Physical(3),
            delivery_mode,
            vector: 0x40,
            trigger: Trigger::Edge,
        };
        assert!(!port.accepts(&message(DeliveryMode::Fixed)));
        assert!(!port.accepts(&message(DeliveryMode::LowestPriority)));
        assert!(!port.accepts(&message(DeliveryMode::ExtInt)));
        assert!(port.accepts(&message(DeliveryMode::Nmi)));
        assert!(port.accepts(&message(DeliveryMode::Init)));
        assert!(port.accepts(&message(DeliveryMode::StartUp)));
        assert!(!port.post(&message(DeliveryMode::Fixed)));
        assert!(!port.has_incoming());
    }

    #[test]
    fn a_reset_forgets_the_start_up_before_it_but_not_the_one_after() {
        let before = Events::default()
            .with(DeliveryMode::StartUp, 7)
            .with(DeliveryMode::Init, 0);
        assert!(before.init());
        assert_eq!(before.start_up(), None);
        assert_eq!(before.with(DeliveryMode::StartUp, 9).start_up(), Some(9));
    }

    #[test]
    fn two_nmis_count_and_no_more() {
        let mut events = Events::default();
        for _ in 0..5 {
            events = events.with(DeliveryMode::Nmi, 0);
        }
        assert_eq!(events, Events(2));
    }
}
