//! What targets for fuzzing are made with: `fuzzing::check!().with_type::<T>().for_each(|input| ...)`.
//!
//! With `cargo xtask fuzz`, libFuzzer makes the inputs. Among the other tests they are the same each time:
//! bolero's own engine draws its seeds from the operating system, and a change would fail by what another
//! one has broken. What libFuzzer finds becomes a plain test.

#![forbid(unsafe_code)]

#[cfg(fuzzing)]
pub use bolero::check;
#[cfg(not(fuzzing))]
pub use chosen::{Chosen, target};

/// Makes a target for fuzzing, of bytes at first.
#[cfg(not(fuzzing))]
#[macro_export]
macro_rules! check {
    () => {
        $crate::target()
    };
}

#[cfg(not(fuzzing))]
mod chosen {
    use bolero::bolero_engine::driver::Options;
    use bolero::bolero_engine::input::Bytes;
    use bolero::{BorrowedInput, ByteSliceGenerator, Engine, Test, TestTarget};

    /// The number of inputs.
    const INPUTS: u32 = 256;
    /// The most bytes that an input is made of. Behind its end, all is zero.
    const LONGEST: usize = 4096;

    /// The engine that has the same inputs each time.
    #[derive(Clone, Copy, Debug)]
    pub struct Chosen;

    /// Returns a target that is given bytes, or what is made of them.
    #[must_use]
    pub fn target() -> TestTarget<ByteSliceGenerator, Chosen, BorrowedInput> {
        TestTarget::new(Chosen)
    }

    impl<T: Test> Engine<T> for Chosen
    where
        T::Value: std::fmt::Debug,
    {
        type Output = ();

        fn run(self, mut test: T, options: Options) {
            bolero::bolero_engine::panic::set_hook();
            let mut random = SplitMix(0);
            for _ in 0..INPUTS {
                let input = random.input();
                bolero::bolero_engine::panic::forward_panic(false);
                let outcome = test.test(&mut Bytes::new(&input, &options));
                let Err(error) = outcome else { continue };
                let smallest = test.shrink(input.clone(), None, &options);
                bolero::bolero_engine::panic::forward_panic(true);
                match smallest {
                    Some(failure) => panic!("{failure:#}"),
                    // It fails with what was left by other inputs only.
                    None => panic!("{error}\nThe bytes of the input: {input:?}"),
                }
            }
            bolero::bolero_engine::panic::forward_panic(true);
        }
    }

    /// A generator of numbers: SplitMix64.
    struct SplitMix(u64);

    impl SplitMix {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }

        /// Returns bytes: half as many as at most, on average, and every other time few.
        fn input(&mut self) -> Vec<u8> {
            let drawn = self.next();
            let most = if drawn & 1 == 0 { LONGEST } else { 64 };
            let length = (drawn >> 1) as usize % (most + 1);
            let mut bytes = Vec::with_capacity(length + 8);
            while bytes.len() < length {
                bytes.extend(self.next().to_le_bytes());
            }
            bytes.truncate(length);
            bytes
        }
    }
}

#[cfg(all(test, not(fuzzing)))]
mod tests {
    use std::cell::RefCell;

    fn inputs() -> Vec<Vec<u8>> {
        let seen = std::panic::AssertUnwindSafe(RefCell::new(Vec::new()));
        crate::check!().for_each(|bytes: &[u8]| seen.borrow_mut().push(bytes.to_vec()));
        seen.0.into_inner()
    }

    #[test]
    fn inputs_are_the_same_each_time_and_each_is_another() {
        let mut seen = inputs();
        assert_eq!(seen, inputs());
        assert!(seen.len() >= 200 && seen.iter().any(|it| it.len() > 2000));
        seen.sort();
        seen.dedup();
        assert!(seen.len() >= 200);
    }

    #[test]
    #[should_panic(expected = "too long")]
    fn an_input_that_fails_ends_the_test() {
        crate::check!().for_each(|bytes: &[u8]| assert!(bytes.len() < 100, "too long"));
    }
}
