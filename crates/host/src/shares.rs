//! Directories of this host that guests may use.
use rustix::fs::{Access, access};
use std::fs;
use std::io::ErrorKind;
use viv_model::{Fault, Kind, ShareMount, ShareSpec};

/// Refuses what cannot be shared, while the user still looks. The process that serves it says so again at each start.
pub(crate) fn check(share: &ShareSpec) -> Result<(), Fault> {
    let name = share.path.display();
    let refuse = |kind, message: String, fix: String| Err(Fault::new(kind, message, fix));
    match fs::metadata(&share.path) {
        Err(error) if error.kind() == ErrorKind::NotFound => refuse(
            Kind::NotFound,
            format!("cannot share {name}: it does not exist"),
            format!("make it: mkdir -p {name}"),
        ),
        Err(error) => refuse(
            Kind::Denied,
            format!("cannot share {name}: {error}"),
            "share a directory that this user may read".to_string(),
        ),
        Ok(found) if !found.is_dir() => refuse(
            Kind::Usage,
            format!("cannot share {name}: it is not a directory"),
            "share the directory that the file is in".to_string(),
        ),
        Ok(_) if access(&share.path, Access::READ_OK | Access::EXEC_OK).is_err() => refuse(
            Kind::Denied,
            format!("cannot share {name}: this user may not read it"),
            format!("let this user read it: chmod u+rx {name}"),
        ),
        Ok(_) if !share.read_only && access(&share.path, Access::WRITE_OK).is_err() => refuse(
            Kind::Denied,
            format!("cannot share {name} for writing: this user may not write to it"),
            format!("share it read-only: -v {name}:{}:ro", share.target),
        ),
        Ok(_) => Ok(()),
    }
}

/// Words for the command line of a guest with our agent.
pub(crate) fn boot_words(shares: &[ShareSpec]) -> String {
    let words = shares.iter().enumerate().map(|(index, share)| ShareMount::new(index, share).to_word());
    words.collect::<Vec<_>>().join(" ")
}
