//! Values that are typed: from words to numbers.

use super::error::CommandError;
use crate::suppression::Factor;

/// Parses a value of CR3: hexadecimal digits, with or without `0x`.
pub(super) fn cr3(word: &str) -> Result<u64, CommandError> {
    let digits = word
        .strip_prefix("0x")
        .or_else(|| word.strip_prefix("0X"))
        .unwrap_or(word);
    // `from_str_radix` would let a sign pass.
    let is_number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let value = u64::from_str_radix(digits, 16).ok();
    value.filter(|_| is_number).ok_or_else(|| {
        CommandError::new(
            "bad_cr3",
            format_args!(
                "`{word}` is no CR3: it must be a hexadecimal number as `ps` shows it, for \
                 instance 0x1a2b000"
            ),
        )
    })
}

/// Parses a factor of suppression.
pub(super) fn factor(word: &str) -> Result<Factor, CommandError> {
    word.parse()
        .ok()
        .and_then(|number| Factor::new(number).ok())
        .ok_or_else(|| {
            CommandError::new(
                "bad_factor",
                format_args!("`{word}` is no factor: it must be a whole number from 1 to 65535"),
            )
        })
}

/// Parses the number of a VCPU or a CPU.
pub(super) fn cpu_number(word: &str) -> Result<u32, CommandError> {
    // `from_str` would let a sign pass.
    let is_number = word.bytes().all(|digit| digit.is_ascii_digit());
    let value = word.parse().ok();
    value.filter(|_| is_number).ok_or_else(|| {
        CommandError::new(
            "bad_number",
            format_args!("`{word}` is no number of a VCPU or CPU: they are counted from 0"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cr3_is_none() {
        for word in ["+5000", "-5000", "0x", "0x1_000", "10000000000000000", ""] {
            assert_eq!(cr3(word).unwrap_err().kind(), "bad_cr3", "{word}");
        }
        assert_eq!(cr3("0x1A2b000"), Ok(0x1a2b000));
        assert_eq!(cr3("0X5000"), Ok(0x5000));
        assert_eq!(cr3("ffffffffffffffff"), Ok(u64::MAX));
    }

    #[test]
    fn factors_are_from_1_to_65535() {
        assert_eq!(factor("1").map(Factor::get), Ok(1));
        assert_eq!(factor("65535").map(Factor::get), Ok(65535));
        for word in ["0", "65536", "-1", "1.5", "x", ""] {
            assert_eq!(factor(word).unwrap_err().kind(), "bad_factor", "{word}");
        }
    }

    #[test]
    fn cpus_have_numbers_without_a_sign() {
        assert_eq!(cpu_number("3"), Ok(3));
        for word in ["+3", "-3", "x", "", "4294967296"] {
            assert_eq!(cpu_number(word).unwrap_err().kind(), "bad_number", "{word}");
        }
    }
}
