//! Numbers in digits and nothing else: Rust's own parsers would let a sign pass.
#![forbid(unsafe_code)]

use core::str::FromStr;

/// Returns the number in these decimal digits; `None` if they are none, or there is no such `T`.
pub(crate) fn decimal<T: FromStr>(digits: &str) -> Option<T> {
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// Returns the number in these hexadecimal digits; `None` if they are none, or more than 64 bits.
pub(crate) fn hexadecimal(digits: &str) -> Option<u64> {
    let is_number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_and_nothing_else() {
        assert_eq!(decimal("007"), Some(7_u32));
        assert_eq!(hexadecimal("1a2B"), Some(0x1a2b));
        for word in ["", "+7", "-7", " 7", "7 "] {
            assert_eq!(decimal::<u32>(word), None, "{word}");
            assert_eq!(hexadecimal(word), None, "{word}");
        }
        assert_eq!(decimal::<u8>("256"), None);
        assert_eq!(hexadecimal("10000000000000000"), None);
    }
}
