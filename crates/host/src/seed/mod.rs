//! What cloud-init in a guest is told about it: a disk of the `NoCloud` data source, made once, when the VM is made
//! (docs/decisions/071).
mod iso;
mod key;

pub use key::private_key;

use crate::places::Places;
use crate::store::{StoreError, write_whole};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use viv_api::cloud::{CloudInit, Seed};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind};
pub(crate) use viv_snapshot::{SEED, SEED_SETTINGS as SETTINGS};

/// By which cloud-init finds it.
const LABEL: &str = "cidata";
/// Its serial number, by which the guest finds it, too.
const SERIAL: &str = "cidata";
/// Most bytes of a file of the user's.
const FILE_MAX: u64 = 1 << 20;
/// Most bytes of a key, and most keys.
const KEY_MAX: usize = 16 << 10;
const KEYS_MAX: usize = 100;
/// Who gets the keys if the image says no one.
const USER: &str = "viv";

/// Who the VM is.
pub(crate) struct Identity<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
}

/// Makes the seed in the VM's directory; gives the disk.
pub(crate) fn make(
    ask: &CloudInit,
    identity: &Identity<'_>,
    default_user: Option<&str>,
    places: &Places,
    dir: &Path,
) -> Result<DiskSpec, Fault> {
    if let Some(user) = &ask.user {
        check_user(user)?;
    }
    let mut keys = ask.ssh_keys.clone();
    keys.iter().try_for_each(|key| check_key(key))?;
    if keys.len() > KEYS_MAX {
        let text = format!("{} keys for SSH are more than the {KEYS_MAX} that a guest gets", keys.len());
        return Err(Fault::new(Kind::Usage, text, "name those that are needed: --ssh-key FILE"));
    }
    keys.extend(key::public_key(places).filter(|own| !ask.ssh_keys.contains(own)));
    // With user-data of the user's own, only the image knows who is there.
    let fallback = ask.user_data.is_none().then_some(USER);
    let user = ask.user.as_deref().or(default_user).or(fallback);
    let user_data = match &ask.user_data {
        Some(path) => read(path, "user-data")?,
        None => user_data(user.unwrap_or(USER)).into_bytes(),
    };
    let network_config =
        ask.network_config.as_deref().map(|path| read(path, "network-config")).transpose()?;
    let meta_data = meta_data(identity, &keys);
    let mut files: Vec<iso::File<'_>> = vec![("meta-data", meta_data.as_bytes()), ("user-data", &user_data)];
    files.extend(network_config.as_ref().map(|bytes| ("network-config", bytes.as_slice())));
    let path = dir.join(SEED);
    write(&path, &iso::image(LABEL, &files)).map_err(failed("write", &path))?;
    let settings = dir.join(SETTINGS);
    let kept = CloudInit { user: user.map(str::to_string), ..ask.clone() };
    write_whole(&settings, &kept).map_err(failed("write", &settings))?;
    Ok(DiskSpec {
        path,
        read_only: true,
        format: Some(DiskFormat::Raw),
        serial: Some(SERIAL.to_string()),
        ..DiskSpec::default()
    })
}

/// Whether a disk is a VM's seed.
pub(crate) fn is_seed(disk: &DiskSpec) -> bool {
    let is_called = disk.path.file_name().is_some_and(|name| name == SEED);
    disk.read_only && is_called && disk.serial.as_deref() == Some(SERIAL)
}

/// What was asked of the seed of the VM in `dir`, if it has one.
pub(crate) fn settings(dir: &Path) -> Option<CloudInit> {
    let mut text = Vec::new();
    File::open(dir.join(SETTINGS)).ok()?.take(FILE_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Of a VM that goes on from a snapshot, the names of the files that its seed was made from say nothing: a snapshot may come
/// from elsewhere, and mean files of here.
pub(crate) fn forget_files(dir: &Path) -> Result<(), Fault> {
    let Some(kept) = settings(dir) else { return Ok(()) };
    let kept = CloudInit { seed: Seed::Yes, user_data: None, network_config: None, ..kept };
    let path = dir.join(SETTINGS);
    write_whole(&path, &kept).map_err(failed("write", &path))
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Fault + 'a {
    move |source| StoreError::Io { what, path: path.to_path_buf(), source }.into()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // It may have passwords in it.
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(0o400))?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// A file of the user's.
fn read(path: &Path, what: &str) -> Result<Vec<u8>, Fault> {
    let place = path.display();
    let failed = |error: io::Error| {
        let kind = Kind::of_file(&error);
        let text = format!("cannot read the {what} of cloud-init, {place}: {error}");
        Fault::new(kind, text, "check the path: --cloud-init FILE, --network-config FILE")
    };
    crate::vms::absolute(path)?;
    let found = fs::metadata(path).map_err(failed)?;
    let refused = |why: String| {
        let text = format!("the {what} of cloud-init cannot be {place}: {why}");
        Err(Fault::new(Kind::Usage, text, "name a file: --cloud-init FILE, --network-config FILE"))
    };
    if !found.is_file() {
        return refused("it is no regular file".to_string());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > FILE_MAX {
        true => refused(format!("it is larger than {} KiB", FILE_MAX >> 10)),
        false => Ok(bytes),
    }
}

/// A user's name as cloud-init and `ssh` both take it.
fn check_user(user: &str) -> Result<(), Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let begins = user.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if begins && user.len() <= 32 && user.chars().all(plain) {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        format!("no user of a guest can be called {user:?}"),
        "use 1 to 32 letters, digits, _, . and -, a letter first",
    ))
}

fn check_key(key: &str) -> Result<(), Fault> {
    let is_text = key.chars().all(|c| !c.is_control());
    let types = ["ssh-", "ecdsa-", "sk-"];
    let has_type =
        types.iter().any(|name| key.starts_with(name)) && key.split_ascii_whitespace().count() >= 2;
    if is_text && has_type && key.len() <= KEY_MAX {
        return Ok(());
    }
    let begin: String = key.chars().take(20).filter(|c| !c.is_control()).collect();
    Err(Fault::new(
        Kind::Usage,
        format!("{begin:?}… is no public key for SSH"),
        "name the public half, one line that begins with ssh-: --ssh-key ~/.ssh/id_ed25519.pub",
    ))
}

/// A string of JSON, which is one of YAML, too (YAML 1.2 §1.3).
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Who the instance is, with the keys: these go to the image's default user whatever the user-data say.
fn meta_data(identity: &Identity<'_>, keys: &[String]) -> String {
    let mut text = format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        quoted(&format!("viv-{}", identity.id)),
        quoted(identity.name)
    );
    if !keys.is_empty() {
        text.push_str("public-keys:\n");
        keys.iter().for_each(|key| text.push_str(&format!("  - {}\n", quoted(key))));
    }
    text
}

/// The image's default user, under this name.
fn user_data(user: &str) -> String {
    format!("#cloud-config\nuser:\n  name: {}\nssh_pwauth: false\n", quoted(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(name: &str) -> Places {
        let root = std::env::temp_dir().join(format!("viv-seed-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("vm")).unwrap();
        Places { state: root.clone(), data: root.clone(), runtime: root }
    }

    fn seed(ask: &CloudInit, default_user: Option<&str>, places: &Places) -> Result<String, Fault> {
        let identity = Identity { id: "0123", name: "web" };
        let disk = make(ask, &identity, default_user, places, &places.state.join("vm"))?;
        assert!(disk.read_only);
        Ok(String::from_utf8_lossy(&fs::read(disk.path).unwrap()).into_owned())
    }

    #[test]
    fn a_guest_is_told_who_it_is_and_whose_keys_to_take() {
        let places = places("told");
        let key = "ssh-ed25519 AAAA me@host";
        let ask = CloudInit { ssh_keys: vec![key.into()], ..CloudInit::default() };
        let text = seed(&ask, Some("debian"), &places).unwrap();
        for part in [
            "instance-id: \"viv-0123\"",
            "local-hostname: \"web\"",
            &format!("  - \"{key}\""),
            "  name: \"debian\"",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("network-config"));
        let vm = places.state.join("vm");
        assert_eq!(settings(&vm).unwrap().user.as_deref(), Some("debian"));
        assert!(seed(&CloudInit::default(), None, &places).unwrap().contains("name: \"viv\""));
        let own = places.state.join("own.yaml");
        fs::write(&own, "#cloud-config\npackages: [nginx]\n").unwrap();
        let ask =
            CloudInit { user_data: Some(own.clone()), network_config: Some(own), ..CloudInit::default() };
        let text = seed(&ask, None, &places).unwrap();
        assert!(text.matches("packages: [nginx]").count() == 2 && !text.contains("ssh_pwauth"));
        assert_eq!(settings(&vm).unwrap().user, None);
        fs::remove_dir_all(&places.state).unwrap();
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        let places = places("refused");
        let large = places.state.join("large");
        fs::write(&large, vec![b'x'; FILE_MAX as usize + 1]).unwrap();
        let user_data =
            |path: &Path| CloudInit { user_data: Some(path.to_path_buf()), ..CloudInit::default() };
        let key = |text: &str| CloudInit { ssh_keys: vec![text.into()], ..CloudInit::default() };
        let user = |text: &str| CloudInit { user: Some(text.into()), ..CloudInit::default() };
        for (ask, kind) in [
            (user_data(&places.state.join("none")), Kind::NotFound),
            (user_data(&places.state), Kind::Usage),
            (user_data(&large), Kind::Usage),
            (user_data(Path::new("relative")), Kind::Usage),
            (key("-----BEGIN OPENSSH PRIVATE KEY-----"), Kind::Usage),
            (key("ssh-ed25519"), Kind::Usage),
            (key("ssh-rsa A\nB"), Kind::Usage),
            (user("-oProxyCommand=x"), Kind::Usage),
            (user(""), Kind::Usage),
        ] {
            assert_eq!(seed(&ask, None, &places).unwrap_err().kind, kind, "{ask:?}");
        }
        fs::remove_dir_all(&places.state).unwrap();
    }
}
