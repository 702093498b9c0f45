//! What `viv run` is told of a guest's health check.
use viv_model::HealthAsk;

/// As with containers.
#[derive(clap::Args, Debug)]
pub(crate) struct HealthArgs {
    /// Look by this line of the guest's shell whether the guest is well: its status is 0; viv ps and viv inspect tell
    #[arg(long = "health-cmd", value_name = "COMMAND", allow_hyphen_values = true)]
    command: Option<String>,
    /// How often: 30s, 1m30s, 500ms
    #[arg(long = "health-interval", value_name = "TIME", value_parser = milliseconds)]
    interval: Option<u64>,
    /// How long one look may take; then it is killed, and has failed
    #[arg(long = "health-timeout", value_name = "TIME", value_parser = milliseconds)]
    timeout: Option<u64>,
    /// So many failures in a row make it unhealthy
    #[arg(long = "health-retries", value_name = "N")]
    retries: Option<u32>,
    /// After the start, how long failures do not count, until the first success
    #[arg(long = "health-start-period", value_name = "TIME", value_parser = milliseconds)]
    start_period: Option<u64>,
    /// How often it is looked in that time
    #[arg(long = "health-start-interval", value_name = "TIME", value_parser = milliseconds)]
    start_interval: Option<u64>,
    /// Without the image's health check
    #[arg(long = "no-healthcheck")]
    none: bool,
}

impl HealthArgs {
    pub(crate) fn to_ask(&self) -> HealthAsk {
        HealthAsk {
            none: self.none,
            command: self.command.clone(),
            interval_ms: self.interval,
            timeout_ms: self.timeout,
            start_period_ms: self.start_period,
            start_interval_ms: self.start_interval,
            retries: self.retries,
        }
    }
}

/// Milliseconds of a time as people write it for containers: `1h2m3s`, `500ms`; a bare number is seconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    const HOW: &str = "write it as 30s, 1m30s or 500ms";
    let wrong = || HOW.to_string();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds: u64 = text.parse().map_err(|_| wrong())?;
        return seconds.checked_mul(1000).ok_or_else(wrong);
    }
    let (mut rest, mut total) = (text, 0u64);
    while !rest.is_empty() {
        let split = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (digits, behind) = rest.split_at(split);
        let end = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, later) = behind.split_at(end);
        let factor = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        total = number.checked_mul(factor).and_then(|ms| total.checked_add(ms)).ok_or_else(wrong)?;
        rest = later;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_written() {
        for (text, ms) in
            [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("1h", 3_600_000), ("7", 7000), ("0", 0)]
        {
            assert_eq!(milliseconds(text), Ok(ms), "{text}");
        }
        for wrong in
            ["", "s", "soon", "1.5s", "-1s", "1d", "3s4", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
    }
}
