//! Users and groups, from the guest's own files: a static binary cannot ask the C library's plug-ins.
use crate::sys::Identity;
use std::fs;

/// A line of `/etc/passwd` and the groups that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl User {
    /// The user that needs no file.
    pub(crate) fn root() -> User {
        User {
            name: "root".into(),
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: "/root".into(),
            shell: "/bin/sh".into(),
        }
    }

    /// The user that `text` means: a name or a number, then perhaps `:` and a group's name or number.
    pub(crate) fn find(text: &str) -> Result<User, String> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        find_in(text, &passwd, &group)
    }

    /// As a child process sees it, starting in `cwd`.
    pub(crate) fn identity(&self, cwd: &str) -> Identity {
        Identity { uid: self.uid, gid: self.gid, groups: self.groups.clone(), cwd: cwd.to_string() }
    }
}

fn find_in(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (who, with) = match text.split_once(':') {
        Some((who, with)) => (who, Some(with)),
        None => (text, None),
    };
    let number = who.parse::<u32>().ok();
    let mut user = passwd
        .lines()
        .filter_map(parse_user)
        .find(|user| user.name == who || number == Some(user.uid))
        .or_else(|| {
            number.filter(|_| !who.is_empty()).map(|uid| User {
                name: who.to_string(),
                uid,
                gid: 0,
                home: "/".into(),
                ..User::root()
            })
        })
        .or_else(|| (who == "root").then(User::root))
        .ok_or_else(|| format!("the guest has no user {who:?}"))?;
    let groups: Vec<(&str, u32, &str)> = group.lines().filter_map(parse_group).collect();
    if let Some(with) = with {
        user.gid = groups
            .iter()
            .find(|(name, ..)| *name == with)
            .map(|(_, gid, _)| *gid)
            .or_else(|| with.parse().ok())
            .ok_or_else(|| format!("the guest has no group {with:?}"))?;
    }
    user.groups = vec![user.gid];
    if with.is_none() {
        let named =
            groups.iter().filter(|(.., members)| members.split(',').any(|member| member == user.name));
        user.groups.extend(named.map(|(_, gid, _)| *gid).filter(|gid| *gid != user.gid));
    }
    Ok(user)
}

/// `name:password:uid:gid:comment:home:shell` (passwd(5)).
fn parse_user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_string();
    let _password = fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let _comment = fields.next()?;
    let home = fields.next().filter(|home| !home.is_empty()).unwrap_or("/").to_string();
    let shell = fields.next().filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh").to_string();
    Some(User { name, uid, gid, groups: Vec::new(), home, shell })
}

/// `name:password:gid:members` (group(5)).
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let _password = fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\ndaemon:x:1:1::/usr/sbin:\nann:x:1000:1000::/home/ann:/bin/zsh\n";
    const GROUP: &str = "root:x:0:\ntty:x:5:ann\nann:x:1000:\nwheel:x:10:root,ann\n";

    #[test]
    fn a_user_has_its_own_groups() {
        let ann = find_in("ann", PASSWD, GROUP).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups), (1000, 1000, vec![1000, 5, 10]));
        assert_eq!(find_in("1000", PASSWD, GROUP).unwrap().name, "ann");
        assert_eq!(find_in("daemon", PASSWD, GROUP).unwrap().shell, "/bin/sh");
    }

    #[test]
    fn a_group_can_be_chosen() {
        let ann = find_in("ann:wheel", PASSWD, GROUP).unwrap();
        assert_eq!((ann.gid, ann.groups), (10, vec![10]));
        assert_eq!(find_in("7:8", PASSWD, GROUP).unwrap().groups, vec![8]);
    }

    #[test]
    fn nobody_is_invented() {
        assert!(find_in("bob", PASSWD, GROUP).unwrap_err().contains("bob"));
        assert!(find_in("ann:nope", PASSWD, GROUP).unwrap_err().contains("nope"));
        assert!(find_in("", PASSWD, GROUP).is_err());
        assert_eq!(find_in("root", "", "").unwrap(), User::root());
    }
}
