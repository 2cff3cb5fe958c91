//! The pair of 8259 interrupt controllers. 8259A datasheet.

use x86_64::instructions::port::Port;

/// The vector of the first of IRQ 0 to 7, as [`init`] sets it; IRQ 8 to 15 follow.
pub const BASE: u8 = 0x20;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pic {
    /// IRQ 0 to 7.
    Master,
    /// IRQ 8 to 15, behind the master's IRQ 2.
    Slave,
}

impl Pic {
    fn port(self) -> u16 {
        match self {
            Self::Master => 0x20,
            Self::Slave => 0xa0,
        }
    }

    /// Writes the command port (A0 low).
    pub fn command(self, value: u8) {
        // SAFETY: the 8259 touches no memory.
        unsafe { Port::new(self.port()).write(value) }
    }

    /// Writes the data port (A0 high): the mask, outside of initialization.
    pub fn data(self, value: u8) {
        // SAFETY: as above.
        unsafe { Port::new(self.port() + 1).write(value) }
    }

    /// Reads the mask.
    #[must_use]
    pub fn mask(self) -> u8 {
        // SAFETY: as above.
        unsafe { Port::new(self.port() + 1).read() }
    }

    fn status(self) -> u8 {
        // SAFETY: as above.
        unsafe { Port::new(self.port()).read() }
    }

    /// Reads the interrupt request register.
    #[must_use]
    pub fn requests(self) -> u8 {
        self.command(0x0a);
        self.status()
    }

    /// Reads the in-service register.
    #[must_use]
    pub fn in_service(self) -> u8 {
        self.command(0x0b);
        self.status()
    }

    /// Sends the poll command: acknowledges the highest request as an interrupt would.
    #[must_use]
    pub fn poll(self) -> u8 {
        self.command(0x0c);
        self.status()
    }

    /// Sends a non-specific end of interrupt.
    pub fn end(self) {
        self.command(0x20);
    }
}

/// Initializes both, with IRQ 0 at vector [`BASE`], all masked.
pub fn init() {
    for (pic, base, cascade) in [(Pic::Master, BASE, 1 << 2), (Pic::Slave, BASE + 8, 2)] {
        pic.command(0x11);
        pic.data(base);
        pic.data(cascade);
        pic.data(0x01);
        pic.data(0xff);
    }
}

/// Unmasks `irq`, and the cascade where it needs that.
pub fn unmask(irq: u8) {
    if irq < 8 {
        Pic::Master.data(Pic::Master.mask() & !(1 << irq));
    } else {
        Pic::Slave.data(Pic::Slave.mask() & !(1 << (irq - 8)));
        Pic::Master.data(Pic::Master.mask() & !(1 << 2));
    }
}

/// Masks all.
pub fn mask_all() {
    Pic::Slave.data(0xff);
    Pic::Master.data(0xff);
}

/// Ends the interrupt of `irq`.
pub fn end(irq: u8) {
    if irq >= 8 {
        Pic::Slave.end();
    }
    Pic::Master.end();
}
