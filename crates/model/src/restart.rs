//! When a VM that has ended is started again.
use crate::End;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A VM's restart policy: `no`, `on-failure`, `on-failure:N`, `unless-stopped` or `always`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When it has failed, or its command has, up to so many times in a row.
    OnFailure {
        /// Without it, again and again.
        most: Option<u32>,
    },
    /// Whenever it has ended, and when the host has booted, unless its user has stopped it.
    UnlessStopped,
    /// Whenever it has ended but by its user, and when the host has booted.
    Always,
}

impl Restart {
    /// Whether nothing starts it again.
    pub fn is_never(&self) -> bool {
        *self == Restart::No
    }

    /// Whether it is to be started again after this end, which its user did not want, when it has been so often in a row.
    pub fn wants(self, end: &End, times: u32) -> bool {
        match self {
            Restart::No => false,
            Restart::OnFailure { most } => end.exit_status() != 0 && most.is_none_or(|most| times < most),
            Restart::UnlessStopped | Restart::Always => true,
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Restart::No => f.pad("no"),
            Restart::OnFailure { most: None } => f.pad("on-failure"),
            Restart::OnFailure { most: Some(most) } => f.pad(&format!("on-failure:{most}")),
            Restart::UnlessStopped => f.pad("unless-stopped"),
            Restart::Always => f.pad("always"),
        }
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> String {
        restart.to_string()
    }
}

impl TryFrom<String> for Restart {
    type Error = String;

    fn try_from(text: String) -> Result<Restart, String> {
        text.parse()
    }
}

impl FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Restart, String> {
        let wrong = || {
            format!(
                "{text:?} is no restart policy: use no, on-failure, on-failure:N, unless-stopped or always"
            )
        };
        match text {
            "no" => Ok(Restart::No),
            "on-failure" => Ok(Restart::OnFailure { most: None }),
            "unless-stopped" => Ok(Restart::UnlessStopped),
            "always" => Ok(Restart::Always),
            _ => {
                let most = text.strip_prefix("on-failure:").ok_or_else(wrong)?;
                Ok(Restart::OnFailure { most: Some(most.parse().map_err(|_| wrong())?) })
            }
        }
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Restart {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Restart".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "When a VM that has ended is started again.",
            "type": "string",
            "pattern": "^(no|on-failure(:[0-9]{1,9})?|unless-stopped|always)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_as_they_are_read() {
        for text in ["no", "on-failure", "on-failure:3", "unless-stopped", "always"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        for wrong in ["", "yes", "on-failure:", "on-failure:-1", "on-failure:99999999999", "No"] {
            assert!(wrong.parse::<Restart>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_an_end_means_to_each() {
        let (well, ill) = (End::PowerOff, End::Command { status: 3 });
        let twice = Restart::OnFailure { most: Some(2) };
        assert!(!Restart::No.wants(&ill, 0));
        assert!(!twice.wants(&well, 0) && twice.wants(&ill, 1) && !twice.wants(&ill, 2));
        assert!(Restart::OnFailure { most: None }.wants(&End::Panic, u32::MAX));
        for policy in [Restart::UnlessStopped, Restart::Always] {
            assert!(policy.wants(&well, 9) && policy.wants(&ill, 9));
        }
    }
}
