//! The local APIC of one virtual processor (SDM vol. 3A, chapter 11).
//!
//! A [`LocalApic`] belongs to its processor and is used only by the CPU that runs it, with
//! no lock. What others need of it is in its [`ApicPort`]: they ask whether a message is for
//! it, post the message, and make the owner look. Messages from here leave through an
//! [`ApicBus`]; [`Router`] is what a bus needs to find the ports.
//!
//! The registers live in an [`ApicPage`] which is also a virtual-APIC page of VMX. So the
//! owner may let the hardware do as much as it can: shadow the TPR, serve reads, deliver
//! interrupts ([`LocalApic::set_virtual_interrupt_delivery`]), or nothing.
//!
//! A round of the owner's loop is: [`LocalApic::expire`] if [`LocalApic::next_deadline`] has
//! come, [`LocalApic::accept_incoming`], then NMI, INIT and start-up, then [`LocalApic::pending`] and,
//! if the processor can take it, [`LocalApic::acknowledge`].

mod access;
mod base;
mod error;
mod icr;
mod incoming;
mod lvt;
mod page;
mod port;
mod posted;
mod priority;
mod router;
mod timer;

#[cfg(test)]
mod tests;

use alloc::sync::Arc;

use arch::GeneralProtection;
use arch::apic::{dfr, lvt as lvt_bits, svr, version};

use crate::apic_message::ApicMessage;
use crate::time::Hertz;
use error::Errors;
use lvt::Pin;
use port::{Addressing, x2apic_logical_id};
use priority::Priority;
use timer::Timer;

pub use arch::apic::Register;
pub use base::{ApicBase, Mode};
pub use lvt::LocalPin;
pub use page::{ApicPage, VectorRegister};
pub use port::ApicPort;
pub use posted::PostedInterrupts;
pub use priority::Highest;
pub use router::Router;

/// The bus that a local APIC sends its messages to.
pub trait ApicBus {
    /// Delivers `message` to all ports that accept it, which may include the sender's.
    fn send(&mut self, message: ApicMessage);

    /// Tells the I/O APICs that a processor is done with the level-triggered `vector`.
    fn end_of_interrupt(&mut self, vector: u8);
}

/// The configuration of a local APIC.
#[derive(Clone, Copy, Debug)]
pub struct ApicConfig {
    /// The initial APIC ID, as CPUID leaf 0xb shows it. In xAPIC mode its low eight bits
    /// count.
    pub id: u32,
    /// Whether this is the bootstrap processor.
    pub bootstrap: bool,
    /// The frequency of guest time.
    pub tsc_hz: Hertz,
    /// The frequency of the timer's input clock, before its divider: the core crystal clock
    /// that CPUID leaf 0x15 shows.
    pub timer_hz: Hertz,
    /// The number of bits of guest-physical addresses, as CPUID leaf 0x8000_0008 shows it.
    pub physical_address_bits: u8,
    /// Whether there is an LVT entry for corrected machine checks, as IA32_MCG_CAP shows.
    pub cmci: bool,
}

/// The interrupt that the processor should take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A vector of this APIC: [`LocalApic::acknowledge`] takes it.
    Vector(u8),
    /// An interrupt whose vector the 8259 pair knows. [`LocalApic::take_ext_int`] takes it.
    ExtInt,
}

bitflags::bitflags! {
    /// The sources that ask for an interrupt of the 8259 pair.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct ExtInts: u8 {
        /// A pin, as long as it is asserted.
        const PIN = 1;
        /// A message, once.
        const MESSAGE = 2;
    }
}

/// A local APIC. See the [module documentation](self).
pub struct LocalApic {
    port: Arc<ApicPort>,
    config: ApicConfig,
    base: ApicBase,
    mode: Mode,
    /// The enable bit of the SVR, which the hardware may overwrite in the page.
    software_enabled: bool,
    priority: Priority,
    timer: Timer,
    errors: Errors,
    pins: [Pin; 2],
    ext_ints: ExtInts,
    nmis: u8,
    init: bool,
    start_up: Option<u8>,
}

impl LocalApic {
    /// Makes a local APIC after power-up.
    #[must_use]
    pub fn new(config: ApicConfig) -> Self {
        let mut apic = Self {
            port: Arc::default(),
            config,
            base: ApicBase::power_up(config.bootstrap),
            mode: Mode::XApic,
            software_enabled: false,
            priority: Priority::default(),
            timer: Timer::new(config.timer_hz, config.tsc_hz),
            errors: Errors::new(),
            pins: [Pin::default(); 2],
            ext_ints: ExtInts::empty(),
            nmis: 0,
            init: false,
            start_up: None,
        };
        apic.power_up();
        apic
    }

    /// Goes back to the state after power-up (SDM vol. 3A, 11.4.7.1); posted messages are lost. The
    /// pins keep their levels, and the guest's TSC its offset.
    pub fn power_up(&mut self) {
        let _ = self.port.take_incoming();
        self.base = ApicBase::power_up(self.config.bootstrap);
        self.mode = Mode::XApic;
        self.init = false;
        self.start_up = None;
        self.init_reset();
    }

    /// Goes to the state after an INIT (SDM vol. 3A, 11.4.7.3 and 11.12.5.1): as after power-up,
    /// but with the mode and the ID as they are, and with a start-up that has come since.
    pub fn init_reset(&mut self) {
        self.nmis = 0;
        self.ext_ints = ExtInts::empty();
        self.reset_registers();
    }

    /// Gives all registers but the mode the values that they have after power-up.
    fn reset_registers(&mut self) {
        self.software_enabled = false;
        self.errors = Errors::new();
        self.timer.reset();
        for pin in &mut self.pins {
            *pin = pin.without_remote_irr();
        }
        let page = self.port.page();
        for register in [
            Register::TPR,
            Register::ESR,
            Register::ICR_LOW,
            Register::X2APIC_ICR_HIGH,
            Register::ICR_HIGH,
            Register::INITIAL_COUNT,
            Register::DIVIDE,
        ] {
            page.write(register, 0);
        }
        for register in Register::LVT {
            page.write(register, lvt_bits::MASKED);
        }
        let lvt_entries = Register::LVT.len() as u32 - u32::from(!self.config.cmci);
        page.write(Register::VERSION, version::with_lvt_entries(lvt_entries));
        page.write(Register::SVR, svr::RESET);
        self.priority.clear(page);
        self.reset_addressing();
    }

    /// Follows what IA32_APIC_BASE has changed.
    fn change_mode(&mut self, mode: Mode) {
        let from = core::mem::replace(&mut self.mode, mode);
        if mode == Mode::Disabled {
            // SDM vol. 3A, 11.4.3: the state that it was in may be lost, and is.
            self.reset_registers();
        } else if from == Mode::X2Apic || mode == Mode::X2Apic {
            self.page().write(Register::ICR_HIGH, 0);
            self.page().write(Register::X2APIC_ICR_HIGH, 0);
            self.reset_addressing();
        } else {
            self.publish();
        }
        self.update_ext_int();
    }

    /// Gives the ID and the logical ID the values that the mode starts with.
    fn reset_addressing(&mut self) {
        self.show_id();
        let logical_id = if self.mode == Mode::X2Apic {
            x2apic_logical_id(self.config.id)
        } else {
            0
        };
        self.page().write(Register::LDR, logical_id);
        self.page().write(Register::DFR, u32::MAX);
        self.publish();
        self.update_ext_int();
    }

    fn show_id(&self) {
        let id = if self.mode == Mode::X2Apic {
            self.config.id
        } else {
            self.config.id << 24
        };
        self.page().write(Register::ID, id);
    }

    /// Tells the senders of messages how this APIC is addressed now.
    fn publish(&self) {
        self.port.publish(Addressing {
            id: self.config.id,
            logical_id: (self.page().read(Register::LDR) >> 24) as u8,
            model: ((self.page().read(Register::DFR) & dfr::MODEL) >> 28) as u8,
            mode: self.mode,
            enabled: self.software_enabled && self.mode != Mode::Disabled,
        });
    }

    /// Sets what firmware leaves behind on a PC, "virtual wire mode" (Intel MultiProcessor
    /// Specification, 3.6.2.2): enabled by software, the 8259 pair at LINT0 and NMIs at
    /// LINT1.
    pub fn enter_virtual_wire_mode(&mut self) {
        self.software_enabled = true;
        let page = self.page();
        page.write(Register::SVR, svr::RESET | svr::ENABLED);
        page.write(Register::LVT_LINT0, 7 << 8);
        page.write(Register::LVT_LINT1, 4 << 8);
        self.publish();
        self.update_ext_int();
    }

    /// Returns whether software has enabled it, in the SVR: else it takes no fixed interrupts.
    #[must_use]
    #[inline]
    pub const fn is_software_enabled(&self) -> bool {
        self.software_enabled
    }

    /// Returns the side of this APIC that others see.
    #[must_use]
    pub fn port(&self) -> &Arc<ApicPort> {
        &self.port
    }

    /// Returns the registers.
    #[must_use]
    #[inline]
    pub fn page(&self) -> &ApicPage {
        self.port.page()
    }

    /// Returns whether `message` is for this APIC: see [`ApicPort::accepts`].
    #[must_use]
    pub fn accepts(&self, message: &ApicMessage) -> bool {
        self.port.accepts(message)
    }

    /// Returns what the processor should be interrupted with now, if it can be: an interrupt of the
    /// 8259 pair, which has no priority here, or the highest vector above the processor priority.
    #[must_use]
    #[inline]
    pub fn pending(&self) -> Option<Pending> {
        self.pending_of(self.highest())
    }

    /// Returns what [`LocalApic::pending`] does, from a look that the caller has had by
    /// [`LocalApic::highest`].
    #[must_use]
    #[inline]
    pub fn pending_of(&self, highest: Highest) -> Option<Pending> {
        if !self.ext_ints.is_empty() {
            return Some(Pending::ExtInt);
        }
        if self.mode == Mode::Disabled {
            return None;
        }
        Priority::deliverable_of(self.page(), highest).map(Pending::Vector)
    }

    /// Returns the answer to the processor's interrupt acknowledge: the pending vector, now in
    /// service, or the spurious vector if there is none any more (SDM vol. 3A, 11.9).
    #[inline]
    pub fn acknowledge(&mut self) -> u8 {
        if self.mode != Mode::Disabled
            && let Some(vector) = self.priority.acknowledge(self.port.page())
        {
            return vector;
        }
        self.page().read(Register::SVR) as u8
    }

    /// Ends the highest vector in service.
    #[inline]
    fn end_of_interrupt(&mut self, bus: &mut impl ApicBus) {
        if let Some(vector) = self.priority.end_of_interrupt(self.port.page()) {
            self.after_virtualized_eoi(vector, bus);
        }
    }

    /// Finishes the end of interrupt `vector` that the hardware has taken out of service:
    /// the answer to a VM exit "virtualized EOI" (SDM vol. 3C, 30.1.4).
    #[inline]
    pub fn after_virtualized_eoi(&mut self, vector: u8, bus: &mut impl ApicBus) {
        if self.page().has_vector(VectorRegister::Tmr, vector) {
            self.end_of_level_interrupt(vector, bus);
        }
    }

    #[cold]
    fn end_of_level_interrupt(&mut self, vector: u8, bus: &mut impl ApicBus) {
        if self.page().read(Register::SVR) & svr::SUPPRESS_EOI_BROADCAST == 0 {
            bus.end_of_interrupt(vector);
        }
        self.pins_end_of_interrupt(vector);
    }

    /// Returns the task-priority register: the class in bits 4 to 7, the sub-class below.
    #[must_use]
    #[inline]
    pub fn task_priority(&self) -> u8 {
        self.page().read(Register::TPR) as u8
    }

    /// Sets the task-priority register.
    #[inline]
    pub fn set_task_priority(&mut self, priority: u8) {
        self.page().write(Register::TPR, u32::from(priority));
        self.priority.update(self.port.page());
    }

    /// Returns CR8: the class of the task priority (SDM vol. 3A, 11.8.6).
    #[must_use]
    #[inline]
    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority() >> 4)
    }

    /// Takes a write of CR8, which works in every mode of the APIC.
    ///
    /// # Errors
    /// If any of bits 4 to 63 is set.
    #[inline]
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value > 15 {
            return Err(GeneralProtection);
        }
        self.set_task_priority((value as u8) << 4);
        Ok(())
    }

    /// Returns the processor priority (SDM vol. 3A, 11.8.3.1).
    #[must_use]
    #[inline]
    pub fn processor_priority(&self) -> u8 {
        self.priority.processor_priority(self.page())
    }

    /// Returns, for the TPR threshold of VMX without virtual-interrupt delivery, the task-priority
    /// class below which the highest requested vector would be delivered; zero if it is not the
    /// task priority that holds it back.
    #[must_use]
    pub fn tpr_threshold(&self) -> u8 {
        let task = self.task_priority() >> 4;
        match self.highest_irr() {
            Some(vector) if vector >> 4 <= task => vector >> 4,
            _ => 0,
        }
    }

    /// Returns the highest vectors that are requested and in service, after a look at all of them.
    #[must_use]
    #[inline]
    pub fn highest(&self) -> Highest {
        self.priority.highest_of_both(self.page())
    }

    /// Returns which vectors were last accepted as level-triggered, if that may have changed since the
    /// last call.
    #[inline]
    pub fn take_changed_modes(&mut self) -> Option<[u64; 4]> {
        self.priority
            .take_mode_change()
            .then(|| self.page().bitmap(VectorRegister::Tmr))
    }

    /// Returns the highest requested vector: RVI of the guest interrupt status.
    #[must_use]
    #[inline]
    pub fn highest_irr(&self) -> Option<u8> {
        self.priority.highest_request(self.page())
    }

    /// Returns the highest vector in service: SVI of the guest interrupt status.
    #[must_use]
    #[inline]
    pub fn highest_isr(&self) -> Option<u8> {
        self.priority.highest_in_service(self.page())
    }

    /// Says whether the hardware moves vectors from IRR to ISR and out of it by itself.
    pub fn set_virtual_interrupt_delivery(&mut self, on: bool) {
        self.priority.set_hardware_delivers(self.port.page(), on);
    }
}
