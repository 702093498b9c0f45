//! Projects: what of a host belongs together, and does not see the rest.
use crate::{Fault, Kind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most bytes of a name: those of a label of a domain name (RFC 1035 §2.3.4).
const NAME_MAX: usize = 63;
/// The project of who names none.
const DEFAULT: &str = "default";

/// The name of a project.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectName(String);

impl ProjectName {
    /// Whether it is the project of who names none, which is always there.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ProjectName {
    fn default() -> ProjectName {
        ProjectName(DEFAULT.to_string())
    }
}

impl fmt::Display for ProjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<ProjectName> for String {
    fn from(name: ProjectName) -> String {
        name.0
    }
}

impl TryFrom<String> for ProjectName {
    type Error = Fault;

    fn try_from(name: String) -> Result<ProjectName, Fault> {
        let fits = (1..=NAME_MAX).contains(&name.len())
            && name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if fits {
            return Ok(ProjectName(name));
        }
        Err(Fault::new(
            Kind::Usage,
            format!("no project can be called {name:?}"),
            format!("use 1 to {NAME_MAX} of a-z, 0-9 and '-', the first a letter"),
        ))
    }
}

impl FromStr for ProjectName {
    type Err = Fault;

    fn from_str(name: &str) -> Result<ProjectName, Fault> {
        name.to_string().try_into()
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for ProjectName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ProjectName".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "The name of a project.",
            "type": "string",
            "pattern": "^[a-z][a-z0-9-]{0,62}$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_slash_and_no_surprise() {
        for name in ["a", "default", "team-7", &"x".repeat(63)] {
            assert_eq!(name.parse::<ProjectName>().unwrap().to_string(), name);
            assert_eq!(serde_json::from_str::<ProjectName>(&format!("{name:?}")).unwrap().as_str(), name);
        }
        for name in ["", "7a", "A", "a/b", "a.b", "-a", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(name.parse::<ProjectName>().unwrap_err().kind, Kind::Usage, "{name}");
            assert!(serde_json::from_str::<ProjectName>(&format!("{name:?}")).is_err());
        }
        assert!(ProjectName::default().is_default() && !"a".parse::<ProjectName>().unwrap().is_default());
    }
}
