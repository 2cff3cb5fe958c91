//! The alarm of the RTC.

use super::registers::Format;

const DAY: u32 = 24 * 3600;

/// One register of the alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// The two top bits are set: "don't care".
    Any,
    Exactly(u8),
    /// A value that no time has.
    Never,
}

impl Field {
    fn new(raw: u8, decode: impl Fn(u8) -> Option<u8>) -> Self {
        if raw & 0xC0 == 0xC0 {
            return Self::Any;
        }
        decode(raw).map_or(Self::Never, Self::Exactly)
    }

    fn matches(self, value: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(wanted) => u32::from(wanted) == value,
            Self::Never => false,
        }
    }
}

/// The times of day at which the alarm goes off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alarm {
    second: Field,
    minute: Field,
    hour: Field,
}

impl Alarm {
    /// Makes an alarm by the alarm registers 1, 3 and 5.
    pub(super) fn new(second: u8, minute: u8, hour: u8, format: Format) -> Self {
        Self {
            second: Field::new(second, |raw| format.decode(raw)),
            minute: Field::new(minute, |raw| format.decode(raw)),
            hour: Field::new(hour, |raw| format.decode_hour(raw)),
        }
    }

    /// Returns how many seconds after `second_of_day` the alarm goes off: 1 to 86,400; `None` for
    /// never.
    pub(super) fn after(self, second_of_day: u32) -> Option<u32> {
        if self.is_never() {
            return None;
        }
        let start = second_of_day + 1;
        let mut time = start;
        // Hour, then minute, then second: at most 24 + 60 + 60 steps, twice over as the
        // first hour and minute may be cut short.
        while time < start + DAY {
            if !self.hour.matches(time / 3600 % 24) {
                time = (time / 3600 + 1) * 3600;
            } else if !self.minute.matches(time / 60 % 60) {
                time = (time / 60 + 1) * 60;
            } else if !self.second.matches(time % 60) {
                time += 1;
            } else {
                return Some(time - second_of_day);
            }
        }
        None
    }

    fn is_never(self) -> bool {
        let limits = [(self.second, 60), (self.minute, 60), (self.hour, 24)];
        limits.into_iter().any(|(field, limit)| match field {
            Field::Any => false,
            Field::Exactly(value) => value >= limit,
            Field::Never => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMAT: Format = Format {
        binary: true,
        hours_24: true,
    };

    fn field(limit: u8) -> impl Strategy<Value = u8> {
        prop_oneof![4 => 0..limit, 2 => 0xC0..=0xFFu8, 1 => any::<u8>()]
    }

    proptest! {
        #[test]
        fn goes_off_when_a_look_at_every_second_says_so(
            second in field(60),
            minute in field(60),
            hour in field(24),
            now in 0..DAY,
        ) {
            let is_set = |raw: u8, value: u32| raw >= 0xC0 || u32::from(raw) == value;
            let first = (1..=DAY).find(|distance| {
                let time = (now + distance) % DAY;
                is_set(second, time % 60)
                    && is_set(minute, time / 60 % 60)
                    && is_set(hour, time / 3600)
            });
            prop_assert_eq!(Alarm::new(second, minute, hour, FORMAT).after(now), first);
        }
    }
}
