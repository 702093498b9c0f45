//! What `viv run` tells cloud-init in the guest.
use crate::output;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use viv_api::cloud::{CloudInit, Seed};
use viv_model::{Fault, Kind};

/// Most bytes of a file with keys.
const KEYS_MAX: u64 = 1 << 20;
/// How data begin that cloud-init understands (its documentation, "User-data formats").
const FORMATS: [&[u8]; 9] = [
    b"#cloud-config",
    b"#!",
    b"#include",
    b"#cloud-boothook",
    b"#part-handler",
    b"## template: jinja",
    b"Content-Type:",
    b"MIME-Version:",
    b"\x1f\x8b", // gzip of one of these
];

#[derive(clap::Args, Debug)]
pub(crate) struct CloudInitArgs {
    /// Give cloud-init in the guest this user-data; none: tell it nothing. Without, a disk with cloud-init in it gets a user
    /// (--user, or the image's own) with your keys
    #[arg(long, value_name = "FILE|none")]
    cloud_init: Option<PathBuf>,
    /// Let this public key in: by cloud-init; may be given several times. Without, those in ~/.ssh
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// Give cloud-init this network configuration; without, it asks by DHCP
    #[arg(long, value_name = "FILE")]
    network_config: Option<PathBuf>,
}

impl CloudInitArgs {
    /// What is asked for; `user` is the one that was named for commands, of a disk that has no agent.
    pub(crate) fn to_spec(&self, is_disk: bool, user: Option<&str>) -> Result<CloudInit, Fault> {
        let is_off = self.cloud_init.as_deref() == Some(Path::new("none"));
        let is_told = !self.ssh_key.is_empty() || self.network_config.is_some();
        if is_off && is_told {
            return Err(Fault::new(
                Kind::Usage,
                "cloud-init is told nothing with --cloud-init none, and so no key and no network",
                "leave out one or the other",
            ));
        }
        if !is_off && !is_told && self.cloud_init.is_none() && !is_disk {
            return Ok(CloudInit::default());
        }
        let user = user.filter(|_| is_disk).map(str::to_string);
        if is_off {
            return Ok(CloudInit { seed: Seed::No, user, ..CloudInit::default() });
        }
        let file = |path: &Option<PathBuf>| path.as_deref().map(super::run::absolute).transpose();
        let user_data = file(&self.cloud_init)?;
        if let Some(path) = &user_data {
            warn(path);
        }
        let keys = match self.ssh_key.as_slice() {
            [] => usual_keys(),
            files => files.iter().map(|path| keys_in(path)).collect::<Result<Vec<_>, _>>()?.concat(),
        };
        let asked = is_told || user_data.is_some() || user.is_some();
        Ok(CloudInit {
            seed: if asked { Seed::Yes } else { Seed::Auto },
            user_data,
            network_config: file(&self.network_config)?,
            user,
            ssh_keys: keys,
        })
    }
}

/// The absolute path of a disk's file, as text.
pub(crate) fn disk_file(name: &str) -> Result<String, Fault> {
    let path = super::run::absolute(Path::new(name))?;
    path.into_os_string().into_string().map_err(|path| {
        let text = format!("the path of the image is no text: {}", path.display());
        Fault::new(Kind::Usage, text, "rename it")
    })
}

/// Says so if cloud-init will not know what to do with user-data; whether they can be read at all, the service says.
fn warn(path: &Path) {
    let mut begin = Vec::new();
    let regular = fs::metadata(path).is_ok_and(|found| found.is_file());
    let Some(file) = regular.then(|| fs::File::open(path).ok()).flatten() else { return };
    if file.take(64).read_to_end(&mut begin).is_ok()
        && !FORMATS.iter().any(|format| begin.starts_with(format))
    {
        output::note(&format!(
            "{} begins with neither #cloud-config nor #! nor as MIME: cloud-init will not know what to do with it",
            path.display()
        ));
    }
}

/// The public keys that the user has.
fn usual_keys() -> Vec<String> {
    let Some(home) = std::env::var_os("HOME") else { return Vec::new() };
    let entries = fs::read_dir(Path::new(&home).join(".ssh")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "pub") && path.is_file());
    files.sort();
    // One that is no key, or cannot be read, was not asked for.
    let keys = files.iter().filter_map(|path| keys_in(path).ok()).flatten();
    keys.filter(|key| key.starts_with("ssh-") || key.starts_with("ecdsa-") || key.starts_with("sk-"))
        .collect()
}

/// The keys in a file, one a line; of a private one, those in its public half.
fn keys_in(path: &Path) -> Result<Vec<String>, Fault> {
    let failed = |error: std::io::Error| {
        let kind = Kind::of_file(&error);
        let text = format!("cannot read the key {}: {error}", path.display());
        Fault::new(kind, text, "name a public key: --ssh-key ~/.ssh/id_ed25519.pub")
    };
    let read = |path: &Path| -> std::io::Result<String> {
        let mut text = String::new();
        fs::File::open(path)?.take(KEYS_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let mut text = read(path).map_err(failed)?;
    if text.starts_with("-----BEGIN") {
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        text = read(Path::new(&public)).map_err(failed)?;
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_string).collect();
    match keys.is_empty() {
        true => Err(failed(std::io::Error::other("it is empty"))),
        false => Ok(keys),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> CloudInitArgs {
        CloudInitArgs { cloud_init: None, ssh_key: Vec::new(), network_config: None }
    }

    #[test]
    fn only_a_disk_is_told_something_by_itself() {
        assert!(arguments().to_spec(false, Some("root")).unwrap().is_usual());
        assert_eq!(arguments().to_spec(true, None).unwrap().seed, Seed::Auto);
        let named = arguments().to_spec(true, Some("me")).unwrap();
        assert_eq!((named.seed, named.user.as_deref()), (Seed::Yes, Some("me")));
        let off = CloudInitArgs { cloud_init: Some("none".into()), ..arguments() };
        assert_eq!(off.to_spec(true, None).unwrap().seed, Seed::No);
        let both = CloudInitArgs { ssh_key: vec!["k".into()], ..off };
        assert_eq!(both.to_spec(true, None).unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn keys_are_lines_and_a_private_one_is_found_by_its_public_half() {
        let dir = std::env::temp_dir().join(format!("viv-keys-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (private, public) = (dir.join("id"), dir.join("id.pub"));
        fs::write(&private, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert_eq!(keys_in(&private).unwrap_err().kind, Kind::NotFound);
        fs::write(&public, "# mine\nssh-ed25519 AAAA a\n\nssh-rsa BBBB b\n").unwrap();
        assert_eq!(keys_in(&private).unwrap(), ["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"]);
        fs::write(&public, "\n").unwrap();
        assert_eq!(keys_in(&public).unwrap_err().kind, Kind::Error);
        fs::remove_dir_all(dir).unwrap();
    }
}
