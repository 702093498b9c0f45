//! Who may come over the network: tokens and certificates that were given out, by the hashes of their secrets.
use crate::store::write_whole;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use subtle::ConstantTimeEq;
use viv_api::access::{Pass, PassCreate, PassKind};
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind};

/// Most of them.
const PASSES_MAX: usize = 1024;
/// How long a certificate lasts if nothing is said, seconds.
const CERTIFICATE_S: u64 = 365 * 24 * 3600;
/// The longest that anything lasts, seconds.
const EXPIRES_S_MAX: u64 = 10 * 365 * 24 * 3600;
/// What a token begins with, so that it is known where one was left lying.
const PREFIX: &str = "viv_";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// One that was given out.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    pass: Pass,
    /// SHA-256 of the token, or of the certificate (DER); hexadecimal.
    sha256: String,
}

/// All of them, in a file.
pub(crate) struct Passes {
    path: PathBuf,
    kept: Mutex<Vec<Kept>>,
}

/// Hexadecimal SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Passes {
    /// Those of an earlier service. A file that is damaged lets nobody in, and is not overwritten.
    pub(crate) fn open(path: PathBuf) -> Result<Passes, Fault> {
        let refused = |why: String| {
            Fault::new(
                Kind::Error,
                format!("cannot read who may come over the network from {}: {why}", path.display()),
                "restore the file, or move it away and give out new tokens",
            )
        };
        let kept = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(refused(error.to_string())),
        };
        Ok(Passes { path, kept: Mutex::new(kept) })
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All, in the order in which they were made.
    pub(crate) fn list(&self) -> Vec<Pass> {
        self.kept().iter().map(|kept| kept.pass.clone()).collect()
    }

    /// A pass as it is asked for; not given out yet.
    pub(crate) fn asked(&self, ask: &PassCreate, kind: PassKind) -> Result<Pass, Fault> {
        let usage = |text: String, fix: &str| Err(Fault::new(Kind::Usage, text, fix));
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=63).contains(&ask.name.len()) || !ask.name.bytes().all(letters) {
            return usage(
                format!("nobody can be called {:?} here", ask.name),
                "use 1 to 63 letters, digits, '.', '_' and '-'",
            );
        }
        let lasts = ask.expires_s.or((kind == PassKind::Certificate).then_some(CERTIFICATE_S));
        if lasts.is_some_and(|s| !(1..=EXPIRES_S_MAX).contains(&s)) {
            return usage(
                "it cannot last so long, or so short".to_string(),
                "use a time up to ten years: 30d",
            );
        }
        let now = Timestamp::now();
        let expires_at = lasts.map(|s| Timestamp { unix_s: now.unix_s.saturating_add(s) });
        let (name, project) = (ask.name.clone(), ask.project.clone());
        Ok(Pass { name, role: ask.role, project, kind, created_at: now, expires_at })
    }

    /// Gives one out, with the hash of its secret.
    pub(crate) fn add(&self, pass: Pass, sha256: String) -> Result<(), Fault> {
        let mut kept = self.kept();
        if kept.iter().any(|known| known.pass.name == pass.name) {
            return Err(Fault::new(
                Kind::Conflict,
                format!("there is a token or certificate for {:?} already", pass.name),
                format!("use another name, or remove it first: viv token rm {}", pass.name),
            ));
        }
        if kept.len() >= PASSES_MAX {
            return Err(Fault::new(
                Kind::NoCapacity,
                format!("{PASSES_MAX} tokens and certificates were given out, which is the most"),
                "remove those that nobody uses: viv token ls, viv token rm NAME",
            ));
        }
        let mut after = kept.clone();
        after.push(Kept { pass, sha256 });
        self.write(&after)?;
        *kept = after;
        Ok(())
    }

    /// Takes one back: at once, also from connections that are open.
    pub(crate) fn remove(&self, name: &str) -> Result<Pass, Fault> {
        let mut kept = self.kept();
        let Some(index) = kept.iter().position(|known| known.pass.name == name) else {
            return Err(Fault::new(
                Kind::NotFound,
                format!("there is no token or certificate for {name:?}"),
                "see what there is: viv token ls",
            ));
        };
        let mut after = kept.clone();
        let removed = after.remove(index).pass;
        self.write(&after)?;
        *kept = after;
        Ok(removed)
    }

    fn write(&self, kept: &Vec<Kept>) -> Result<(), Fault> {
        write_whole(&self.path, kept).map_err(|error| {
            let text = format!("cannot write {}: {error}", self.path.display());
            Fault::new(Kind::Error, text, "see that the state directory is writable and its disk has space")
        })
    }

    /// Whose secret has this hash, if it still lasts. Takes as long for one that is nearly right as for any other.
    pub(crate) fn whose(&self, kind: PassKind, sha256: &str) -> Option<Pass> {
        let now = Timestamp::now();
        let kept = self.kept();
        let mut found = None;
        for known in kept.iter() {
            if bool::from(known.sha256.as_bytes().ct_eq(sha256.as_bytes())) {
                found = Some(&known.pass);
            }
        }
        let lasts = |pass: &&Pass| pass.expires_at.is_none_or(|end| now < end);
        found.filter(|pass| pass.kind == kind).filter(lasts).cloned()
    }
}

/// A new token.
pub(crate) fn new_token() -> Result<String, Fault> {
    secret(PREFIX)
}

/// Nobody guesses it; it begins so.
pub(crate) fn secret(prefix: &str) -> Result<String, Fault> {
    let mut bytes = [0u8; SECRET_BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty()).map_err(|error| {
            Fault::new(Kind::Error, format!("the kernel gives no random bytes: {error}"), "try again")
        })?;
    }
    Ok(prefix.to_string() + &bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::contract::Role;

    #[test]
    fn a_token_lets_in_until_it_is_taken_back_or_over() {
        let dir = std::env::temp_dir().join(format!("viv-host-passes-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("passes.json");
        let passes = Passes::open(path.clone()).unwrap();
        let project = "acme".parse().ok();
        let ask = |name: &str| PassCreate {
            name: name.into(),
            role: Role::Operator,
            project: project.clone(),
            expires_s: Some(60),
        };
        let token = new_token().unwrap();
        assert_eq!(token.len(), PREFIX.len() + 2 * SECRET_BYTES);
        assert_ne!(token, new_token().unwrap());
        let pass = passes.asked(&ask("ci"), PassKind::Token).unwrap();
        passes.add(pass.clone(), sha256(token.as_bytes())).unwrap();
        assert_eq!(passes.add(pass.clone(), String::new()).unwrap_err().kind, Kind::Conflict);
        assert_eq!(passes.whose(PassKind::Token, &sha256(token.as_bytes())), Some(pass.clone()));
        assert_eq!(passes.whose(PassKind::Certificate, &sha256(token.as_bytes())), None);
        assert_eq!(passes.whose(PassKind::Token, &sha256(b"viv_other")), None);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&token) && text.contains("\"ci\""), "the secret is not kept");
        let again = Passes::open(path.clone()).unwrap();
        assert_eq!(pass.project, project, "and kept with it");
        assert_eq!(again.list(), std::slice::from_ref(&pass));
        assert_eq!(again.remove("ci"), Ok(pass.clone()));
        assert_eq!(again.whose(PassKind::Token, &sha256(token.as_bytes())), None);
        let over = Pass { expires_at: Some(Timestamp { unix_s: 1 }), ..pass };
        again.add(over, sha256(b"old")).unwrap();
        assert_eq!(again.whose(PassKind::Token, &sha256(b"old")), None);
        for name in ["", "a b", "ü", &"x".repeat(64)] {
            assert_eq!(again.asked(&ask(name), PassKind::Token).unwrap_err().kind, Kind::Usage);
        }
        let never = PassCreate { expires_s: Some(0), ..ask("x") };
        assert!(again.asked(&never, PassKind::Token).is_err());
        let of_before = r#"[{"name": "old", "role": "viewer", "kind": "token", "created_at": "2026-01-01T00:00:00Z",
            "expires_at": null, "sha256": "0"}]"#;
        std::fs::write(&path, of_before).unwrap();
        assert_eq!(
            Passes::open(path.clone()).unwrap().list()[0].project,
            None,
            "one of before is bound to none"
        );
        std::fs::write(&path, "[{").unwrap();
        assert!(Passes::open(path.clone()).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{", "what is damaged stays for its owner");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
