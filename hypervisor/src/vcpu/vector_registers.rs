//! The guest's vector registers, which stay live in the processor: the host uses none.

use core::arch::asm;

/// Runs an instruction on the vector register of a number that is known at run time only: between
/// the pieces of its text is the number.
macro_rules! with_register {
    ($index:expr, [$($text:literal),*], $memory:expr) => {
        with_register!(@ $index, [$($text),*], $memory,
            "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15")
    };
    (@ $index:expr, $text:tt, $memory:expr, $($number:literal)*) => {
        $(if $index & 15 == const { decimal($number) } {
            with_register!(@@ $text, $number, $memory);
        })*
    };
    (@@ [$before:literal, $after:literal], $number:literal, $memory:expr) => {
        // SAFETY: 16 bytes of ours; the vector registers are the guest's, which asks for this,
        // and the host sets CR4.OSFXSR. A guest that has AVX registers has enabled them in XCR0,
        // which is live, and the host sets CR4.OSXSAVE.
        unsafe {
            asm!(
                concat!($before, $number, $after),
                memory = in(reg) $memory,
                options(nostack, preserves_flags),
            );
        }
    };
    (@@ [$before:literal, $between:literal, $after:literal], $number:literal, $memory:expr) => {
        // SAFETY: as above.
        unsafe {
            asm!(
                concat!($before, $number, $between, $number, $after),
                memory = in(reg) $memory,
                options(nostack, preserves_flags),
            );
        }
    };
}

/// Returns the number that `digits` are.
const fn decimal(digits: &str) -> usize {
    let digits = digits.as_bytes();
    let mut value = 0;
    let mut index = 0;
    while index < digits.len() {
        value = value * 10 + (digits[index] - b'0') as usize;
        index += 1;
    }
    value
}

/// Returns XMM`index` (modulo 16) of the guest, which is live.
pub(super) fn xmm(index: usize) -> u128 {
    let mut value = 0u128;
    with_register!(index, ["movdqu [{memory}], xmm", ""], &raw mut value);
    value
}

/// Sets XMM`index` (modulo 16) of the guest, which is live.
pub(super) fn set_xmm(index: usize, value: u128) {
    with_register!(index, ["movdqu xmm", ", [{memory}]"], &raw const value);
}

/// Returns the high half of YMM`index` (modulo 16) of the guest, which is live and has AVX enabled.
pub(super) fn ymm_high(index: usize) -> u128 {
    let mut value = 0u128;
    with_register!(
        index,
        ["vextractf128 [{memory}], ymm", ", 1"],
        &raw mut value
    );
    value
}

/// Sets the high half of YMM`index` (modulo 16) of the guest, which is live and has AVX enabled.
pub(super) fn set_ymm_high(index: usize, value: u128) {
    with_register!(
        index,
        ["vinsertf128 ymm", ", ymm", ", [{memory}], 1"],
        &raw const value
    );
}
