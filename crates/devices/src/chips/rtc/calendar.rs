//! Seconds since 1970 and the Gregorian calendar.

use viv_arch::chips::CalendarSaved;

/// Seconds in a day.
pub(super) const DAY_S: i64 = 86_400;
/// A bound for times: about 30,000 years on both sides of 1970.
pub(super) const UNIX_S_MAX: i64 = 1 << 40;

/// A bound for saved years.
const YEAR_MAX: i64 = 30_000;

/// A moment on the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) year: i64,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Calendar {
    /// Proleptic Gregorian calendar in UTC; weekday 1 is Sunday (MC146818A "Time, calendar").
    pub(super) fn from_unix(unix_s: i64) -> Calendar {
        let days = unix_s.div_euclid(DAY_S);
        let second = unix_s.rem_euclid(DAY_S);
        // Years start in March, so that the leap day is a year's last; an era is 400 years.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Calendar {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// Seconds since 1970; fields out of range carry over into the next.
    pub(super) fn to_unix(self) -> i64 {
        let month = i64::from(self.month).max(1);
        let year = self.year + (month - 1) / 12 - i64::from((month - 1) % 12 < 2);
        let march_month = (month - 1) % 12;
        let march_month = if march_month >= 2 { march_month - 2 } else { march_month + 10 };
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * march_month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * DAY_S + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    pub(super) fn save(self) -> CalendarSaved {
        let Calendar { year, month, day, weekday, hour, minute, second } = self;
        CalendarSaved { year, month, day, weekday, hour, minute, second }
    }

    pub(super) fn load(saved: CalendarSaved) -> Calendar {
        let CalendarSaved { year, month, day, weekday, hour, minute, second } = saved;
        Calendar { year: year.clamp(-YEAR_MAX, YEAR_MAX), month, day, weekday, hour, minute, second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The calendar and the seconds since 1970 are the same thing.
        #[test]
        fn the_calendar_is_a_bijection(unix_s in -UNIX_S_MAX..UNIX_S_MAX) {
            let calendar = Calendar::from_unix(unix_s);
            prop_assert_eq!(calendar.to_unix(), unix_s);
            let next = Calendar::from_unix(unix_s + DAY_S);
            prop_assert_eq!(next.weekday, calendar.weekday % 7 + 1);
            let later = (next.year, next.month, next.day) > (calendar.year, calendar.month, calendar.day);
            prop_assert!(later && next.day <= calendar.day + 1);
        }
    }
}
