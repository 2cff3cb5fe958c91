//! Finding the sleep types of S5 without an AML interpreter.
#![forbid(unsafe_code)]

/// The values for the SLP_TYP fields of the PM1 control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SleepTypes {
    /// The value for PM1a.
    pub a: u8,
    /// The value for PM1b.
    pub b: u8,
}

const NAME_OP: u8 = 0x08;
const PACKAGE_OP: u8 = 0x12;
const ZERO_OP: u8 = 0x00;
const ONE_OP: u8 = 0x01;
const ONES_OP: u8 = 0xff;
const BYTE_PREFIX: u8 = 0x0a;
const WORD_PREFIX: u8 = 0x0b;
const DWORD_PREFIX: u8 = 0x0c;

impl SleepTypes {
    /// Returns the sleep types in the `\_S5_` package of a DSDT's byte code, or `None` if no such
    /// package is found.
    ///
    /// The object is static data by the specification (ACPI 6.5, 7.4.2 and 20.2.5): a NameOp,
    /// the name `_S5_` or `\_S5_`, a package of integer constants. So it can be recognized
    /// in the byte stream without running it. All of that form is checked, the package's
    /// length included, as the four letters alone may occur anywhere.
    #[must_use]
    pub(crate) fn of_s5(aml: &[u8]) -> Option<Self> {
        (0..aml.len()).find_map(|at| parse(&aml[at..]))
    }
}

fn parse(aml: &[u8]) -> Option<SleepTypes> {
    let rest = aml.strip_prefix(&[NAME_OP])?;
    let rest = rest.strip_prefix(b"\\").unwrap_or(rest);
    let rest = rest.strip_prefix(b"_S5_")?.strip_prefix(&[PACKAGE_OP])?;
    let package = package_content(rest)?;
    let (&count, elements) = package.split_first()?;
    if count == 0 {
        return None;
    }
    let (a, elements) = integer(elements)?;
    // A package of one element gives both types in its two low bytes on some machines.
    let b = if count == 1 {
        a >> 8
    } else {
        integer(elements)?.0
    };
    // SLP_TYP has three bits; anything else is not what we took it for.
    let sleep_type = |value: u32| u8::try_from(value & 0xff).ok().filter(|&t| t < 8);
    Some(SleepTypes {
        a: sleep_type(a)?,
        b: sleep_type(b)?,
    })
}

/// Returns what a package holds, by its PkgLength (ACPI 6.5, 20.2.4), which counts itself: the top
/// two bits of the first byte say how many bytes follow; with none the low six bits are the length,
/// else the low four are its lowest.
fn package_content(aml: &[u8]) -> Option<&[u8]> {
    let (&lead, rest) = aml.split_first()?;
    let following = usize::from(lead >> 6);
    let length = if following == 0 {
        usize::from(lead & 0x3f)
    } else {
        rest.get(..following)?
            .iter()
            .rev()
            .fold(0, |length, &byte| length << 8 | usize::from(byte))
            << 4
            | usize::from(lead & 0x0f)
    };
    aml.get(1 + following..length)
}

/// Returns the integer constant that `aml` starts with, and what comes after it.
fn integer(aml: &[u8]) -> Option<(u32, &[u8])> {
    let (&op, rest) = aml.split_first()?;
    let bytes = match op {
        ZERO_OP => return Some((0, rest)),
        ONE_OP => return Some((1, rest)),
        ONES_OP => return Some((u32::MAX, rest)),
        BYTE_PREFIX => 1,
        WORD_PREFIX => 2,
        DWORD_PREFIX => 4,
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(bytes)?;
    let value = value
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u32::from(byte));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// `Name (\_S5, Package (0x04) { a, b, Zero, Zero })` with some other code around it.
    fn dsdt(object: &[u8]) -> Vec<u8> {
        // A method that mentions the name, and the letters in a string: both to be skipped.
        let mut aml = b"\x10\x1c\\_SB_\x5b\x82_S5_\x12\x06\x0d_S5_\x00".to_vec();
        aml.extend(object);
        aml.extend(b"\x08_S6_\x12\x04\x02\x0a\x07");
        aml
    }

    #[test]
    fn bytes_zeroes_and_ones_are_understood() {
        let qemu = dsdt(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00");
        assert_eq!(SleepTypes::of_s5(&qemu), Some(SleepTypes { a: 0, b: 0 }));
        let usual = dsdt(b"\x08\\_S5_\x12\x0a\x04\x0a\x05\x0a\x07\x00\x00\x00");
        assert_eq!(SleepTypes::of_s5(&usual), Some(SleepTypes { a: 5, b: 7 }));
        let words = dsdt(b"\x08_S5_\x12\x08\x02\x0b\x07\x00\x01\x00");
        assert_eq!(SleepTypes::of_s5(&words), Some(SleepTypes { a: 7, b: 1 }));
    }

    #[test]
    fn longer_package_lengths_and_packed_types_are_understood() {
        let long = dsdt(b"\x08_S5_\x12\x48\x00\x02\x0a\x03\x0a\x03");
        assert_eq!(SleepTypes::of_s5(&long), Some(SleepTypes { a: 3, b: 3 }));
        let packed = dsdt(b"\x08_S5_\x12\x05\x01\x0b\x06\x05\x00");
        assert_eq!(SleepTypes::of_s5(&packed), Some(SleepTypes { a: 6, b: 5 }));
    }

    #[test]
    fn what_only_looks_like_it_is_not_taken() {
        for object in [
            &b"\x08_S5_\x0a\x05"[..],                // not a package
            b"\x08_S5_\x12\x06\x00\x0a\x05\x0a\x05", // no elements
            b"\x08_S5_\x12\x06\x04\x0a\x09\x0a\x05", // no such sleep type
            b"\x08_S5_\x12\x03\x04\x0a\x05\x0a\x05", // elements after the package
            b"\x08_S5_\x12\x06\x04SLPT",             // not constants
        ] {
            assert_eq!(SleepTypes::of_s5(&dsdt(object)), None);
        }
        assert_eq!(SleepTypes::of_s5(&[]), None);
    }

    proptest! {
        #[test]
        fn garbage_after_the_name_never_panics(tail in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = SleepTypes::of_s5(&[b"\x08_S5_\x12", &tail[..]].concat());
        }
    }
}
