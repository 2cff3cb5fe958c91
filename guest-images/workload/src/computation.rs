//! The fixed computation that a worker repeats.
//!
//! A linear congruential generator, stepped one by one: pure ALU work of the same length each time,
//! with no memory access. Its end is also known in closed form, which makes the result checkable
//! without doing the work twice: a register that a hypervisor failed to restore shows.

use core::arch::asm;

/// Knuth's MMIX multiplier.
pub const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
/// Knuth's MMIX increment.
pub const INCREMENT: u64 = 1_442_695_040_888_963_407;

/// Returns one unit of work: the state after `rounds` steps from `seed`, step by step.
#[must_use]
pub fn stepwise(seed: u64, rounds: u64) -> u64 {
    let mut state = seed;
    for _ in 0..rounds {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
        // The optimiser knows that steps compose, too, and would take eight at once.
        // SAFETY: no instruction at all.
        unsafe {
            asm!("/* {0} */", inout(reg) state, options(pure, nomem, nostack, preserves_flags))
        };
    }
    state
}

/// Returns what [`stepwise`] must come to, found by squaring the step: about 64 steps for any
/// `rounds`.
#[must_use]
pub fn closed_form(seed: u64, rounds: u64) -> u64 {
    // The map of all steps so far, and the map of 2^k steps, each as x -> x * multiplier + increment.
    let (mut multiplier, mut increment) = (1_u64, 0_u64);
    let (mut power_multiplier, mut power_increment) = (MULTIPLIER, INCREMENT);
    let mut rest = rounds;
    while rest != 0 {
        if rest & 1 == 1 {
            multiplier = multiplier.wrapping_mul(power_multiplier);
            increment = increment
                .wrapping_mul(power_multiplier)
                .wrapping_add(power_increment);
        }
        power_increment = power_increment.wrapping_mul(power_multiplier.wrapping_add(1));
        power_multiplier = power_multiplier.wrapping_mul(power_multiplier);
        rest >>= 1;
    }
    seed.wrapping_mul(multiplier).wrapping_add(increment)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_round_leaves_the_seed() {
        assert_eq!(stepwise(42, 0), 42);
        assert_eq!(closed_form(42, 0), 42);
    }

    #[test]
    fn one_round_is_one_step() {
        assert_eq!(stepwise(0, 1), INCREMENT);
        assert_eq!(closed_form(1, 1), MULTIPLIER.wrapping_add(INCREMENT));
    }

    proptest! {
        #[test]
        fn stepping_ends_where_the_closed_form_says(seed: u64, rounds in 0_u64..5_000) {
            prop_assert_eq!(stepwise(seed, rounds), closed_form(seed, rounds));
        }

        #[test]
        fn a_flipped_bit_shows_in_the_result(seed: u64, rounds in 0_u64..5_000, bit in 0_u32..64) {
            prop_assert_ne!(stepwise(seed ^ (1 << bit), rounds), closed_form(seed, rounds));
        }
    }
}
