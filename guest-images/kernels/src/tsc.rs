//! The time-stamp counter, and time by it.

use core::arch::x86_64::{__cpuid, __cpuid_count, _mm_lfence, _rdtsc};

use crate::pit;

/// Returns the counter, read after all that comes before.
#[must_use]
pub fn now() -> u64 {
    // SAFETY: both instructions are there on every 64-bit CPU; LFENCE needs no SSE state.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Returns the frequency that CPUID leaf 0x15 tells, in Hz, if it does. SDM vol. 3B, 20.7.3.
#[must_use]
pub fn cpuid_hertz() -> Option<u64> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid_count(0x15, 0);
    if leaf.eax == 0 || leaf.ebx == 0 || leaf.ecx == 0 {
        return None;
    }
    Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax))
}

/// Returns the frequency measured against the PIT's channel 2, over 50 ms, in Hz.
#[must_use]
pub fn measured_hertz() -> u64 {
    const COUNT: u16 = (pit::HERTZ / 20) as u16;
    pit::set_gate2(false);
    pit::start(2, 0, COUNT);
    pit::set_gate2(true);
    let start = now();
    while !pit::output2() {}
    (now() - start) * pit::HERTZ / u64::from(COUNT)
}

/// Waits for `ticks`.
pub fn wait(ticks: u64) {
    let start = now();
    while now().wrapping_sub(start) < ticks {}
}

/// Waits until `condition` holds, for at most `ticks`; tells whether it came to hold.
pub fn wait_until(ticks: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = now();
    loop {
        if condition() {
            return true;
        }
        if now().wrapping_sub(start) >= ticks {
            return false;
        }
    }
}
