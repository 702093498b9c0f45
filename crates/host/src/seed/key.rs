//! The key by which this user's `viv ssh` comes into guests: made once, by OpenSSH's own `ssh-keygen`.
use crate::places::Places;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Its file, below the directory of data; the public half has `.pub` behind it.
const KEY: &str = "ssh/id_ed25519";

/// Where the private half is, if it has been made.
pub fn private_key(places: &Places) -> Option<PathBuf> {
    let path = places.data.join(KEY);
    (path.is_file() && public_of(&path).is_file()).then_some(path)
}

fn public_of(path: &std::path::Path) -> PathBuf {
    path.with_extension("pub")
}

/// The public half, made if need be; none where there is no `ssh-keygen`: then the user's own keys must do.
pub(super) fn public_key(places: &Places) -> Option<String> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _turn = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = places.data.join(KEY);
    if private_key(places).is_none() {
        make(&path)?;
    }
    let text = fs::read_to_string(public_of(&path)).ok()?;
    Some(text.trim().to_string()).filter(|key| !key.is_empty())
}

fn make(path: &std::path::Path) -> Option<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path.parent()?).ok()?;
    let new = path.with_file_name("new");
    for file in [&new, &public_of(&new)] {
        let _ = fs::remove_file(file);
    }
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "viv", "-f"])
        .arg(&new)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return None;
    }
    // Only both together count.
    fs::rename(&new, path).ok()?;
    fs::rename(public_of(&new), public_of(path)).ok()
}
