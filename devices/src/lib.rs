//! What a guest sees as hardware: its clocks, timers, interrupt controllers and
//! legacy devices, as pure state machines.
//!
//! Nothing in this crate touches hardware, knows about VMX, or has a time of its
//! own. A device is told the time ([`time::Now`]) with every access, returns what
//! the access reads, raises and lowers interrupt lines ([`line::Line`]), and says
//! when it next wants to be woken ([`time::TimerTicks`]). Whoever runs the guest
//! turns that into one host deadline through the [`clock::VirtualClock`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod apic_message;
pub mod bandwidth;
pub mod chipset;
pub mod clock;
pub mod guest_memory;
pub mod lapic;
pub mod line;
pub mod platform_map;
pub mod switch;
pub mod time;
pub mod tsc;
pub mod virtio;
