//! A directory of the host that a guest may use, and how the guest learns of it.
use crate::{Fault, Kind};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Most directories that one machine shares.
pub const SHARES_MAX: usize = 16;

/// One shared directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ShareSpec {
    /// The directory on the host.
    pub path: PathBuf,
    /// Where it is in the guest: an absolute path.
    pub target: String,
    /// The guest may not change anything in it.
    #[serde(default)]
    pub read_only: bool,
}

fn wrong(message: String) -> Fault {
    Fault::new(
        Kind::Usage,
        message,
        "write -v DIR:PATH or -v DIR:PATH:ro, with an absolute PATH in the guest",
    )
}

impl FromStr for ShareSpec {
    type Err = Fault;
    /// `DIR:PATH`, `DIR:PATH:ro` or `DIR:PATH:rw`.
    fn from_str(text: &str) -> Result<ShareSpec, Fault> {
        let (names, read_only) = match text.rsplit_once(':') {
            Some((names, "ro")) => (names, true),
            Some((names, "rw")) => (names, false),
            _ => (text, false),
        };
        let Some((path, target)) = names.rsplit_once(':').filter(|(path, _)| !path.is_empty()) else {
            return Err(wrong(format!("{text:?} does not name a directory here and a path in the guest")));
        };
        let share = ShareSpec { path: path.into(), target: target.to_string(), read_only };
        share.check()?;
        Ok(share)
    }
}

impl ShareSpec {
    /// Checks what needs no look at the host.
    pub fn check(&self) -> Result<(), Fault> {
        let target = &self.target;
        let refuse =
            |why: &str| Err(wrong(format!("a directory cannot be at {target:?} in the guest: {why}")));
        let Some(inside) = target.strip_prefix('/') else { return refuse("that is no absolute path") };
        if inside.split('/').any(|name| name == "..") {
            return refuse("it goes up");
        }
        if inside.split('/').all(|name| name.is_empty() || name == ".") {
            return refuse("that is the guest's own root directory");
        }
        if target.contains('\0') {
            return refuse("a zero byte ends a path");
        }
        Ok(())
    }

    /// Checks all shares of a machine.
    pub fn check_all(shares: &[ShareSpec]) -> Result<(), Fault> {
        shares.iter().try_for_each(ShareSpec::check)?;
        if shares.len() > SHARES_MAX {
            return Err(Fault::new(
                Kind::Usage,
                format!("{} directories are too many for one machine", shares.len()),
                format!("share at most {SHARES_MAX}, or a directory that they are in"),
            ));
        }
        for (at, share) in shares.iter().enumerate() {
            if shares.iter().take(at).any(|other| other.target == share.target) {
                return Err(Fault::new(
                    Kind::Usage,
                    format!("two directories cannot both be at {:?} in the guest", share.target),
                    "give each a path of its own",
                ));
            }
        }
        Ok(())
    }

    /// The tag by which a guest finds share number `index`.
    pub fn tag(index: usize) -> String {
        format!("share{index}")
    }
}

/// What the guest's agent is told of a share: a word of the kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareMount {
    /// The device's tag.
    pub tag: String,
    /// Where to mount it.
    pub target: String,
    /// Mount it read-only.
    pub read_only: bool,
}

impl ShareMount {
    /// The name of the word: `viv.share=TAG:ro:PATH`, with percent signs for what would end the word.
    pub const PARAMETER: &'static str = "viv.share";

    /// Share number `index`.
    pub fn new(index: usize, share: &ShareSpec) -> ShareMount {
        ShareMount { tag: ShareSpec::tag(index), target: share.target.clone(), read_only: share.read_only }
    }

    /// As a word of the command line.
    pub fn to_word(&self) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        let mut word = format!("{}={}:{access}:", ShareMount::PARAMETER, self.tag);
        for byte in self.target.bytes() {
            match byte {
                b'/' | b'.' | b'_' | b'-' => word.push(byte.into()),
                _ if byte.is_ascii_alphanumeric() => word.push(byte.into()),
                _ => word.push_str(&format!("%{byte:02x}")),
            }
        }
        word
    }

    /// What stands behind `viv.share=`, if it is that.
    pub fn from_value(value: &str) -> Option<ShareMount> {
        let mut fields = value.splitn(3, ':');
        let (tag, access, target) = (fields.next()?, fields.next()?, fields.next()?);
        let mut bytes = Vec::new();
        let mut rest = target.bytes();
        while let Some(byte) = rest.next() {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            bytes.push(match byte {
                b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
                _ => byte,
            });
        }
        let target = String::from_utf8(bytes).ok()?;
        Some(ShareMount { tag: tag.to_string(), target, read_only: access == "ro" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_names_both_sides() {
        let share = |path: &str, target: &str, read_only| ShareSpec {
            path: path.into(),
            target: target.into(),
            read_only,
        };
        assert_eq!("/a:/b".parse(), Ok(share("/a", "/b", false)));
        assert_eq!("a b:/b/c:ro".parse(), Ok(share("a b", "/b/c", true)));
        assert_eq!("/odd:name:/b:rw".parse(), Ok(share("/odd:name", "/b", false)));
        for text in
            ["", "/a", "/a:", ":/b", "/a:b", "/a:ro", "/a:../b", "/a:/b/../c", "/a:/", "/a://.", "/a:/b\0"]
        {
            let fault = text.parse::<ShareSpec>().unwrap_err();
            assert_eq!(fault.kind, Kind::Usage, "{text}");
            assert!(fault.fix.contains("DIR:PATH"), "{fault}");
        }
    }

    #[test]
    fn no_two_shares_are_at_one_place() {
        let share: ShareSpec = "/a:/b".parse().unwrap();
        assert!(ShareSpec::check_all(&[share.clone(), "/a:/c".parse().unwrap()]).is_ok());
        assert!(ShareSpec::check_all(&[share.clone(), share.clone()]).is_err());
        let many: Vec<ShareSpec> = (0..17).map(|n| format!("/a:/b{n}").parse().unwrap()).collect();
        assert!(ShareSpec::check_all(&many[..16]).is_ok() && ShareSpec::check_all(&many).is_err());
    }

    #[test]
    fn the_guest_reads_what_the_host_writes() {
        for target in ["/data", "/a b/ü:x%\"'\n\\", "/x=y"] {
            let share = ShareSpec { path: "/".into(), target: target.into(), read_only: true };
            let mount = ShareMount::new(7, &share);
            let word = mount.to_word();
            assert!(!word.contains(|c: char| c.is_whitespace() || c == '"'), "{word}");
            let value = word.strip_prefix("viv.share=").unwrap();
            assert_eq!(ShareMount::from_value(value), Some(mount));
        }
        for value in ["", "share0", "share0:ro", "share0:ro:/%4", "share0:ro:/%xx", "share0:ro:/%ff"] {
            assert_eq!(ShareMount::from_value(value), None, "{value}");
        }
    }
}
