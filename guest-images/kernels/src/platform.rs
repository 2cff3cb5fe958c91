//! What the kernel runs on, so that tests which that thing is known to fail are skipped there.

use core::arch::x86_64::__cpuid;

/// Returns whether this is QEMU's own emulation, which checks less than a CPU does.
#[must_use]
pub fn is_tcg() -> bool {
    let leaf = __cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx] == [*b"TCGT", *b"CGTC", *b"GTCG"].map(u32::from_le_bytes)
}
