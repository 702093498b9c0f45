//! Credentials that come with a request to the host service, in the form that Docker's has for them (Docker Engine API, "X-Registry-Config").
use crate::Reference;
use crate::credentials::{self, Credentials};
use crate::registries::Registries;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use viv_model::{Fault, Kind};

/// Its padding may be there or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who somebody is to registries, by their names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Logins(BTreeMap<String, Credentials>);

/// The form of one.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Login {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    password: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    identitytoken: String,
}

impl Logins {
    /// Those of this process's user for what has to do with an image; none for what is in no registry. What is wrong with them is for the
    /// host service to find: it may have better ones.
    pub fn of(reference: &Reference) -> Logins {
        let Reference::Registry(name) = reference else { return Logins::default() };
        let Ok(rules) = Registries::load() else { return Logins::default() };
        let places = rules.places(&name.registry, &name.repository).into_iter();
        let found = places.filter_map(|place| {
            let credentials = credentials::find(&place.registry, &place.repository).ok().flatten()?;
            Some((place.registry, credentials))
        });
        Logins(found.collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of the header field.
    pub fn encode(&self) -> String {
        let logins = self.0.iter().map(|(registry, credentials)| {
            let login = match credentials.clone() {
                Credentials::Password { user, password } => {
                    Login { username: user, password, ..Login::default() }
                }
                Credentials::Refresh(identitytoken) => Login { identitytoken, ..Login::default() },
            };
            (registry.clone(), login)
        });
        let logins: BTreeMap<_, _> = logins.collect();
        BASE64.encode(serde_json::to_vec(&logins).unwrap_or_default())
    }

    /// From the value of the header field.
    ///
    /// # Errors
    /// It has another form.
    pub fn decode(value: &str) -> Result<Logins, Fault> {
        let text = BASE64.decode(value.trim()).ok();
        let logins = text.and_then(|text| serde_json::from_slice::<BTreeMap<String, Login>>(&text).ok());
        let logins = logins.ok_or_else(|| {
            Fault::new(
                Kind::Usage,
                "X-Registry-Config is not understood",
                r#"let it be {"REGISTRY": {"username": "…", "password": "…"}} in base64url"#,
            )
        })?;
        let logins = logins.into_iter().map(|(registry, login)| {
            let credentials = match login.identitytoken.is_empty() {
                true => Credentials::Password { user: login.username, password: login.password },
                false => Credentials::Refresh(login.identitytoken),
            };
            (credentials::registry_of(&registry).to_string(), credentials)
        });
        Ok(Logins(logins.collect()))
    }

    pub(crate) fn get(&self, registry: &str) -> Option<&Credentials> {
        self.0.get(registry)
    }
}

impl fmt::Debug for Logins {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_told_and_understood_and_never_shown() {
        let password = Credentials::Password { user: "ann".into(), password: "s3cret?>".into() };
        let token = Credentials::Refresh("t0ken".into());
        let logins = Logins([("a.io:5000".to_string(), password), ("docker.io".to_string(), token)].into());
        assert_eq!(Logins::decode(&logins.encode()), Ok(logins.clone()));
        assert_eq!(Logins::decode(logins.encode().trim_end_matches('=')), Ok(logins.clone()));
        assert_eq!(format!("{logins:?}"), r#"{"a.io:5000", "docker.io"}"#);
        let dockers =
            BASE64.encode(r#"{"https://index.docker.io/v1/":{"username":"a","password":"b","email":"c"}}"#);
        assert!(Logins::decode(&dockers).unwrap().get("docker.io").is_some());
        for bad in ["", "?", "e30x", "W10="] {
            assert_eq!(Logins::decode(bad).unwrap_err().kind, Kind::Usage, "{bad}");
        }
        assert!(Logins::decode("e30").unwrap().is_empty());
        assert!(Logins::of(&Reference::Archive("/x".into(), None)).is_empty());
    }
}
