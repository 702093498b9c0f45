//! Who we are to a registry: what it asks for with its 401, and the token server that it names (docker, "Token Authentication Specification").
use super::{Failure, Refusal, Registry, SMALL, broken, lock, words};
use crate::credentials::{self, Credentials, Found};
use crate::registries::Place;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use ureq::http::header;
use viv_model::{Fault, Kind};

impl Registry {
    /// Gets what the registry asks for with its 401.
    pub(super) fn authorize(&self, place: &Place, refusal: &Refusal) -> Result<(), Failure> {
        let credentials = self.credentials(place).ok().flatten();
        let challenge = refusal.challenge.as_deref().unwrap_or_default();
        let (kind, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let value = if kind.eq_ignore_ascii_case("bearer") {
            format!("Bearer {}", self.token(place, &parameters(rest), credentials.as_ref())?)
        } else {
            let basic = credentials.as_ref().and_then(Credentials::basic);
            basic.ok_or_else(|| Failure::Fault(self.no_credentials(place)))?
        };
        lock(&self.shared.tokens).insert(scope(place), value);
        Ok(())
    }

    /// Asks the token server that the registry names.
    fn token(
        &self,
        place: &Place,
        asked: &BTreeMap<String, String>,
        credentials: Option<&Credentials>,
    ) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let realm = asked.get("realm").map(String::as_str).unwrap_or_default();
        let is_safe = realm.starts_with("https://");
        let is_plain = realm.starts_with("http://") && place.insecure;
        if !is_safe && !is_plain {
            let realm: String = realm.chars().take(200).collect();
            let text = format!(
                "the registry {} sends us to {realm:?} for a token, which is not safe",
                place.registry
            );
            return Err(Failure::Fault(Fault::new(
                Kind::Denied,
                text,
                "if it is your own registry: --insecure",
            )));
        }
        let agent = self.shared.agent(place)?;
        let service = asked.get("service").map(String::as_str).unwrap_or_default();
        let own =
            format!("repository:{}:{}", place.repository, if self.writes { "pull,push" } else { "pull" });
        // What is asked first when something is sent is whether it is there: that needs less than what follows.
        let scope = asked.get("scope").filter(|_| !self.writes).unwrap_or(&own);
        let answer = match credentials {
            Some(Credentials::Refresh(token)) => agent.post(realm).send_form([
                ("grant_type", "refresh_token"),
                ("service", service),
                ("client_id", "vivarium"),
                ("scope", scope),
                ("refresh_token", token),
            ]),
            _ => {
                let mut request = agent.get(realm).query("service", service).query("scope", scope);
                if let Some(basic) = credentials.and_then(Credentials::basic) {
                    request = request.header(header::AUTHORIZATION, basic);
                }
                request.call()
            }
        };
        let mut answer = answer.map_err(|error| broken(place, &error))?;
        if !answer.status().is_success() {
            let words = words(answer.body_mut());
            return Err(Failure::Refused(Refusal {
                status: answer.status(),
                words,
                after: None,
                challenge: None,
            }));
        }
        let mut text = Vec::new();
        let read = answer.body_mut().as_reader().take(SMALL).read_to_end(&mut text);
        let token = read.ok().and_then(|_| serde_json::from_slice::<Token>(&text).ok());
        let token = token.map(|both| if both.token.is_empty() { both.access_token } else { both.token });
        token
            .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
            .ok_or_else(|| Failure::Broken(format!("the token server of {} gave no token", place.registry)))
    }

    /// Who we are there, or what is wrong with what should say it.
    pub(super) fn credentials(&self, place: &Place) -> Found {
        match self.shared.logins.get(&place.registry) {
            Some(given) => Ok(Some(given.clone())),
            None => credentials::find(&place.registry, &place.repository),
        }
    }

    pub(super) fn no_credentials(&self, place: &Place) -> Fault {
        let why = self.credentials(place).err().map_or_else(String::new, |trouble| format!(": {trouble}"));
        Fault::new(
            Kind::Denied,
            format!("{} wants to know who you are, and there are no credentials for it{why}", place.registry),
            format!(
                "log in with what you use for containers: docker login {0}, podman login {0} or skopeo login {0}",
                place.registry
            ),
        )
    }
}

/// What a token is good for.
pub(super) fn scope(place: &Place) -> String {
    format!("{}/{}", place.registry, place.repository)
}

/// The parameters of a challenge: `name="value",…` (RFC 9110 §11.6.1).
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut chars = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '\\' => value.extend(chars.next().map(|(_, c)| c)),
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        c => value.push(c),
                    }
                }
                (value, quoted.get(end..).unwrap_or_default())
            }
            None => {
                let end = after.find(',').unwrap_or(after.len());
                let (value, next) = after.split_at(end);
                (value.trim().to_string(), next)
            }
        };
        found.insert(name, value);
        rest = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let found = parameters(
            r#"realm="https://a/b?c=d",service="x, y", scope="repository:a/b:pull,push",error=bad"#,
        );
        let get = |name: &str| found.get(name).map(String::as_str);
        assert_eq!(get("realm"), Some("https://a/b?c=d"));
        assert_eq!(get("service"), Some("x, y"));
        assert_eq!(get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(get("error"), Some("bad"));
        assert_eq!(parameters(r#"a="b\"c"#).get("a").map(String::as_str), Some(r#"b"c"#));
        assert!(parameters("").is_empty() && parameters("nonsense").is_empty());
    }
}
