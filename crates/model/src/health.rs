//! Health checks: what is looked at, how often, and what follows from it (docker, "HEALTHCHECK").
use crate::{Fault, Kind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most bytes that are kept of what a check says.
pub const HEALTH_OUTPUT_MAX: usize = 4096;
/// Bounds of times, milliseconds, and of retries.
const MS_MIN: u64 = 100;
const MS_MAX: u64 = 7 * 24 * 3600 * 1000;
const RETRIES_MAX: u32 = 1000;

/// A command that says by its status whether a guest is well, and when it is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Between two looks, milliseconds.
    pub interval_ms: u64,
    /// For one look; then it is killed, and has failed.
    pub timeout_ms: u64,
    /// After the start, when failures do not count until the first success.
    pub start_period_ms: u64,
    /// Between two looks in that time.
    pub start_interval_ms: u64,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
}

impl Default for HealthCheck {
    /// Docker's times.
    fn default() -> HealthCheck {
        HealthCheck {
            argv: Vec::new(),
            interval_ms: 30_000,
            timeout_ms: 30_000,
            start_period_ms: 0,
            start_interval_ms: 5_000,
            retries: 3,
        }
    }
}

impl HealthCheck {
    /// Within bounds: images and agents are strangers.
    pub fn bounded(self) -> HealthCheck {
        HealthCheck {
            interval_ms: self.interval_ms.clamp(MS_MIN, MS_MAX),
            timeout_ms: self.timeout_ms.clamp(MS_MIN, MS_MAX),
            start_period_ms: self.start_period_ms.min(MS_MAX),
            start_interval_ms: self.start_interval_ms.clamp(MS_MIN, MS_MAX),
            retries: self.retries.clamp(1, RETRIES_MAX),
            ..self
        }
    }
}

/// What is asked for in the place of an image's own health check; nothing is changed by what is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HealthAsk {
    /// There is none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub none: bool,
    /// A line for the guest's shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Between two looks, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// For one look, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// After the start, when it need not be well yet, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// Between two looks in that time, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_interval_ms: Option<u64>,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

impl HealthAsk {
    /// Nothing is asked for.
    pub fn is_usual(&self) -> bool {
        *self == HealthAsk::default()
    }

    /// The check that there is, over an image's own.
    pub fn over(&self, image: Option<&HealthCheck>) -> Result<Option<HealthCheck>, Fault> {
        let times = [self.interval_ms, self.timeout_ms, self.start_interval_ms];
        let bad = |what: String, fix: &str| Err(Fault::new(Kind::Usage, what, fix));
        if self.none && (HealthAsk { none: false, ..self.clone() }) != HealthAsk::default() {
            return bad(
                "a health check is both refused and described".to_string(),
                "leave out one of the two",
            );
        }
        if let Some(ms) = times.into_iter().flatten().find(|ms| !(MS_MIN..=MS_MAX).contains(ms)) {
            return bad(format!("a health check cannot take or wait {ms} ms"), "use 100ms to 168h");
        }
        if self.start_period_ms.is_some_and(|ms| ms > MS_MAX) {
            return bad("a health check's start period is too long".to_string(), "use at most 168h");
        }
        if self.retries.is_some_and(|retries| !(1..=RETRIES_MAX).contains(&retries)) {
            return bad("a health check cannot have so many retries".to_string(), "use 1 to 1000");
        }
        if self.none {
            return Ok(None);
        }
        let shell = |line: &String| HealthCheck {
            argv: vec!["/bin/sh".to_string(), "-c".to_string(), line.clone()],
            ..image.cloned().unwrap_or_default()
        };
        let Some(check) = self.command.as_ref().map(shell).or_else(|| image.cloned()) else {
            return match self.is_usual() {
                true => Ok(None),
                false => bad(
                    "there is no health check whose times could be changed".to_string(),
                    "give one: --health-cmd 'COMMAND'",
                ),
            };
        };
        Ok(Some(HealthCheck {
            interval_ms: self.interval_ms.unwrap_or(check.interval_ms),
            timeout_ms: self.timeout_ms.unwrap_or(check.timeout_ms),
            start_period_ms: self.start_period_ms.unwrap_or(check.start_period_ms),
            start_interval_ms: self.start_interval_ms.unwrap_or(check.start_interval_ms),
            retries: self.retries.unwrap_or(check.retries),
            ..check
        }))
    }
}

/// How a guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HealthState {
    /// It is not known yet.
    #[default]
    Starting,
    /// The last look found it well, or too few failed since.
    Healthy,
    /// Too many looks in a row failed.
    Unhealthy,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HealthState::Starting => "starting",
            HealthState::Healthy => "healthy",
            HealthState::Unhealthy => "unhealthy",
        })
    }
}

/// One look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HealthLook {
    /// The command's status; nothing if it was killed because it took too long.
    pub status: Option<u8>,
    /// The beginning of what it said.
    pub output: String,
}

impl HealthLook {
    /// With no more of the output than is kept.
    pub fn bounded(mut self) -> HealthLook {
        let mut end = self.output.len().min(HEALTH_OUTPUT_MAX);
        while !self.output.is_char_boundary(end) {
            end -= 1;
        }
        self.output.truncate(end);
        self
    }
}

/// How a guest is, by its health check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// In a word.
    pub state: HealthState,
    /// Failures in a row.
    pub failures: u32,
    /// The last look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<HealthLook>,
}

impl Health {
    /// Takes a look that ended so long after the start; whether the state is another one now.
    pub fn take(&mut self, look: HealthLook, check: &HealthCheck, since_start_ms: u64) -> bool {
        let before = self.state;
        if look.status == Some(0) {
            (self.state, self.failures) = (HealthState::Healthy, 0);
        } else if !self.may_fail(check, since_start_ms) {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= check.retries {
                self.state = HealthState::Unhealthy;
            }
        }
        self.last = Some(look);
        self.state != before
    }

    fn may_fail(&self, check: &HealthCheck, since_start_ms: u64) -> bool {
        self.state == HealthState::Starting && since_start_ms < check.start_period_ms
    }

    /// How long until the next look.
    pub fn pause_ms(&self, check: &HealthCheck, since_start_ms: u64) -> u64 {
        match self.may_fail(check, since_start_ms) {
            // It is not slept through the period's end.
            true => check.start_interval_ms.min(check.interval_ms),
            false => check.interval_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(status: Option<u8>) -> HealthLook {
        HealthLook { status, output: String::new() }
    }

    #[test]
    fn failures_count_after_the_start_period_or_the_first_success() {
        let check = HealthCheck { start_period_ms: 1000, retries: 2, ..HealthCheck::default() };
        let mut health = Health::default();
        assert_eq!(health.pause_ms(&check, 0), 5000);
        assert!(!health.take(look(Some(1)), &check, 500));
        assert_eq!((health.state, health.failures), (HealthState::Starting, 0));
        assert_eq!(health.pause_ms(&check, 1000), 30_000);
        assert!(!health.take(look(None), &check, 1500));
        assert!(health.take(look(Some(7)), &check, 2000));
        assert_eq!((health.state, health.failures), (HealthState::Unhealthy, 2));
        assert!(health.take(look(Some(0)), &check, 2500));
        assert_eq!((health.state, health.failures), (HealthState::Healthy, 0));
        let mut early = Health::default();
        assert!(early.take(look(Some(0)), &check, 10));
        early.take(look(Some(1)), &check, 20);
        assert_eq!(early.failures, 1, "it was well once");
    }

    #[test]
    fn what_is_asked_for_wins_and_is_bounded() {
        let image = HealthCheck { argv: vec!["check".into()], interval_ms: 7000, ..HealthCheck::default() };
        let none = HealthAsk::default();
        assert_eq!(none.over(Some(&image)).unwrap().as_ref(), Some(&image));
        assert_eq!(none.over(None).unwrap(), None);
        let asked = HealthAsk { command: Some("true".into()), retries: Some(1), ..HealthAsk::default() };
        let check = asked.over(Some(&image)).unwrap().unwrap();
        assert_eq!((check.argv.len(), check.interval_ms, check.retries), (3, 7000, 1));
        let refused = HealthAsk { none: true, ..HealthAsk::default() };
        assert_eq!(refused.over(Some(&image)).unwrap(), None);
        assert!(HealthAsk { none: true, ..asked.clone() }.over(None).is_err());
        assert!(HealthAsk { retries: Some(0), ..asked.clone() }.over(None).is_err());
        assert!(HealthAsk { interval_ms: Some(1), ..asked }.over(None).is_err());
        assert!(HealthAsk { retries: Some(1), ..HealthAsk::default() }.over(None).is_err(), "of nothing");
        let wild = HealthCheck { interval_ms: 0, timeout_ms: u64::MAX, retries: 0, ..HealthCheck::default() };
        let wild = wild.bounded();
        assert_eq!((wild.interval_ms, wild.timeout_ms, wild.retries), (MS_MIN, MS_MAX, 1));
        let long = HealthLook { status: None, output: "é".repeat(HEALTH_OUTPUT_MAX) }.bounded();
        assert_eq!(long.output.len(), HEALTH_OUTPUT_MAX);
    }
}
