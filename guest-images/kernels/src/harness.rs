//! The test harness: one line a test, a summary, a result.

use core::fmt::{Debug, Display, LowerHex};
use core::ops::RangeInclusive;

use crate::{exit, println};

/// The tests so far.
#[derive(Debug, Default)]
pub struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// A value as a failure shows it.
struct Shown<'a, T>(&'a T);

impl<T: Debug + LowerHex> Display for Shown<'_, T> {
    fn fmt(&self, formatter: &mut core::fmt::Formatter) -> core::fmt::Result {
        write!(formatter, "{:?} ({:#x})", self.0, self.0)
    }
}

impl Report {
    /// Makes a harness that has run no test yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn pass(&mut self, name: impl Display) {
        self.passed += 1;
        println!("PASS {name}");
    }

    fn fail(&mut self, name: impl Display, why: core::fmt::Arguments) {
        self.failed += 1;
        println!("FAIL {name}: {why}");
    }

    /// Passes if `got` is `expected`.
    pub fn equal<T: PartialEq + Debug + LowerHex>(
        &mut self,
        name: impl Display,
        got: T,
        expected: T,
    ) {
        if got == expected {
            self.pass(name);
        } else {
            self.fail(
                name,
                format_args!("expected {}, got {}", Shown(&expected), Shown(&got)),
            );
        }
    }

    /// Passes if `got` is `expected`, for values that are not numbers.
    pub fn same<T: PartialEq + Debug>(&mut self, name: impl Display, got: T, expected: T) {
        if got == expected {
            self.pass(name);
        } else {
            self.fail(name, format_args!("expected {expected:?}, got {got:?}"));
        }
    }

    /// Passes if `got` is in `range`.
    pub fn within(&mut self, name: impl Display, got: u64, range: RangeInclusive<u64>) {
        if range.contains(&got) {
            self.pass(name);
        } else {
            self.fail(
                name,
                format_args!("expected {} to {}, got {got}", range.start(), range.end()),
            );
        }
    }

    /// Passes if `got` differs from `expected` by at most `permille` thousandths of it.
    pub fn near(&mut self, name: impl Display, got: u64, expected: u64, permille: u64) {
        let slack = expected.saturating_mul(permille) / 1000;
        self.within(
            name,
            got,
            expected.saturating_sub(slack)..=expected.saturating_add(slack),
        );
    }

    /// Passes if `holds`.
    pub fn holds(&mut self, name: impl Display, holds: bool) {
        if holds {
            self.pass(name);
        } else {
            self.fail(name, format_args!("expected to hold, got the contrary"));
        }
    }

    /// Tells that a test makes no sense here.
    pub fn skip(&mut self, name: impl Display, why: &str) {
        self.skipped += 1;
        println!("SKIP {name}: {why}");
    }

    /// Prints the summary and ends the machine: with 0 if no test failed, else with how many (as far
    /// as seven bits go, since QEMU's exit status has no room for more).
    pub fn finish(&self) -> ! {
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        );
        let most = u32::from(exit::PANICKED) - 1;
        exit::exit(self.failed.min(most) as u8)
    }
}
