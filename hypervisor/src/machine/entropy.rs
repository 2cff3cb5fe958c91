//! Random numbers for guests: a generator whose seed is the processor's, or else that of timing.

use core::arch::x86_64::{_rdrand64_step, _rdseed64_step};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use raw_cpuid::CpuId;
use raw_cpuid::native_cpuid::cpuid_count;

use super::host_time::host_now;

/// The number of times that an instruction is tried that may have no random number at the moment. RDRAND has one
/// by the tenth try on a processor in order (SDM vol. 1, 7.3.17.1); RDSEED may be asked for faster
/// than entropy comes.
const TRIES: u32 = 100;

/// The origin of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// RDSEED: the processor's source of entropy itself.
    Rdseed,
    /// RDRAND: a generator that the processor seeds from it.
    Rdrand,
    /// The time that things take: where the processor offers neither.
    Timing,
}

impl Origin {
    /// Returns the best that this processor has.
    fn best() -> Self {
        let cpuid = CpuId::new();
        if cpuid
            .get_extended_feature_info()
            .is_some_and(|features| features.has_rdseed())
        {
            Self::Rdseed
        } else if cpuid
            .get_feature_info()
            .is_some_and(|features| features.has_rdrand())
        {
            Self::Rdrand
        } else {
            Self::Timing
        }
    }

    /// Takes 64 bits from there; `None` if the processor has none to give.
    fn word(self) -> Option<u64> {
        (0..TRIES).find_map(|_| match self {
            // SAFETY: this processor has the instruction: that is how this origin was chosen.
            Self::Rdseed => unsafe { rdseed() },
            // SAFETY: as above.
            Self::Rdrand => unsafe { rdrand() },
            Self::Timing => Some(timing()),
        })
    }
}

/// Asks RDSEED for a number.
///
/// # Safety
/// The processor has RDSEED.
#[target_feature(enable = "rdseed")]
unsafe fn rdseed() -> Option<u64> {
    let mut word = 0;
    (_rdseed64_step(&mut word) == 1).then_some(word)
}

/// Asks RDRAND for a number.
///
/// # Safety
/// The processor has RDRAND.
#[target_feature(enable = "rdrand")]
unsafe fn rdrand() -> Option<u64> {
    let mut word = 0;
    (_rdrand64_step(&mut word) == 1).then_some(word)
}

/// Returns what differs in how long the same takes, over and over.
fn timing() -> u64 {
    const ROUNDS: u32 = 512;
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..ROUNDS {
        // A serializing instruction, which waits for all that is going on.
        core::hint::black_box(cpuid_count(0, 0));
        word = (word ^ host_now().0)
            .rotate_left(23)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    word
}

/// Returns a generator of random numbers with a seed of its own. Says so where the seed is only as
/// good as timing.
pub(crate) fn generator() -> impl FnMut() -> u64 + Send {
    let mut origin = Origin::best();
    let mut seed = <ChaCha20Rng as SeedableRng>::Seed::default();
    for bytes in seed.chunks_mut(8) {
        let word = origin.word().unwrap_or_else(|| {
            origin = Origin::Timing;
            timing()
        });
        // Timing besides costs nothing, and mends a processor that gives the same each time.
        let word = word ^ timing();
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
    if origin == Origin::Timing {
        log::warn!("this processor has no random numbers: those of guests are seeded by timing");
    }
    let mut generator = ChaCha20Rng::from_seed(seed);
    move || generator.next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_generators_give_the_same() {
        let mut words = std::collections::BTreeSet::new();
        for _ in 0..10 {
            let mut generator = generator();
            for _ in 0..100 {
                assert!(words.insert(generator()));
            }
        }
    }

    #[test]
    fn timing_alone_is_never_twice_the_same() {
        let words: std::collections::BTreeSet<u64> = (0..100).map(|_| timing()).collect();
        assert_eq!(words.len(), 100);
    }
}
