//! A directory of the host that a guest may use, and how the guest learns of it.
use crate::{Fault, Kind};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Most directories that one machine shares.
pub const SHARES_MAX: usize = 16;

/// One shared directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The tag by which the guest finds it; none: [`ShareSpec::tag_of`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// Most bytes of a tag (Virtio 1.3 §5.11.4).
const TAG_LEN: usize = 36;

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
        let share = ShareSpec::parse(text)?;
        share.check()?;
        Ok(share)
    }
}

impl ShareSpec {
    /// The same for a program, which knows a directory by any name: `.` and `/` too.
    pub fn of_program(text: &str) -> Result<ShareSpec, Fault> {
        let share = ShareSpec::parse(text)?;
        share.check_in_program()?;
        Ok(share)
    }

    fn parse(text: &str) -> Result<ShareSpec, Fault> {
        let (names, read_only) = match text.rsplit_once(':') {
            Some((names, "ro")) => (names, true),
            Some((names, "rw")) => (names, false),
            _ => (text, false),
        };
        let Some((path, target)) = names.rsplit_once(':').filter(|(path, _)| !path.is_empty()) else {
            return Err(wrong(format!("{text:?} does not name a directory here and a path in the guest")));
        };
        Ok(ShareSpec { path: path.into(), target: target.to_string(), read_only, tag: None })
    }

    fn check_in_program(&self) -> Result<(), Fault> {
        match self.target.is_empty() || self.target.contains('\0') {
            true => Err(wrong(format!("a program cannot know a directory as {:?}", self.target))),
            false => Ok(()),
        }
    }

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
        let fits = |tag: &String| {
            let signs = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            (1..=TAG_LEN).contains(&tag.len()) && signs
        };
        if let Some(tag) = self.tag.as_ref().filter(|tag| !fits(tag)) {
            return Err(Fault::new(
                Kind::Usage,
                format!("a directory's tag cannot be {tag:?}"),
                format!("use 1 to {TAG_LEN} letters, digits, '-', '_' and '.'"),
            ));
        }
        Ok(())
    }

    /// Checks all shares of a machine.
    pub fn check_all(shares: &[ShareSpec]) -> Result<(), Fault> {
        shares.iter().try_for_each(ShareSpec::check)?;
        ShareSpec::check_together(shares)
    }

    /// Checks all shares of a program.
    pub fn check_all_of_program(shares: &[ShareSpec]) -> Result<(), Fault> {
        shares.iter().try_for_each(ShareSpec::check_in_program)?;
        ShareSpec::check_together(shares)
    }

    fn check_together(shares: &[ShareSpec]) -> Result<(), Fault> {
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
            let tag = share.tag_of(at);
            if shares.iter().enumerate().take(at).any(|(at, other)| other.tag_of(at) == tag) {
                return Err(Fault::new(
                    Kind::Usage,
                    format!("two directories cannot both have the tag {tag:?}"),
                    "give each a tag of its own, or none",
                ));
            }
        }
        Ok(())
    }

    /// Its tag as share `index` of its machine.
    pub fn tag_of(&self, index: usize) -> String {
        self.tag.clone().unwrap_or_else(|| format!("share{index}"))
    }

    /// Gives each share the tag that it has by its place now, so that it keeps it in another one.
    pub fn keep_tags(shares: &mut [ShareSpec]) {
        for (index, share) in shares.iter_mut().enumerate() {
            share.tag = Some(share.tag_of(index));
        }
    }

    /// The first tag of the usual kind that none of these has.
    pub fn free_tag(shares: &[ShareSpec]) -> String {
        let taken: Vec<String> =
            shares.iter().enumerate().map(|(index, share)| share.tag_of(index)).collect();
        let mut all = (0..).map(|number| format!("share{number}"));
        all.find(|tag| !taken.contains(tag)).unwrap_or_default()
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
        ShareMount { tag: share.tag_of(index), target: share.target.clone(), read_only: share.read_only }
    }

    /// Whether a kernel's command line has the guest mount the share with this tag.
    pub fn is_on(line: &str, tag: &str) -> bool {
        line.split(' ').any(|word| ShareMount::is_of(word, tag))
    }

    /// A kernel's command line without the share with this tag.
    pub fn taken_off(line: &str, tag: &str) -> String {
        let rest: Vec<&str> = line.split(' ').filter(|word| !ShareMount::is_of(word, tag)).collect();
        rest.join(" ")
    }

    fn is_of(word: &str, tag: &str) -> bool {
        let value = word.strip_prefix(ShareMount::PARAMETER).and_then(|rest| rest.strip_prefix('='));
        value.and_then(ShareMount::from_value).is_some_and(|mount| mount.tag == tag)
    }

    /// As a word of the command line.
    pub fn to_word(&self) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        format!("{}={}:{access}:{}", ShareMount::PARAMETER, self.tag, escaped(&self.target))
    }

    /// What stands behind `viv.share=`, if it is that.
    pub fn from_value(value: &str) -> Option<ShareMount> {
        let mut fields = value.splitn(3, ':');
        let (tag, access, target) = (fields.next()?, fields.next()?, fields.next()?);
        Some(ShareMount { tag: tag.to_string(), target: plain(target)?, read_only: access == "ro" })
    }
}

/// A path in a word of the kernel's command line: with percent signs for what would end the word.
pub(crate) fn escaped(path: &str) -> String {
    let mut word = String::new();
    for byte in path.bytes() {
        match byte {
            b'/' | b'.' | b'_' | b'-' => word.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => word.push(byte.into()),
            _ => word.push_str(&format!("%{byte:02x}")),
        }
    }
    word
}

/// What was [`escaped`].
pub(crate) fn plain(word: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = word.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok()
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
            tag: None,
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
    fn a_program_knows_a_directory_by_any_name() {
        for (text, target) in [("/a:.", "."), ("/a:/", "/"), ("/a:data:ro", "data")] {
            assert_eq!(ShareSpec::of_program(text).unwrap().target, target);
            assert!(text.parse::<ShareSpec>().is_err());
        }
        assert!(ShareSpec::of_program("/a:").is_err() && ShareSpec::of_program("/a").is_err());
        let same = [ShareSpec::of_program("/a:.").unwrap(), ShareSpec::of_program("/b:.").unwrap()];
        assert!(ShareSpec::check_all_of_program(&same).is_err());
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
    fn tags_stay_when_places_change() {
        let mut shares: Vec<ShareSpec> = ["/a:/a", "/b:/b", "/c:/c"].map(|text| text.parse().unwrap()).into();
        ShareSpec::keep_tags(&mut shares);
        shares.remove(1);
        assert_eq!(ShareSpec::free_tag(&shares), "share1");
        shares.push(ShareSpec { tag: None, ..shares[0].clone() });
        assert_eq!(shares[1].tag_of(1), "share2");
        shares[2].target = "/d".into();
        assert_eq!(ShareSpec::check_all(&shares).unwrap_err().kind, Kind::Usage, "share2 twice");
        for tag in ["", "a:b", "a b", &"x".repeat(37)] {
            assert!(ShareSpec { tag: Some(tag.into()), ..shares[0].clone() }.check().is_err(), "{tag}");
        }
    }

    #[test]
    fn a_share_goes_on_a_command_line_and_off_again() {
        let mounts: Vec<ShareMount> =
            (0..2).map(|index| ShareMount::new(index, &"/a:/b c".parse().unwrap())).collect();
        let line = format!("quiet  x=\"a b\" {} {} rw", mounts[0].to_word(), mounts[1].to_word());
        assert!(ShareMount::is_on(&line, "share0") && ShareMount::is_on(&line, "share1"));
        let without = ShareMount::taken_off(&line, "share0");
        assert_eq!(without, format!("quiet  x=\"a b\" {} rw", mounts[1].to_word()));
        assert!(!ShareMount::is_on(&without, "share0") && !ShareMount::is_on(&without, "share"));
    }

    #[test]
    fn the_guest_reads_what_the_host_writes() {
        for target in ["/data", "/a b/ü:x%\"'\n\\", "/x=y"] {
            let share = ShareSpec { path: "/".into(), target: target.into(), read_only: true, tag: None };
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
