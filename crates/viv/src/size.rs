//! Sizes as people write them.

/// Mebibytes of `512M`, `2G`, `1T` or a bare number of MiB.
pub(crate) fn mib(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit.to_ascii_uppercase().as_str() {
        "" | "M" | "MB" | "MIB" => 1,
        "G" | "GB" | "GIB" => 1024,
        "T" | "TB" | "TIB" => 1024 * 1024,
        _ => return Err("write it as 512M or 2G".to_string()),
    };
    let number: u64 = digits.parse().map_err(|_| "write it as 512M or 2G".to_string())?;
    number.checked_mul(factor).ok_or_else(|| "that is more than any host has".to_string())
}

/// Thousandths of a processor of `50%`, `1.5` or `none`, which is 0.
pub(crate) fn processors(text: &str) -> Result<u32, String> {
    const HOW: &str = "write it as 50%, as 1.5 processors, or none";
    if text == "none" {
        return Ok(0);
    }
    let (digits, places) = match text.strip_suffix('%') {
        Some(digits) => (digits, 1),
        None => (text, 3),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > places || !are_digits(whole) || !are_digits(part) {
        return Err(HOW.to_string());
    }
    let number: u32 = format!("{whole}{part:0<places$}").parse().map_err(|_| HOW.to_string())?;
    match number {
        0 => Err(format!("{HOW}; nothing works with nothing")),
        number => Ok(number),
    }
}

/// How much a VM counts beside others: `1` to `10000`, or `none`, which is 0.
pub(crate) fn weight(text: &str) -> Result<u32, String> {
    let weights = viv_model::CPU_WEIGHTS;
    match text.parse() {
        _ if text == "none" => Ok(0),
        Ok(weight) if weights.contains(&weight) => Ok(weight),
        _ => Err(format!("use {} to {}, or none", weights.start(), weights.end())),
    }
}

/// Bytes of `64K`, `512M`, `4G`, `1T` or a bare number of bytes.
pub(crate) fn exact(text: &str) -> Result<u64, String> {
    const HOW: &str = "write it as 512M or 4G";
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(HOW.to_string()),
    };
    let number: u64 = digits.parse().map_err(|_| HOW.to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than any host has".to_string())
}

/// Seconds of `30d`, `12h`, `90m`, `45s`.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    const HOW: &str = "write it as 30d, 12h, 90m or 45s";
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(HOW.to_string()),
    };
    let number: u64 = digits.parse().map_err(|_| HOW.to_string())?;
    number.checked_mul(factor).ok_or_else(|| HOW.to_string())
}

/// Bytes as people read them: `45.3 MB`.
pub(crate) fn bytes(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return match value < 99.95 && unit != "B" {
                true => format!("{value:.1} {unit}"),
                false => format!("{value:.0} {unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_as_shares_or_numbers() {
        for (text, milli) in
            [("50%", 500), ("150%", 1500), ("2", 2000), ("0.25", 250), ("1.5%", 15), ("none", 0)]
        {
            assert_eq!(processors(text), Ok(milli), "{text}");
        }
        for wrong in ["", "0", "0%", "-1", "1.2345", "1.25%", "x", ".5", "99999999999%", "1,5"] {
            assert!(processors(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn weights_are_whole_numbers() {
        for (text, number) in [("1", 1), ("100", 100), ("10000", 10_000), ("none", 0)] {
            assert_eq!(weight(text), Ok(number));
        }
        for wrong in ["", "0", "-1", "10001", "50%", "1.5", "x", "99999999999"] {
            assert!(weight(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_their_unit() {
        assert_eq!(seconds("30d"), Ok(2_592_000));
        assert_eq!((seconds("90m"), seconds("45s"), seconds("12h")), (Ok(5400), Ok(45), Ok(43_200)));
        for wrong in ["", "30", "d", "-1d", "1w", "99999999999999999999d", "9999999999999999999h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(mib("512M"), Ok(512));
        assert_eq!(mib("2g"), Ok(2048));
        assert_eq!(mib("64"), Ok(64));
        assert_eq!(mib("1TiB"), Ok(1 << 20));
        assert_eq!(mib("0"), Ok(0));
        for wrong in ["", "M", "1.5G", "-1M", "512k", "99999999999999999999", "18446744073709551615T"] {
            assert!(mib(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_are_exact() {
        for (text, bytes) in [("512", 512), ("64k", 65536), ("4G", 4 << 30), ("1TiB", 1 << 40)] {
            assert_eq!(exact(text), Ok(bytes));
        }
        for wrong in ["", "G", "1.5G", "-1", "3X", "99999999T"] {
            assert!(exact(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_short() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (45_300_000, "45.3 MB"),
            (999_999, "1.0 MB"),
            (123_456_789_012, "123 GB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }
}
