//! Who we are to a registry, as docker and podman keep it (docker, "config.json"; containers-auth.json(5)).
use crate::user;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How docker's own registry is called in those files.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// The user name that goes with a token instead of a password.
const TOKEN_USER: &str = "<token>";

/// A name and a password, or a token that is worth them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// For the token server only.
    Refresh(String),
}

/// Those that there are, or why there are none where something is wrong with what should say it.
pub(crate) type Found = Result<Option<Credentials>, String>;

impl Credentials {
    /// The value of `Authorization` (RFC 7617).
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Credentials::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credentials::Refresh(_) => None,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    identitytoken: String,
}

/// What a helper says (docker-credential-helpers, "get").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// The registry that a key of those files means.
pub(crate) fn registry_of(key: &str) -> &str {
    let host = key.strip_prefix("https://").unwrap_or(key).trim_end_matches('/');
    let host = host.strip_suffix("/v1").or_else(|| host.strip_suffix("/v2")).unwrap_or(host);
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host }
}

/// The user's credentials for a repository, from the first file that has some; or why there are none, where something is wrong: what is
/// public is had without them all the same.
pub(crate) fn find(registry: &str, repository: &str) -> Found {
    let mut trouble = None;
    for path in files(&user::variable) {
        let found = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<File>(&text)
                .map_err(|error| format!("{} is damaged: {error}", path.display()))
                .and_then(|file| in_file(&file, registry, repository, &ask_helper)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
        };
        match found {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(words) => trouble = trouble.or(Some(words)),
        }
    }
    trouble.map_or(Ok(None), Err)
}

/// The files, in the order in which podman and docker look.
fn files(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from);
    [
        path("REGISTRY_AUTH_FILE"),
        path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        user::configurations(variable).map(|dir| dir.join("containers/auth.json")),
        path("DOCKER_CONFIG")
            .or_else(|| path("HOME").map(|home| home.join(".docker")))
            .map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn in_file(file: &File, registry: &str, repository: &str, helper: &dyn Fn(&str, &str) -> Found) -> Found {
    // The longest name that fits: podman keeps them for parts of a registry, too.
    let full = format!("{registry}/{repository}");
    let mut names: Vec<String> =
        full.match_indices('/').map(|(at, _)| full.get(..at).unwrap_or_default().to_string()).collect();
    names.push(full.clone());
    names.reverse();
    names.extend([
        format!("https://{registry}"),
        format!("https://{registry}/v1/"),
        format!("https://{registry}/v2/"),
    ]);
    if registry == "docker.io" {
        names.extend([
            DOCKER_KEY.to_string(),
            "index.docker.io".to_string(),
            "registry-1.docker.io".to_string(),
        ]);
    }
    let server = if registry == "docker.io" { DOCKER_KEY } else { registry };
    if let Some(program) = names.iter().find_map(|name| file.cred_helpers.get(name)) {
        return helper(program, server);
    }
    match (names.iter().find_map(|name| file.auths.get(name)).and_then(decode), &file.creds_store) {
        (None, Some(program)) => helper(program, server),
        (found, _) => Ok(found),
    }
}

fn decode(auth: &Auth) -> Option<Credentials> {
    if !auth.identitytoken.is_empty() {
        return Some(Credentials::Refresh(auth.identitytoken.clone()));
    }
    let text = String::from_utf8(STANDARD.decode(auth.auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials::Password { user: user.into(), password: password.trim_end_matches('\0').into() })
}

/// Asks `docker-credential-NAME get`, which fails where it has none.
fn ask_helper(name: &str, server: &str) -> Found {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(format!("{name:?} is no name of a helper for credentials"));
    }
    let program = format!("docker-credential-{name}");
    let told = |error: std::io::Error| format!("{program} cannot be run: {error}");
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(told)?;
    // One that does not read has failed, and says so by its status.
    let _ = child.stdin.take().map(|mut input| input.write_all(server.as_bytes()));
    let out = child.wait_with_output().map_err(told)?;
    if !out.status.success() {
        return Ok(None);
    }
    let helped: Helped = serde_json::from_slice(&out.stdout)
        .map_err(|error| format!("{program} was not understood: {error}"))?;
    Ok(Some(match helped.username == TOKEN_USER {
        true => Credentials::Refresh(helped.secret),
        false => Credentials::Password { user: helped.username, password: helped.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, registry: &str, repository: &str) -> Option<(String, String)> {
        let file: File = serde_json::from_str(text).unwrap();
        let helper = |program: &str, server: &str| {
            Ok(Some(Credentials::Password { user: program.to_string(), password: server.to_string() }))
        };
        match in_file(&file, registry, repository, &helper).unwrap()? {
            Credentials::Password { user, password } => Some((user, password)),
            Credentials::Refresh(token) => Some((String::new(), token)),
        }
    }

    #[test]
    fn the_nearest_credentials_are_taken() {
        let text = r#"{"auths":{"quay.io":{"auth":"YTpi"},"quay.io/team":{"auth":"Yzpk"},"x.io":{"identitytoken":"t"},
            "https://index.docker.io/v1/":{"auth":"ZTpmOmc="},"bad.io":{"auth":"???"}}}"#;
        let pair = |user: &str, password: &str| Some((user.to_string(), password.to_string()));
        assert_eq!(found(text, "quay.io", "other/x"), pair("a", "b"));
        assert_eq!(found(text, "quay.io", "team/x"), pair("c", "d"));
        assert_eq!(found(text, "docker.io", "library/x"), pair("e", "f:g"));
        assert_eq!(found(text, "x.io", "y"), pair("", "t"));
        assert_eq!(found(text, "bad.io", "y"), None);
        assert_eq!(found(text, "none.io", "y"), None);
        let helped = r#"{"credHelpers":{"a.io":"one"},"credsStore":"two"}"#;
        assert_eq!(found(helped, "a.io", "x"), pair("one", "a.io"));
        assert_eq!(found(helped, "docker.io", "x"), pair("two", DOCKER_KEY));
    }

    #[test]
    fn files_are_looked_at_in_podmans_and_dockers_order() {
        let set = |name: &str| match name {
            "HOME" => Some("/h".into()),
            "REGISTRY_AUTH_FILE" => Some("/f".into()),
            _ => None,
        };
        let paths: Vec<_> = files(&set).into_iter().map(|path| path.display().to_string()).collect();
        assert_eq!(paths, ["/f", "/h/.config/containers/auth.json", "/h/.docker/config.json"]);
        assert_eq!(
            Credentials::Password { user: "a".into(), password: "b".into() }.basic().unwrap(),
            "Basic YTpi"
        );
    }
}
