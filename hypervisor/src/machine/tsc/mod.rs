//! The frequency of the TSC, measured against a timer whose frequency is known.
//!
//! CPUID leaves 0x15 and 0x16 would tell it, but an emulated CPU's say what the model's hardware
//! would do, not what the emulator does. So they are trusted only where no timer counts.

use core::fmt;

use arch::cpuid::EXTENDED;
use devices::time::Hertz;
use raw_cpuid::CpuIdResult;
use x86_64::instructions::port::Port;

use super::acpi::{Acpi, PmTimer};

#[cfg(test)]
mod tests;

/// The timer that was measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The HPET's main counter.
    Hpet,
    /// The ACPI power management timer.
    PmTimer,
    /// Channel 2 of the 8254.
    Pit,
    /// CPUID leaf 0x15: what the processor says of its crystal.
    CpuidCrystal,
    /// CPUID leaf 0x16: what the processor says of its base frequency.
    CpuidBase,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hpet => "HPET",
            Self::PmTimer => "ACPI PM timer",
            Self::Pit => "PIT",
            Self::CpuidCrystal => "CPU's own account (CPUID 0x15)",
            Self::CpuidBase => "CPU's own account (CPUID 0x16)",
        })
    }
}

/// The result of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Calibration {
    /// TSC ticks in a second.
    pub frequency: Hertz,
    /// The clock that it was measured against.
    pub source: Source,
    /// The bound of the measurement's own error, in millionths (without the error of the
    /// timer's oscillator).
    pub error_ppm: u64,
}

/// A lack of timers that count in a way that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoTimer;

/// The duration of a measurement, in nanoseconds.
const DURATION_NS: u64 = 30_000_000;
/// Edges of the timer that are looked at, at each end, for the one seen most sharply.
const EDGES: u32 = 32;
/// The number of reads of a timer without seeing it change before it is held to be stopped; over 50
/// ms with any timer, at least 0.1 us a read.
const READS_WITHOUT_CHANGE: u32 = 500_000;

/// A counter of known frequency.
trait Timer {
    /// Returns its frequency in hertz, as numerator and denominator.
    fn frequency(&self) -> (u64, u64);
    /// Returns its bits that count.
    fn mask(&self) -> u64;
    /// Returns its value; the bits that do not count are undefined.
    fn read(&mut self) -> u64;
}

/// A moment at which the timer was seen to change, between two readings of the TSC: before the last
/// reading of the timer that showed the old value, and after the first that showed the new one.
#[derive(Clone, Copy, Debug)]
struct Edge {
    timer: u64,
    tsc_before: u64,
    tsc_after: u64,
}

impl Edge {
    fn uncertainty(&self) -> u64 {
        self.tsc_after.wrapping_sub(self.tsc_before)
    }

    fn tsc(&self) -> u64 {
        self.tsc_before.wrapping_add(self.uncertainty() / 2)
    }
}

/// Measures the TSC's frequency, by the best timer there is, which takes about 30 ms; where none
/// works, takes the processor's word for it.
///
/// # Errors
/// If no timer works, and the processor says nothing.
///
/// # Safety
/// Must own the timers, with their MMIO identity-mapped and the addresses in `acpi` right.
pub(crate) unsafe fn calibrate(acpi: &Acpi) -> Result<Calibration, NoTimer> {
    let tsc = || {
        // SAFETY: reads a counter. The fences keep it between the reads of the timer.
        unsafe {
            core::arch::x86_64::_mm_lfence();
            let tsc = core::arch::x86_64::_rdtsc();
            core::arch::x86_64::_mm_lfence();
            tsc
        }
    };
    // SAFETY: by the caller.
    let hpet = acpi
        .hpet
        .and_then(|address| unsafe { Hpet::start(address) });
    if let Some(mut hpet) = hpet
        && let Some(calibration) = measure(&mut hpet, Source::Hpet, tsc)
    {
        return Ok(calibration);
    }
    if let Some(pm_timer) = acpi.pm_timer
        && let Some(calibration) = measure(&mut AcpiTimer::new(pm_timer), Source::PmTimer, tsc)
    {
        return Ok(calibration);
    }
    // SAFETY: by the caller.
    let mut pit = unsafe { Pit::start() };
    measure(&mut pit, Source::Pit, tsc)
        .or_else(|| by_cpuid(raw_cpuid::native_cpuid::cpuid_count))
        .ok_or(NoTimer)
}

/// Returns the TSC's frequency as `cpuid` (leaf, sub-leaf) has it (SDM vol. 3B, 18.7.3).
fn by_cpuid(cpuid: impl Fn(u32, u32) -> CpuIdResult) -> Option<Calibration> {
    const TIME_STAMP_COUNTER: u32 = 0x15;
    const PROCESSOR_FREQUENCY: u32 = 0x16;
    /// A crystal keeps to what it says within this.
    const CRYSTAL_PPM: u64 = 100;
    /// The base frequency is given in MHz, and rounded to what looks good.
    const BASE_PPM: u64 = 10_000;
    let last = cpuid(0, 0).eax;
    let leaf = |number| (last >= number).then(|| cpuid(number, 0));
    let ratio = leaf(TIME_STAMP_COUNTER).filter(|leaf| leaf.eax != 0 && leaf.ebx != 0);
    if let Some(ratio) = ratio
        && ratio.ecx != 0
    {
        let hertz = u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax);
        return Some(Calibration {
            frequency: Hertz::try_new(hertz)?,
            source: Source::CpuidCrystal,
            error_ppm: CRYSTAL_PPM,
        });
    }
    let megahertz = leaf(PROCESSOR_FREQUENCY)?.eax & 0xffff;
    Some(Calibration {
        frequency: Hertz::try_new(u64::from(megahertz) * 1_000_000)?,
        source: Source::CpuidBase,
        error_ppm: BASE_PPM,
    })
}

/// Returns whether the TSC counts at one rate whatever the processor does, by `cpuid` (leaf, sub-leaf).
#[must_use]
pub(crate) fn is_invariant(cpuid: impl Fn(u32, u32) -> CpuIdResult) -> bool {
    const POWER_MANAGEMENT: u32 = EXTENDED + 7;
    const INVARIANT_TSC: u32 = 1 << 8;
    cpuid(EXTENDED, 0).eax >= POWER_MANAGEMENT
        && cpuid(POWER_MANAGEMENT, 0).edx & INVARIANT_TSC != 0
}

/// Measures `tsc` against `timer`, or finds that the timer does not count.
fn measure(
    timer: &mut impl Timer,
    source: Source,
    mut tsc: impl FnMut() -> u64,
) -> Option<Calibration> {
    let (numerator, denominator) = timer.frequency();
    let mask = timer.mask();
    let wanted =
        u128::from(DURATION_NS) * u128::from(numerator) / (u128::from(denominator) * 1_000_000_000);
    let first = sharpest_edge(timer, &mut tsc)?;
    // The timer may be slow, but it does change: `sharpest_edge` has seen it.
    while u128::from(timer.read().wrapping_sub(first.timer) & mask) < wanted {}
    let last = sharpest_edge(timer, &mut tsc)?;

    let periods = last.timer.wrapping_sub(first.timer) & mask;
    let ticks = last.tsc().wrapping_sub(first.tsc());
    let hertz = u128::from(ticks) * u128::from(numerator)
        / (u128::from(periods) * u128::from(denominator)).max(1);
    // Each end lies within half its window of where it is taken to be.
    let error = (first.uncertainty() + last.uncertainty()).div_ceil(2);
    Some(Calibration {
        frequency: Hertz::try_new(u64::try_from(hertz).ok()?)?,
        source,
        error_ppm: (u128::from(error) * 1_000_000)
            .div_ceil(u128::from(ticks).max(1))
            .try_into()
            .ok()?,
    })
}

/// Returns, of the next few changes of the timer, the one that was seen with the least delay: an
/// emulator, or firmware in system management mode, may take the CPU away at any of them.
fn sharpest_edge(timer: &mut impl Timer, tsc: &mut impl FnMut() -> u64) -> Option<Edge> {
    let mut best: Option<Edge> = None;
    for _ in 0..EDGES {
        let edge = next_edge(timer, tsc)?;
        if best.is_none_or(|best| edge.uncertainty() < best.uncertainty()) {
            best = Some(edge);
        }
    }
    best
}

fn next_edge(timer: &mut impl Timer, tsc: &mut impl FnMut() -> u64) -> Option<Edge> {
    let mask = timer.mask();
    let mut tsc_before = tsc();
    let mut before = timer.read() & mask;
    let mut tsc_between = tsc();
    for _ in 0..READS_WITHOUT_CHANGE {
        let now = timer.read() & mask;
        let tsc_after = tsc();
        if now != before {
            return Some(Edge {
                timer: now,
                tsc_before,
                tsc_after,
            });
        }
        before = now;
        tsc_before = tsc_between;
        tsc_between = tsc_after;
    }
    None
}

/// The High Precision Event Timer (IA-PC HPET Specification 1.0a, 2.3).
struct Hpet {
    registers: *mut u64,
    /// The counter's period in femtoseconds.
    period: u64,
}

impl Hpet {
    const CAPABILITIES: usize = 0;
    const CONFIGURATION: usize = 0x10 / 8;
    const COUNTER: usize = 0xf0 / 8;
    /// The longest period that the specification allows.
    const LONGEST_PERIOD: u64 = 100_000_000;

    /// Lets the counter run, if the registers look like an HPET's.
    ///
    /// # Safety
    /// `address` must be that of an HPET, identity-mapped, and unused.
    unsafe fn start(address: u64) -> Option<Self> {
        const ENABLE: u64 = 1 << 0;
        let registers = address as *mut u64;
        // SAFETY: by the caller.
        let period = unsafe {
            let configuration = registers.add(Self::CONFIGURATION);
            configuration.write_volatile(configuration.read_volatile() | ENABLE);
            registers.add(Self::CAPABILITIES).read_volatile() >> 32
        };
        (1..=Self::LONGEST_PERIOD)
            .contains(&period)
            .then_some(Self { registers, period })
    }
}

impl Timer for Hpet {
    fn frequency(&self) -> (u64, u64) {
        (1_000_000_000_000_000, self.period)
    }

    /// Returns the low half, as the counter may have no other, and as a read of both may be torn.
    fn mask(&self) -> u64 {
        0xffff_ffff
    }

    fn read(&mut self) -> u64 {
        // SAFETY: an HPET's registers, by `start`'s caller.
        u64::from(unsafe {
            self.registers
                .add(Self::COUNTER)
                .cast::<u32>()
                .read_volatile()
        })
    }
}

/// The ACPI power management timer (ACPI 6.5, 4.8.3.3).
struct AcpiTimer {
    port: Port<u32>,
    mask: u64,
}

impl AcpiTimer {
    fn new(timer: PmTimer) -> Self {
        Self {
            port: Port::new(timer.port),
            mask: if timer.bits == 32 {
                0xffff_ffff
            } else {
                0xff_ffff
            },
        }
    }
}

impl Timer for AcpiTimer {
    fn frequency(&self) -> (u64, u64) {
        (3_579_545, 1)
    }

    fn mask(&self) -> u64 {
        self.mask
    }

    fn read(&mut self) -> u64 {
        // SAFETY: the timer's port by the FADT; reading has no side effect.
        u64::from(unsafe { self.port.read() })
    }
}

/// Channel 2 of the 8254, which is the speaker's. Good for 54 ms.
struct Pit {
    command: Port<u8>,
    channel2: Port<u8>,
}

impl Pit {
    const LATCH_CHANNEL_2: u8 = 0x80;

    /// Lets the counter run through all its 65,536 states, without a sound.
    ///
    /// # Safety
    /// Must own the PIT and port 0x61.
    unsafe fn start() -> Self {
        const CHANNEL_2_BOTH_BYTES_MODE_2: u8 = 0xb4;
        const GATE: u8 = 1 << 0;
        const SPEAKER: u8 = 1 << 1;
        let mut pit = Self {
            command: Port::new(0x43),
            channel2: Port::new(0x42),
        };
        let mut control = Port::<u8>::new(0x61);
        // SAFETY: by the caller.
        unsafe {
            let old = control.read();
            control.write(old & !SPEAKER | GATE);
            pit.command.write(CHANNEL_2_BOTH_BYTES_MODE_2);
            pit.channel2.write(0);
            pit.channel2.write(0);
        }
        pit
    }
}

impl Timer for Pit {
    fn frequency(&self) -> (u64, u64) {
        (14_318_180, 12)
    }

    fn mask(&self) -> u64 {
        0xffff
    }

    fn read(&mut self) -> u64 {
        // SAFETY: the PIT is ours by `start`'s caller.
        let count = unsafe {
            self.command.write(Self::LATCH_CHANNEL_2);
            u16::from_le_bytes([self.channel2.read(), self.channel2.read()])
        };
        // It counts down.
        u64::from(count).wrapping_neg()
    }
}
