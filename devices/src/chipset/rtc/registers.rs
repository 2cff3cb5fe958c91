//! The time of day as the RTC's registers hold it.

use chrono::{Datelike, NaiveDate, NaiveDateTime, TimeDelta, Timelike};

/// The bits of register B that say how the time registers are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// DM: binary, not BCD.
    pub binary: bool,
    /// 24/12: hours from 0 to 23, not 1 to 12 with bit 7 for p.m.
    pub hours_24: bool,
}

impl Format {
    /// Returns the format that register B says.
    #[must_use]
    pub const fn of(register_b: u8) -> Self {
        Self {
            binary: register_b & 0x04 != 0,
            hours_24: register_b & 0x02 != 0,
        }
    }

    /// Returns the number that `raw` stands for; `None` if its digits are not decimal.
    pub(super) const fn decode(self, raw: u8) -> Option<u8> {
        if self.binary {
            return Some(raw);
        }
        if raw >> 4 > 9 || raw & 15 > 9 {
            return None;
        }
        Some((raw >> 4) * 10 + (raw & 15))
    }

    /// Returns the hour from 0 to 23 that `raw` stands for; `None` if there is no such hour.
    pub(super) fn decode_hour(self, raw: u8) -> Option<u8> {
        if self.hours_24 {
            return self.decode(raw).filter(|&hour| hour < 24);
        }
        let hour = self.decode(raw & 0x7F)?;
        let afternoon = if raw & 0x80 != 0 { 12 } else { 0 };
        (1..=12).contains(&hour).then_some(hour % 12 + afternoon)
    }

    /// Returns a number below 100.
    const fn encode(self, value: u8) -> u8 {
        if self.binary {
            value
        } else {
            (value / 10) << 4 | (value % 10)
        }
    }

    const fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        let hour = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(hour) | afternoon
    }
}

/// The time registers, in the format that register B says.
///
/// This is also the way to read the RTC of the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRegisters {
    /// Register 0.
    pub second: u8,
    /// Register 2.
    pub minute: u8,
    /// Register 4.
    pub hour: u8,
    /// Register 6: 1 for Sunday. It counts on its own, whatever the date is.
    pub weekday: u8,
    /// Register 7.
    pub day: u8,
    /// Register 8.
    pub month: u8,
    /// Register 9: the last two digits.
    pub year: u8,
    /// Register 0x32, by convention: the first two digits. Where it holds no such thing,
    /// the century is taken to be the 21st.
    pub century: u8,
}

impl TimeRegisters {
    /// Returns the registers for `time`, of a year from 0 to 9999; `None` for other years.
    #[must_use]
    pub fn encode(time: NaiveDateTime, format: Format) -> Option<Self> {
        let year = u16::try_from(time.year())
            .ok()
            .filter(|&year| year < 10_000)?;
        Some(Self {
            second: format.encode(time.second() as u8),
            minute: format.encode(time.minute() as u8),
            hour: format.encode_hour(time.hour() as u8),
            weekday: time.weekday().number_from_sunday() as u8,
            day: format.encode(time.day() as u8),
            month: format.encode(time.month() as u8),
            year: format.encode((year % 100) as u8),
            century: format.encode((year / 100) as u8),
        })
    }

    /// Returns the time that the registers show; `None` if that is no time.
    #[must_use]
    pub fn decode(&self, format: Format) -> Option<NaiveDateTime> {
        let year = format.decode(self.year).filter(|&year| year < 100)?;
        let century = self.century(format).unwrap_or(20);
        let date = NaiveDate::from_ymd_opt(
            i32::from(century) * 100 + i32::from(year),
            u32::from(format.decode(self.month)?),
            u32::from(format.decode(self.day)?),
        )?;
        date.and_hms_opt(
            u32::from(format.decode_hour(self.hour)?),
            u32::from(format.decode(self.minute)?),
            u32::from(format.decode(self.second)?),
        )
    }

    /// Returns the registers `seconds` later; `None` if they show no time of day, or there is no
    /// such later time. If they show no date, only the time of day goes on.
    pub(super) fn advanced(&self, seconds: u64, format: Format) -> Option<Self> {
        let Some(time) = self.decode(format) else {
            return self.later_in_a_day(seconds, format);
        };
        let delta = TimeDelta::try_seconds(i64::try_from(seconds).ok()?)?;
        let later = time.checked_add_signed(delta)?;
        let days = (later.date() - time.date()).num_days();
        let weekday = match self.weekday {
            day @ 1..=7 => (i64::from(day - 1) + days).rem_euclid(7) as u8 + 1,
            other => other,
        };
        let mut registers = Self::encode(later, format)?;
        registers.weekday = weekday;
        if self.century(format).is_none() {
            registers.century = self.century;
        }
        Some(registers)
    }

    fn later_in_a_day(&self, seconds: u64, format: Format) -> Option<Self> {
        let later = (u64::from(self.second_of_day(format)?) + seconds % 86_400) % 86_400;
        Some(Self {
            second: format.encode((later % 60) as u8),
            minute: format.encode((later / 60 % 60) as u8),
            hour: format.encode_hour((later / 3_600) as u8),
            ..*self
        })
    }

    /// Returns the number of seconds since midnight; `None` if the registers show no time of day.
    pub(super) fn second_of_day(&self, format: Format) -> Option<u32> {
        let hour = u32::from(format.decode_hour(self.hour)?);
        let minute = u32::from(format.decode(self.minute).filter(|&minute| minute < 60)?);
        let second = u32::from(format.decode(self.second).filter(|&second| second < 60)?);
        Some((hour * 60 + minute) * 60 + second)
    }

    fn century(&self, format: Format) -> Option<u8> {
        format.decode(self.century).filter(|&century| century < 100)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn format() -> impl Strategy<Value = Format> {
        (any::<bool>(), any::<bool>()).prop_map(|(binary, hours_24)| Format { binary, hours_24 })
    }

    /// A calendar that only knows how to get from one day to the next.
    fn day_after((year, month, day): (u32, u32, u32)) -> (u32, u32, u32) {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        match (month, day) {
            (12, 31) => (year + 1, 1, 1),
            (month, day) if day == days => (year, month + 1, 1),
            (month, day) => (year, month, day + 1),
        }
    }

    #[test]
    fn every_day_of_five_centuries_follows_the_one_before() {
        let format = Format {
            binary: false,
            hours_24: true,
        };
        // 1 January 1900 was a Monday.
        let mut registers = TimeRegisters {
            second: 0x59,
            minute: 0x59,
            hour: 0x23,
            weekday: 2,
            day: 0x01,
            month: 0x01,
            year: 0x00,
            century: 0x19,
        };
        let bcd = |raw: u8| u32::from(raw >> 4) * 10 + u32::from(raw & 15);
        let mut date = (1900, 1, 1);
        for days in 0..500 * 365 {
            let shown = (
                bcd(registers.century) * 100 + bcd(registers.year),
                bcd(registers.month),
                bcd(registers.day),
            );
            assert_eq!(shown, date);
            assert_eq!(u32::from(registers.weekday), (days + 1) % 7 + 1);
            registers = registers.advanced(1, format).unwrap();
            assert_eq!(
                (registers.hour, registers.minute, registers.second),
                (0, 0, 0)
            );
            registers = registers.advanced(86_399, format).unwrap();
            date = day_after(date);
        }
    }

    proptest! {
        #[test]
        fn registers_show_what_was_encoded(
            seconds in 0..250_000_000_000i64,
            format in format(),
        ) {
            let origin = NaiveDate::from_ymd_opt(1, 1, 1).unwrap().and_hms_opt(0, 0, 0).unwrap();
            let time = origin + TimeDelta::seconds(seconds);
            let registers = TimeRegisters::encode(time, format).unwrap();
            prop_assert_eq!(registers.decode(format), Some(time));
            prop_assert_eq!(
                registers.second_of_day(format),
                Some(time.num_seconds_from_midnight())
            );
        }

        #[test]
        fn advancing_in_steps_is_advancing_at_once(
            steps in prop::collection::vec(0..100_000_000u64, 1..10),
            format in format(),
        ) {
            let origin = NaiveDate::from_ymd_opt(1999, 2, 28).unwrap().and_hms_opt(11, 59, 58).unwrap();
            let start = TimeRegisters::encode(origin, format).unwrap();
            let mut stepped = start;
            for &step in &steps {
                stepped = stepped.advanced(step, format).unwrap();
            }
            prop_assert_eq!(start.advanced(steps.iter().sum(), format), Some(stepped));
        }

        #[test]
        fn any_bytes_are_a_time_or_none(bytes: [u8; 8], seconds: u64, format in format()) {
            let [second, minute, hour, weekday, day, month, year, century] = bytes;
            let registers =
                TimeRegisters { second, minute, hour, weekday, day, month, year, century };
            let advanced = registers.advanced(seconds, format);
            let shows_time = registers.second_of_day(format).is_some();
            prop_assert!(advanced.is_none() || shows_time);
            if let (true, Some(later)) = (registers.decode(format).is_none(), advanced) {
                prop_assert_eq!((later.day, later.month, later.year), (day, month, year));
                let start = u64::from(registers.second_of_day(format).unwrap());
                prop_assert_eq!(
                    later.second_of_day(format).map(u64::from),
                    Some((start + seconds % 86_400) % 86_400)
                );
            }
        }
    }

    #[test]
    fn noon_and_midnight_in_twelve_hours() {
        let format = Format {
            binary: false,
            hours_24: false,
        };
        for (raw, hour) in [
            (0x12, 0),
            (0x01, 1),
            (0x11, 11),
            (0x92, 12),
            (0x81, 13),
            (0x91, 23),
        ] {
            assert_eq!(format.decode_hour(raw), Some(hour));
            assert_eq!(format.encode_hour(hour), raw);
        }
        for raw in [0x00, 0x13, 0x80, 0x93, 0x0A, 0xFF] {
            assert_eq!(format.decode_hour(raw), None);
        }
    }

    #[test]
    fn a_century_byte_that_is_none_is_left_alone() {
        let format = Format {
            binary: false,
            hours_24: true,
        };
        let registers = TimeRegisters {
            second: 0x59,
            minute: 0x59,
            hour: 0x23,
            weekday: 0,
            day: 0x31,
            month: 0x12,
            year: 0x99,
            century: 0xFF,
        };
        let later = registers.advanced(1, format).unwrap();
        assert_eq!((later.year, later.month, later.day), (0x00, 0x01, 0x01));
        assert_eq!((later.century, later.weekday), (0xFF, 0));
    }
}
