//! dpkg's database as dpkg itself would leave it: packages with a script to configure them are "unpacked", those
//! without one are "installed", because there is nothing left to do for them.
use super::tree::Tree;
use crate::images::apt::{Stanza, stanzas};
use crate::images::deb::Deb;
use crate::images::fault::broken;
use crate::images::store::hex;
use crate::images::tar::Kind;
use md5::{Digest, Md5};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use viv_model::Fault;

/// Where it is.
const PLACE: &str = "var/lib/dpkg";
/// Most bytes of a control member.
const CONTROL_LEN_MAX: u64 = 16 << 20;

/// What is written at the end.
#[derive(Debug, Default)]
pub(super) struct Database {
    status: String,
    /// `path package` lines (dpkg's triggers/File).
    file_triggers: String,
    /// By name: packages (dpkg's triggers/NAME).
    triggers: BTreeMap<String, String>,
    /// Packages that are left to configure.
    pub(super) unpacked: u64,
}

impl Database {
    /// Unpacks a package into `tree` and notes it.
    pub(super) fn unpack(&mut self, deb: &Path, tree: &mut Tree) -> Result<(), Fault> {
        let deb = Deb::new(deb);
        let name = deb.name();
        let damaged = |error: std::io::Error| broken(&name, error);
        let mut members: Vec<(String, u32, Vec<u8>)> = Vec::new();
        let mut control = deb.control()?;
        while let Some(entry) = control.next().map_err(damaged)? {
            if entry.kind != Kind::File || entry.path.contains('/') {
                continue;
            }
            if entry.size > CONTROL_LEN_MAX {
                return Err(broken(&name, format_args!("{} is too long", entry.path)));
            }
            let mut bytes = Vec::new();
            control.read_to_end(&mut bytes).map_err(damaged)?;
            members.push((entry.path, entry.mode, bytes));
        }
        let text = |wanted: &str| {
            let found = members.iter().find(|(name, ..)| name == wanted);
            found.map(|(_, _, bytes)| String::from_utf8_lossy(bytes).into_owned())
        };
        let control = text("control").ok_or_else(|| broken(&name, "it has no control file"))?;
        let stanza = stanzas(&control).into_iter().next().unwrap_or_default();
        let package = Name::of(&stanza).ok_or_else(|| broken(&name, "its control file names no package"))?;

        let mut list = String::from("/.\n");
        let mut data = deb.data()?;
        while let Some(entry) = data.next().map_err(damaged)? {
            if !entry.path.is_empty() {
                list.push_str(&format!("/{}\n", entry.path));
            }
            tree.add(&name, &entry, &mut data)?;
        }
        tree.write(&format!("{PLACE}/info/{}.list", package.info), 0o644, list.as_bytes())?;
        for (member, mode, bytes) in &members {
            if member != "control" {
                tree.write(&format!("{PLACE}/info/{}.{member}", package.info), *mode, bytes)?;
            }
        }
        let conffiles = conffiles(&text("conffiles").unwrap_or_default(), tree);
        let is_unpacked = members.iter().any(|(name, ..)| name == "postinst");
        self.unpacked += u64::from(is_unpacked);
        let state = if is_unpacked { "unpacked" } else { "installed" };
        self.status.push_str(&status(&control, state, &conffiles));
        self.note_triggers(&text("triggers").unwrap_or_default(), &package);
        Ok(())
    }

    /// Interests in triggers, as dpkg files them (deb-triggers(5)).
    fn note_triggers(&mut self, text: &str, package: &Name) {
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else { continue };
            let who = match directive {
                "interest" | "interest-await" => package.trigger.clone(),
                "interest-noawait" => format!("{}/noawait", package.trigger),
                _ => continue,
            };
            if trigger.starts_with('/') {
                self.file_triggers.push_str(&format!("{trigger} {who}\n"));
            } else if !trigger.contains('/') {
                self.triggers.entry(trigger.to_string()).or_default().push_str(&format!("{who}\n"));
            }
        }
    }

    /// Writes what is about all packages.
    pub(super) fn write(&self, tree: &mut Tree) -> Result<(), Fault> {
        tree.write(&format!("{PLACE}/status"), 0o644, self.status.as_bytes())?;
        tree.write(&format!("{PLACE}/available"), 0o644, b"")?;
        tree.write(&format!("{PLACE}/diversions"), 0o644, b"")?;
        tree.write(&format!("{PLACE}/statoverride"), 0o644, b"")?;
        // Version 1: names of packages that may be there twice carry their architecture.
        tree.write(&format!("{PLACE}/info/format"), 0o644, b"1\n")?;
        tree.write(&format!("{PLACE}/triggers/File"), 0o644, self.file_triggers.as_bytes())?;
        tree.write(&format!("{PLACE}/triggers/Unincorp"), 0o644, b"")?;
        for (name, packages) in &self.triggers {
            tree.write(&format!("{PLACE}/triggers/{name}"), 0o644, packages.as_bytes())?;
        }
        Ok(())
    }
}

/// A package as dpkg's files name it.
struct Name {
    /// In `info/`.
    info: String,
    /// In `triggers/`.
    trigger: String,
}

impl Name {
    fn of(stanza: &Stanza) -> Option<Name> {
        let name = stanza.get("Package").filter(|name| !name.is_empty() && !name.contains('/'))?;
        let architecture = stanza.get("Architecture").filter(|name| !name.contains('/'))?;
        let full = match stanza.get("Multi-Arch").map(String::as_str) {
            Some("same") => format!("{name}:{architecture}"),
            _ => name.clone(),
        };
        Some(Name { info: full.clone(), trigger: full })
    }
}

/// Path and MD5 sum of each configuration file, as after its installation.
fn conffiles(text: &str, tree: &mut Tree) -> Vec<String> {
    // A flag before the path: a file that this version no longer has.
    let paths = text.lines().map(str::trim).filter(|line| line.starts_with('/'));
    paths
        .filter_map(|path| {
            let content = tree.read(path.trim_start_matches('/'))?;
            Some(format!(" {path} {}\n", hex(&Md5::digest(&content))))
        })
        .collect()
}

/// The stanza of dpkg's status file.
fn status(control: &str, state: &str, conffiles: &[String]) -> String {
    let mut text = String::new();
    for line in control.lines().filter(|line| !line.trim().is_empty()) {
        text.push_str(line);
        text.push('\n');
        if line.starts_with("Package:") {
            text.push_str(&format!("Status: install ok {state}\n"));
        }
    }
    if !conffiles.is_empty() {
        text.push_str("Conffiles:\n");
        text.push_str(&conffiles.concat());
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_noted_with_its_state() {
        let control = "Package: a\nVersion: 1\nDescription: x\n y\n";
        let text = status(control, "unpacked", &[" /etc/a d41d8cd98f00b204e9800998ecf8427e\n".into()]);
        assert_eq!(
            text,
            "Package: a\nStatus: install ok unpacked\nVersion: 1\nDescription: x\n y\nConffiles:\n /etc/a d41d8cd98f00b204e9800998ecf8427e\n\n"
        );
    }

    #[test]
    fn triggers_are_filed_by_path_and_by_name() {
        let mut database = Database::default();
        let stanza = stanzas("Package: libc-bin\nArchitecture: amd64\n").remove(0);
        let name = Name::of(&stanza).unwrap();
        database.note_triggers(
            "# x\ninterest-await ldconfig\ninterest-noawait /etc/x\nactivate y\ninterest ../z\n",
            &name,
        );
        assert_eq!(database.triggers, BTreeMap::from([("ldconfig".to_string(), "libc-bin\n".to_string())]));
        assert_eq!(database.file_triggers, "/etc/x libc-bin/noawait\n");
        let stanza = stanzas("Package: libc6\nArchitecture: amd64\nMulti-Arch: same\n").remove(0);
        assert_eq!(Name::of(&stanza).unwrap().info, "libc6:amd64");
    }
}
