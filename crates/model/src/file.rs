//! Files of the host that a VM with an image of containers has as if they were its image's.
use crate::{Fault, Kind, ShareSpec};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Most files of one VM.
pub const FILES_MAX: usize = 16;

/// A file of the host that is copied when the VM is made, and lies in its image from then on: what goes on from a snapshot has it, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// The file on the host.
    pub path: PathBuf,
    /// Where it is in the guest: an absolute path.
    pub target: String,
}

impl FileSpec {
    /// Checks what needs no look at the host.
    pub fn check_all(files: &[FileSpec]) -> Result<(), Fault> {
        if files.len() > FILES_MAX {
            let text = format!("{} files are too many for one VM", files.len());
            return Err(Fault::new(
                Kind::Usage,
                text,
                format!("name at most {FILES_MAX}, or share a directory: -v DIR:PATH"),
            ));
        }
        for (number, file) in files.iter().enumerate() {
            let place = ShareSpec { path: "/".into(), target: file.target.clone(), ..ShareSpec::default() };
            let fix = "let target be an absolute path in the guest, another one for each file";
            place.check().map_err(|fault| Fault {
                message: fault.message.replacen("a directory", "a file", 1),
                fix: fix.into(),
                ..fault
            })?;
            if files.iter().take(number).any(|other| other.target == file.target) {
                let text = format!("two files would be {:?} in the guest", file.target);
                return Err(Fault::new(Kind::Usage, text, fix));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_place_below_the_root() {
        let file = |target: &str| FileSpec { path: "/f".into(), target: target.into() };
        assert_eq!(FileSpec::check_all(&[file("/a/b"), file("/a/c")]), Ok(()));
        for files in [vec![file("a")], vec![file("/a/../b")], vec![file("/")], vec![file("/a"), file("/a")]] {
            assert_eq!(FileSpec::check_all(&files).unwrap_err().kind, Kind::Usage, "{files:?}");
        }
        assert!(FileSpec::check_all(&vec![file("/a"); FILES_MAX + 1]).is_err());
    }
}
