//! A moment, as RFC 3339 text on the wire.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in UTC, to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(with = "String", extend("format" = "date-time")))]
#[serde(into = "String", try_from = "String")]
pub struct Timestamp {
    /// Seconds since 1970-01-01.
    pub unix_s: u64,
}

impl Timestamp {
    /// This moment.
    pub fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { unix_s: since.as_secs() }
    }

    /// How long ago it was, in words: `3 minutes ago`.
    pub fn ago(self) -> String {
        let s = Timestamp::now().unix_s.saturating_sub(self.unix_s);
        let (number, unit) = match s {
            0..60 => (s, "second"),
            60..3600 => (s / 60, "minute"),
            3600..86400 => (s / 3600, "hour"),
            _ => (s / 86400, "day"),
        };
        format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar (years are counted from March, so that the
/// leap day is the last of its year).
fn days_of(year: u64, month: u64, day: u64) -> u64 {
    let y = if month <= 2 { year - 1 } else { year };
    let m = (month + 9) % 12;
    365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, s) = (self.unix_s / 86400, self.unix_s % 86400);
        let mut year = 1970 + days / 366;
        while days_of(year + 1, 1, 1) <= days {
            year += 1;
        }
        let month = (1..=12).rev().find(|&month| days_of(year, month, 1) <= days).unwrap_or(1);
        let day = days - days_of(year, month, 1) + 1;
        let (hour, minute, second) = (s / 3600, s / 60 % 60, s % 60);
        f.pad(&format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
    }
}

impl FromStr for Timestamp {
    type Err = String;
    fn from_str(text: &str) -> Result<Timestamp, String> {
        let wrong = || format!("{text:?} is no moment like 2026-11-21T08:00:00Z");
        let parts: Vec<u64> = text
            .strip_suffix('Z')
            .ok_or_else(wrong)?
            .split(['-', 'T', ':'])
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| wrong())?;
        match parts[..] {
            [
                year @ 1970..=9999,
                month @ 1..=12,
                day @ 1..=31,
                hour @ 0..24,
                minute @ 0..60,
                second @ 0..=60,
            ] => {
                let unix_s = days_of(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
                Ok(Timestamp { unix_s })
            }
            _ => Err(wrong()),
        }
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> String {
        timestamp.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = String;
    fn try_from(text: String) -> Result<Timestamp, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_248_000, "2026-11-21T08:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp { unix_s }.to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp { unix_s }));
        }
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert!("2026-13-01T00:00:00Z".parse::<Timestamp>().is_err());
    }
}
