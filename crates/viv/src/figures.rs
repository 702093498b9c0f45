//! Numbers as people read them.
use std::io::Write;

/// `1.50 s`, `2 m 03 s`, `1 h 02 m`.
pub(crate) fn duration(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    match s {
        0..100 => format!("{:.2} s", ns as f64 / 1e9),
        100..3600 => format!("{} m {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} m", s / 3600, s / 60 % 60),
    }
}

/// `512 B`, `3.0 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

/// `999`, `1.5k`, `2.0G`.
pub(crate) fn count(count: u64) -> String {
    scaled(count, 1000.0, &["", "k", "M", "G", "T"])
}

fn scaled(number: u64, step: f64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut units = units.iter();
    let mut unit = units.next();
    if value < step {
        return format!("{number}{}", unit.unwrap_or(&""));
    }
    // What would be rounded up to a whole step is the next unit's.
    while value >= step - 0.05 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / step, Some(next));
    }
    format!("{value:.1}{}", unit.unwrap_or(&""))
}

/// `99.3 %` of a share; `-` if it is not known. Only a whole is 100 %.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_string(), |share| format!("{:.1} %", (share * 1000.0).floor() / 10.0))
}

/// Prints text on standard error as it is.
pub(crate) fn to_stderr(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let durations = [0, 1_500_000_000, 123_000_000_000, 3_720_000_000_000].map(duration);
        assert_eq!(durations, ["0.00 s", "1.50 s", "2 m 03 s", "1 h 02 m"]);
        assert_eq!(
            [0, 1023, 1024, 3 << 20, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.0 GiB"]
        );
        assert_eq!([999, 1000, 999_999, 2_000_000_000].map(count), ["999", "1.0k", "1.0M", "2.0G"]);
        assert_eq!(count(u64::MAX), "18446744.1T");
        let shares = [None, Some(0.0), Some(0.9999), Some(1.0)].map(percent);
        assert_eq!(shares, ["-", "0.0 %", "99.9 %", "100.0 %"]);
    }
}
