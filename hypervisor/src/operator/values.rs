//! Values that are typed: from words to numbers.

use super::error::CommandError;
use crate::numbers::{decimal, hexadecimal};
use crate::search::pattern::Pattern;
use crate::suppression::Factor;
use crate::suppression::budget::Share;
use crate::suppression::order::{Bounds, Follow, Policy};
use crate::vm::AfterPause;

/// Parses a value of CR3: hexadecimal digits, with or without `0x`.
pub(super) fn cr3(word: &str) -> Result<u64, CommandError> {
    let digits = word
        .strip_prefix("0x")
        .or_else(|| word.strip_prefix("0X"))
        .unwrap_or(word);
    hexadecimal(digits).ok_or_else(|| {
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
    decimal(word)
        .and_then(|number| Factor::new(number).ok())
        .ok_or_else(|| {
            CommandError::new(
                "bad_factor",
                format_args!("`{word}` is no factor: it must be a whole number from 1 to 65535"),
            )
        })
}

/// Parses a policy of suppression.
pub(super) fn policy(word: &str) -> Result<Policy, CommandError> {
    Policy::from_name(word).ok_or_else(|| {
        CommandError::new(
            "bad_policy",
            format_args!("`{word}` is no policy: it must be `bounded` or `paper`"),
        )
    })
}

/// Parses a share of one CPU: percent, with up to four decimals, and perhaps a percent sign.
pub(super) fn cap(word: &str) -> Result<Share, CommandError> {
    const DECIMALS: usize = 4;
    const MOST: u32 = 100 * crate::ids::MAX_VCPUS as u32;
    let number = word.strip_suffix('%').unwrap_or(word);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let share = || {
        let digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > DECIMALS {
            return None;
        }
        let whole: u32 = whole.parse().ok().filter(|whole| *whole <= MOST)?;
        let scale = 10u32.pow((DECIMALS - decimals.len()) as u32);
        let decimals = match decimals {
            "" => 0,
            decimals => decimals.parse::<u32>().ok()? * scale,
        };
        Share::from_millionths(whole * 10u32.pow(DECIMALS as u32) + decimals)
    };
    share().ok_or_else(|| {
        CommandError::new(
            "bad_cap",
            format_args!(
                "`{word}` is no share of a CPU: it must be a number of percent above zero, with up \
                 to four decimals, for instance 0.5"
            ),
        )
    })
}

/// Parses the bounds of a guest's lead: milliseconds.
pub(super) fn lead_bounds(word: &str) -> Result<Bounds, CommandError> {
    word.parse().map_err(|_| {
        CommandError::new(
            "bad_lead",
            format_args!(
                "`{word}` does not say how far a clock may be ahead: it must be milliseconds from \
                 {} to {}, or two numbers of them, for instance 250,1000",
                Bounds::LEAST,
                Bounds::MOST
            ),
        )
    })
}

/// Parses what is looked for in memory.
pub(super) fn pattern(word: &str) -> Result<Pattern, CommandError> {
    Pattern::parse(word).map_err(|why| {
        CommandError::new("bad_pattern", format_args!("`{word}` is no pattern: {why}"))
    })
}

/// Parses how a guest's clock goes on after a pause.
pub(super) fn after_pause(word: &str) -> Result<AfterPause, CommandError> {
    match word {
        "stands" => Ok(AfterPause::Stands),
        "follows" => Ok(AfterPause::Follows),
        _ => Err(CommandError::new(
            "bad_value",
            format_args!("`{word}` is not a way for the clock to go on: `stands` or `follows`"),
        )),
    }
}

/// Parses which descendants are to be followed.
pub(super) fn follow(word: &str) -> Result<Follow, CommandError> {
    Follow::from_name(word).ok_or_else(|| {
        CommandError::new(
            "bad_follow",
            format_args!(
                "`{word}` does not say who is to be followed: it must be all, none, fork or exec"
            ),
        )
    })
}

/// Parses the number of a VCPU or a CPU.
pub(super) fn cpu_number(word: &str) -> Result<u32, CommandError> {
    decimal(word).ok_or_else(|| {
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
        for word in ["0", "65536", "-1", "+1", "1.5", "x", ""] {
            assert_eq!(factor(word).unwrap_err().kind(), "bad_factor", "{word}");
        }
    }

    #[test]
    fn caps_are_percent_of_a_cpu() {
        let millionths = |word| cap(word).map(Share::millionths);
        assert_eq!(millionths("0.5"), Ok(5_000));
        assert_eq!(millionths("0.0001%"), Ok(1));
        assert_eq!(millionths("150"), Ok(1_500_000));
        assert_eq!(millionths("800.0"), Ok(8_000_000));
        for word in ["0", "0.00001", "-1", "801", ".", "1.2.3", "x", "", "%"] {
            assert_eq!(cap(word).unwrap_err().kind(), "bad_cap", "{word}");
        }
    }

    #[test]
    fn policies_and_leads_are_what_there_is() {
        assert_eq!(policy("paper"), Ok(Policy::Paper));
        assert_eq!(policy("none").unwrap_err().kind(), "bad_policy");
        assert_eq!(lead_bounds("250,1000"), Ok(Bounds::default()));
        assert_eq!(lead_bounds("7").unwrap_err().kind(), "bad_lead");
        assert_eq!(follow("exec"), Ok(Follow::Exec));
        assert_eq!(follow("child").unwrap_err().kind(), "bad_follow");
        assert_eq!(after_pause("follows"), Ok(AfterPause::Follows));
        assert_eq!(after_pause("stands"), Ok(AfterPause::default()));
        assert_eq!(after_pause("goes").unwrap_err().kind(), "bad_value");
    }

    #[test]
    fn cpus_have_numbers_without_a_sign() {
        assert_eq!(cpu_number("3"), Ok(3));
        for word in ["+3", "-3", "x", "", "4294967296"] {
            assert_eq!(cpu_number(word).unwrap_err().kind(), "bad_number", "{word}");
        }
    }
}

#[cfg(test)]
mod fuzz {
    use alloc::format;
    use alloc::vec::Vec;

    use super::*;
    use crate::test_text::{Piece, line};

    #[test]
    fn values_that_are_typed() {
        fuzzing::check!()
            .with_type::<Vec<Piece>>()
            .for_each(|pieces| {
                let words = [
                    "0x", "0X", "+", "-", ".", "%", ",", "_", "bounded", "paper", "all", "none",
                    "fork", "exec", "0000", "65535", "800",
                ];
                let word = line(pieces, &words);
                let has_sign = word.contains(['+', '-', '_', ' ']);
                if let Ok(cr3) = cr3(&word) {
                    assert_eq!(self::cr3(&format!("{cr3:#x}")).unwrap(), cr3);
                    assert!(!has_sign, "{word}");
                }
                if let Ok(factor) = factor(&word) {
                    assert_eq!(self::factor(&format!("{}", factor.get())).unwrap(), factor);
                    assert!(!has_sign, "{word}");
                }
                if let Ok(policy) = policy(&word) {
                    assert_eq!(policy.name(), word);
                }
                if let Ok(follow) = follow(&word) {
                    assert_eq!(follow.name(), word);
                }
                if let Ok(bounds) = lead_bounds(&word) {
                    for bound in [bounds.contended, bounds.uncontended] {
                        assert!((Bounds::LEAST..=Bounds::MOST).contains(&bound));
                    }
                    assert!(!has_sign, "{word}");
                }
                assert!(cap(&word).is_err() || !has_sign, "{word}");
                assert!(cpu_number(&word).is_err() || !has_sign, "{word}");
                // An error tells the word.
                if let Err(error) = cap(&word) {
                    assert!(format!("{error}").contains(&word));
                }
            });
    }
}
