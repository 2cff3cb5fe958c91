//! ACPI's fixed hardware on the bus: the PM1a event and control blocks and the PM timer
//! (ACPI 6.5, 4.8).

use super::PowerRequest;
use super::bus::{Access, Context, Device, Outputs};
use super::pm_timer::{PmTimer, Width};
use super::pm1::Pm1;
use crate::time::{Hertz, Now, TimerTicks};

/// The device's regions.
const EVENT: usize = 0;
const CONTROL: usize = 1;
/// The device's output: the SCI.
const SCI: usize = 0;

/// The PM1a event block, the PM1a control block, and the PM timer.
#[derive(Clone, Debug)]
pub struct AcpiPm {
    timer: PmTimer,
    pm1: Pm1,
}

impl AcpiPm {
    /// Makes the blocks as they are after power-up, for a guest whose TSC runs at `tsc` and whose
    /// DSDT names the sleep type `s5` (0 to 7) in `\_S5`.
    #[must_use]
    pub const fn new(tsc: Hertz, s5: u8, now: Now) -> Self {
        // The FADT's flag TMR_VAL_EXT is set.
        let timer = PmTimer::new(Width::Bits32, tsc);
        Self {
            timer,
            pm1: Pm1::new(timer, s5, now),
        }
    }

    /// Returns the value of the PM timer.
    #[inline]
    #[must_use]
    pub const fn timer(&self, now: Now) -> u32 {
        self.timer.read(now)
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self, cx: &mut Context<'_>) {
        self.pm1.press_power_button(&mut cx.output(SCI));
    }
}

impl Device for AcpiPm {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        let offset = access.offset16();
        let value = match access.region {
            EVENT => self.pm1.read_event(offset, cx.now),
            CONTROL => self.pm1.read_control(offset),
            _ => self.timer.read_at(offset, cx.now),
        };
        value.into()
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let (offset, value, now) = (access.offset16(), value as u32, cx.now);
        match access.region {
            EVENT => {
                let sci = &mut cx.output(SCI);
                self.pm1.write_event(offset, access.size, value, now, sci);
            }
            CONTROL => {
                let off = self
                    .pm1
                    .write_control(offset, access.size, value, &mut cx.output(SCI));
                if off.is_some() {
                    cx.host.power(PowerRequest::Off);
                }
            }
            _ => {}
        }
    }

    fn next_deadline(&self, _: &Outputs<'_>) -> Option<TimerTicks> {
        self.pm1.next_deadline()
    }

    fn expire(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        self.pm1.expire(now, &mut cx.output(SCI));
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        self.pm1.reset(cx.now);
        cx.set_output(SCI, false);
    }
}
