//! The ACPI PM timer. ACPI specification, 4.8.2.1.

use x86_64::instructions::port::Port;

use crate::acpi;

/// The PM timer's frequency.
pub const HERTZ: u64 = 3_579_545;

/// The PM timer.
#[derive(Clone, Copy, Debug)]
pub struct PmTimer {
    /// Its port.
    pub port: u16,
    /// The bits that count.
    pub mask: u32,
}

impl PmTimer {
    /// Returns the PM timer that ACPI tells of.
    #[must_use]
    pub fn find() -> Option<Self> {
        let (port, wide) = acpi::pm_timer()?;
        Some(Self {
            port,
            mask: if wide { u32::MAX } else { 0x00ff_ffff },
        })
    }

    /// Returns the counter.
    #[must_use]
    pub fn read(self) -> u32 {
        // SAFETY: the PM timer touches no memory.
        unsafe { Port::<u32>::new(self.port).read() & self.mask }
    }

    /// Returns the ticks from `earlier` to `later`, at most one wrap apart.
    #[must_use]
    pub fn between(self, earlier: u32, later: u32) -> u64 {
        u64::from(later.wrapping_sub(earlier) & self.mask)
    }
}
