//! Integer arithmetic with the status flags that the CPU computes (SDM vol. 1, appendix A,
//! and the instructions' own pages). Where the manual leaves a flag undefined, it is what
//! Intel's CPUs do.

use arch::RFlags;

use super::width::Width;

/// Carry.
pub const CF: u64 = RFlags::CARRY_FLAG.bits();
/// Parity of the low byte: even.
pub const PF: u64 = RFlags::PARITY_FLAG.bits();
/// Carry out of bit 3.
pub const AF: u64 = RFlags::AUXILIARY_CARRY_FLAG.bits();
/// Zero.
pub const ZF: u64 = RFlags::ZERO_FLAG.bits();
/// Sign.
pub const SF: u64 = RFlags::SIGN_FLAG.bits();
/// Signed overflow.
pub const OF: u64 = RFlags::OVERFLOW_FLAG.bits();
/// The six status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// Trap: single steps.
pub const TF: u64 = RFlags::TRAP_FLAG.bits();
/// Direction: string instructions go down.
pub const DF: u64 = RFlags::DIRECTION_FLAG.bits();
/// Alignment check, and leave to pass SMAP.
pub const AC: u64 = RFlags::ALIGNMENT_CHECK.bits();

/// A result, and the flags as they are after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The result, within the operand's width.
    pub value: u64,
    /// All of RFLAGS.
    pub rflags: u64,
}

/// Returns ZF, SF and PF of a result.
const fn of_result(value: u64, width: Width) -> u64 {
    let mut flags = 0;
    if value == 0 {
        flags |= ZF;
    }
    if value & width.sign() != 0 {
        flags |= SF;
    }
    if (value as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

/// Computes ADD and ADC: `a + b + carry`, the carry taken from `rflags` for ADC.
#[must_use]
pub const fn add(rflags: u64, a: u64, b: u64, with_carry: bool, width: Width) -> Outcome {
    let (a, b) = (a & width.mask(), b & width.mask());
    let carry = (with_carry && rflags & CF != 0) as u64;
    let wide = a as u128 + b as u128 + carry as u128;
    let value = wide as u64 & width.mask();
    let mut flags = of_result(value, width);
    if wide > width.mask() as u128 {
        flags |= CF;
    }
    if (a ^ b ^ value) & 0x10 != 0 {
        flags |= AF;
    }
    if (a ^ value) & (b ^ value) & width.sign() != 0 {
        flags |= OF;
    }
    Outcome {
        value,
        rflags: rflags & !STATUS | flags,
    }
}

/// Computes SUB, SBB and CMP: `a - b - borrow`, the borrow taken from `rflags` for SBB.
#[must_use]
pub const fn sub(rflags: u64, a: u64, b: u64, with_borrow: bool, width: Width) -> Outcome {
    let (a, b) = (a & width.mask(), b & width.mask());
    let borrow = (with_borrow && rflags & CF != 0) as u64;
    let value = a.wrapping_sub(b).wrapping_sub(borrow) & width.mask();
    let mut flags = of_result(value, width);
    if (a as u128) < b as u128 + borrow as u128 {
        flags |= CF;
    }
    if (a ^ b ^ value) & 0x10 != 0 {
        flags |= AF;
    }
    if (a ^ b) & (a ^ value) & width.sign() != 0 {
        flags |= OF;
    }
    Outcome {
        value,
        rflags: rflags & !STATUS | flags,
    }
}

/// Computes AND, OR, XOR and TEST: the flags of a logical result.
#[must_use]
pub const fn logic(rflags: u64, value: u64, width: Width) -> Outcome {
    let value = value & width.mask();
    Outcome {
        value,
        rflags: rflags & !STATUS | of_result(value, width),
    }
}

/// Computes INC (`a + 1`): as ADD, but CF stays.
#[must_use]
pub const fn inc(rflags: u64, a: u64, width: Width) -> Outcome {
    let sum = add(rflags, a, 1, false, width);
    Outcome {
        value: sum.value,
        rflags: sum.rflags & !CF | rflags & CF,
    }
}

/// Computes DEC (`a - 1`): as SUB, but CF stays.
#[must_use]
pub const fn dec(rflags: u64, a: u64, width: Width) -> Outcome {
    let difference = sub(rflags, a, 1, false, width);
    Outcome {
        value: difference.value,
        rflags: difference.rflags & !CF | rflags & CF,
    }
}

/// The effect of BTS, BTR and BTC on the bit they test; BT leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitOperation {
    /// BT.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

/// Computes BT, BTS, BTR and BTC on bit `index` of `a`, counted modulo the width.
#[must_use]
pub const fn bit(
    rflags: u64,
    a: u64,
    index: u64,
    operation: BitOperation,
    width: Width,
) -> Outcome {
    let mask = 1 << (index & (width.bits() as u64 - 1));
    let flags = if a & mask != 0 { CF } else { 0 };
    Outcome {
        value: match operation {
            BitOperation::Test => a,
            BitOperation::Set => a | mask,
            BitOperation::Reset => a & !mask,
            BitOperation::Complement => a ^ mask,
        },
        rflags: rflags & !CF | flags,
    }
}

/// The shifts and rotations by a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// SHL, SAL.
    Left,
    /// SHR.
    Right,
    /// SAR.
    ArithmeticRight,
    /// ROL.
    RotateLeft,
    /// ROR.
    RotateRight,
    /// RCL.
    RotateLeftThroughCarry,
    /// RCR.
    RotateRightThroughCarry,
}

/// Shifts and rotates `a` by `count`, which is masked as the CPU does it.
///
/// OF is defined for a count of one only; it is computed by the same formula for all.
#[must_use]
pub const fn shift(rflags: u64, a: u64, count: u8, operation: Shift, width: Width) -> Outcome {
    let bits = width.bits();
    let count = count as u32 & if bits == 64 { 63 } else { 31 };
    let a = a & width.mask();
    if count == 0 {
        return Outcome { value: a, rflags };
    }
    let mut carry = false;
    let mut value = a;
    match operation {
        Shift::Left => {
            let wide = (a as u128) << count;
            value = wide as u64 & width.mask();
            carry = wide >> bits & 1 != 0;
        }
        Shift::Right => {
            let wide = (a as u128) << 64 >> count;
            value = (wide >> 64) as u64;
            carry = wide >> 63 & 1 != 0;
        }
        Shift::ArithmeticRight => {
            let wide = (((width.sign_extend(a) as u128) << 64) as i128) >> count;
            value = (wide >> 64) as u64 & width.mask();
            carry = wide >> 63 & 1 != 0;
        }
        Shift::RotateLeft | Shift::RotateRight => {
            let by = count % bits;
            let left = if matches!(operation, Shift::RotateLeft) {
                by
            } else {
                (bits - by) % bits
            };
            if left != 0 {
                value = (a << left | a >> (bits - left)) & width.mask();
            }
        }
        Shift::RotateLeftThroughCarry | Shift::RotateRightThroughCarry => {
            // CF is one more bit, above the others.
            let all = bits + 1;
            let by = count % all;
            let left = if matches!(operation, Shift::RotateLeftThroughCarry) {
                by
            } else {
                (all - by) % all
            };
            let wide = ((rflags & CF) as u128) << bits | a as u128;
            let rotated = wide << left | wide >> (all - left);
            value = rotated as u64 & width.mask();
            carry = rotated >> bits & 1 != 0;
        }
    }
    let top = value & width.sign() != 0;
    let below_top = value & width.sign() >> 1 != 0;
    let overflow;
    match operation {
        Shift::Left => overflow = top != carry,
        Shift::Right => overflow = a & width.sign() != 0,
        Shift::ArithmeticRight => overflow = false,
        Shift::RotateLeft => {
            carry = value & 1 != 0;
            overflow = top != carry;
        }
        Shift::RotateRight => {
            carry = top;
            overflow = top != below_top;
        }
        Shift::RotateLeftThroughCarry => overflow = top != carry,
        Shift::RotateRightThroughCarry => overflow = top != below_top,
    }
    let mut flags = 0;
    if carry {
        flags |= CF;
    }
    if overflow {
        flags |= OF;
    }
    let rflags = match operation {
        Shift::Left | Shift::Right | Shift::ArithmeticRight => {
            rflags & !STATUS | flags | of_result(value, width)
        }
        _ => rflags & !(CF | OF) | flags,
    };
    Outcome { value, rflags }
}

/// Computes MUL, unsigned, and IMUL, signed: the low and the high half of the product, and CF and
/// OF if the high half says more than the low one's extension.
#[must_use]
pub const fn multiply(rflags: u64, a: u64, b: u64, signed: bool, width: Width) -> (Outcome, u64) {
    let (product, exceeds);
    if signed {
        let wide =
            (width.sign_extend(a) as i64 as i128).wrapping_mul(width.sign_extend(b) as i64 as i128);
        product = wide as u128;
        exceeds = wide != width.sign_extend(wide as u64) as i64 as i128;
    } else {
        product = (a & width.mask()) as u128 * (b & width.mask()) as u128;
        exceeds = product > width.mask() as u128;
    }
    let value = product as u64 & width.mask();
    let high = (product >> width.bits()) as u64 & width.mask();
    // SF follows the result and ZF and AF are clear on CPUs from Nehalem on, PF follows the
    // result: all undefined by the manual.
    let mut flags = of_result(value, width) & (SF | PF);
    if exceeds {
        flags |= CF | OF;
    }
    let rflags = rflags & !STATUS | flags;
    (Outcome { value, rflags }, high)
}

/// Computes DIV and IDIV: the quotient and the remainder of `high:low`, or `None` if that does not
/// fit `width`: #DE.
#[must_use]
pub const fn divide(
    low: u64,
    high: u64,
    divisor: u64,
    signed: bool,
    width: Width,
) -> Option<(u64, u64)> {
    let dividend = ((high & width.mask()) as u128) << width.bits() | (low & width.mask()) as u128;
    let divisor = divisor & width.mask();
    if divisor == 0 {
        return None;
    }
    let (quotient, remainder) = if signed {
        let unused = 128 - 2 * width.bits();
        let dividend = (dividend << unused) as i128 >> unused;
        let divisor = width.sign_extend(divisor) as i64 as i128;
        let (quotient, remainder) = (
            dividend.wrapping_div(divisor),
            dividend.wrapping_rem(divisor),
        );
        if width.sign_extend(quotient as u64) as i64 as i128 != quotient {
            return None;
        }
        (quotient as u64, remainder as u64)
    } else {
        let quotient = dividend / divisor as u128;
        if quotient > width.mask() as u128 {
            return None;
        }
        (quotient as u64, (dividend % divisor as u128) as u64)
    };
    Some((quotient & width.mask(), remainder & width.mask()))
}

/// Computes SHLD (`left`) and SHRD: `a` shifted by `count`, filled up from `b`. The result is
/// undefined for counts beyond the width.
#[must_use]
pub const fn double_shift(
    rflags: u64,
    a: u64,
    b: u64,
    count: u8,
    left: bool,
    width: Width,
) -> Outcome {
    let bits = width.bits();
    let count = (count & if bits == 64 { 63 } else { 31 }) as u32;
    let (a, b) = (a & width.mask(), b & width.mask());
    if count == 0 {
        return Outcome { value: a, rflags };
    }
    let (value, carry) = if left {
        let both = (a as u128) << bits | b as u128;
        let shifted = both << count;
        (
            (shifted >> bits) as u64 & width.mask(),
            // The bit that left at the top, below what the shift has pushed out before it.
            a as u128 >> bits.saturating_sub(count) & 1 != 0,
        )
    } else {
        let both = (b as u128) << bits | a as u128;
        (
            (both >> count) as u64 & width.mask(),
            both >> (count - 1) & 1 != 0,
        )
    };
    let mut flags = of_result(value, width);
    if carry {
        flags |= CF;
    }
    if (a ^ value) & width.sign() != 0 {
        flags |= OF;
    }
    Outcome {
        value,
        rflags: rflags & !STATUS | flags,
    }
}

/// The instructions that count or find bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitScan {
    /// BSF: the lowest one.
    Forward,
    /// BSR: the highest one.
    Reverse,
    /// TZCNT: the zeros below the lowest one.
    TrailingZeros,
    /// LZCNT: the zeros above the highest one.
    LeadingZeros,
    /// POPCNT: the ones.
    Ones,
}

/// Returns what `scan` makes of `value`, and the flags. BSF and BSR find nothing in zero, and then
/// the destination stays as it is.
#[must_use]
pub fn scan(rflags: u64, value: u64, scan: BitScan, width: Width) -> (Option<u64>, u64) {
    let value = value & width.mask();
    let trailing = if value == 0 {
        width.bits()
    } else {
        value.trailing_zeros()
    };
    let leading = value.leading_zeros() - (64 - width.bits());
    let zero = if value == 0 { ZF } else { 0 };
    let of_count = |count: u32| {
        let carry = if value == 0 { CF } else { 0 };
        let zero = if count == 0 { ZF } else { 0 };
        rflags & !(CF | ZF) | carry | zero
    };
    match scan {
        BitScan::Forward | BitScan::Reverse if value == 0 => (None, rflags | ZF),
        BitScan::Forward => (Some(trailing as u64), rflags & !ZF),
        BitScan::Reverse => (Some((width.bits() - 1 - leading) as u64), rflags & !ZF),
        BitScan::TrailingZeros => (Some(trailing as u64), of_count(trailing)),
        BitScan::LeadingZeros => (Some(leading as u64), of_count(leading)),
        BitScan::Ones => (Some(value.count_ones() as u64), rflags & !STATUS | zero),
    }
}

/// Returns whether the condition with the encoding `code` (0: O, 1: NO, 2: B, ... 15: G) holds.
#[must_use]
pub const fn condition(rflags: u64, code: u8) -> bool {
    let signs_differ = (rflags & SF != 0) != (rflags & OF != 0);
    let holds = match code >> 1 & 7 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => signs_differ,
        _ => signs_differ || rflags & ZF != 0,
    };
    holds != (code & 1 != 0)
}
