//! Entries of the Boot Loader Specification (UAPI.1), type 1: a file each, in `loader/entries`.
use crate::version;
use crate::volume::Volume;
use std::cmp::Ordering;

/// Most entries that are read.
const ENTRIES_MAX: usize = 256;
/// What they are called.
const SUFFIX: &str = ".conf";

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The file's name, without suffix and counters.
    pub(crate) id: String,
    pub(crate) title: String,
    version: String,
    sort_key: String,
    machine_id: String,
    pub(crate) linux: String,
    pub(crate) initrds: Vec<String>,
    pub(crate) options: String,
    /// Its counter says that it has failed too often.
    exhausted: bool,
}

impl Entry {
    /// Reads one; none if it has no kernel.
    pub(crate) fn parse(file_name: &str, text: &str) -> Option<Entry> {
        let name = file_name.strip_suffix(SUFFIX)?;
        let (id, tries) = name.rsplit_once('+').unwrap_or((name, ""));
        let left = tries.split('-').next().and_then(|left| left.parse::<u32>().ok());
        let (id, exhausted) = if left.is_some() { (id, left == Some(0)) } else { (name, false) };
        let mut entry = Entry { id: id.to_string(), exhausted, ..Entry::default() };
        for line in text.lines() {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "title" => entry.title = value.to_string(),
                "version" => entry.version = value.to_string(),
                "sort-key" => entry.sort_key = value.to_string(),
                "machine-id" => entry.machine_id = value.to_string(),
                "linux" => entry.linux = value.to_string(),
                // GRUB takes several in a line.
                "initrd" => entry.initrds.extend(value.split_ascii_whitespace().map(str::to_string)),
                "options" if entry.options.is_empty() => entry.options = value.to_string(),
                "options" => entry.options = format!("{} {value}", entry.options),
                _ => {}
            }
        }
        (!entry.linux.is_empty()).then_some(entry)
    }

    /// The order of the specification: what is to be booted rather is less.
    fn rank(&self, other: &Entry) -> Ordering {
        let keyed = |entry: &Entry| !entry.sort_key.is_empty();
        let by_key = || match (keyed(self), keyed(other)) {
            (true, true) => self
                .sort_key
                .cmp(&other.sort_key)
                .then_with(|| self.machine_id.cmp(&other.machine_id))
                .then_with(|| version::compare(&other.version, &self.version)),
            (mine, others) => others.cmp(&mine),
        };
        self.exhausted
            .cmp(&other.exhausted)
            .then_with(by_key)
            .then_with(|| version::compare(&other.id, &self.id))
    }
}

/// The entries in a directory, the one to be booted first.
pub(crate) fn entries(volume: &Volume, directory: &str) -> Vec<Entry> {
    let mut names = volume.names(directory);
    names.retain(|name| name.ends_with(SUFFIX) && !name.starts_with('.'));
    names.sort();
    let read = |name: &String| Entry::parse(name, &volume.text(&format!("{directory}/{name}")).ok()?);
    let mut entries: Vec<Entry> = names.iter().take(ENTRIES_MAX).filter_map(read).collect();
    entries.sort_by(Entry::rank);
    entries
}

/// Replaces GRUB's variables in the words of an entry.
pub(crate) fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let words = text.split_ascii_whitespace().map(|word| {
        let name = word.strip_prefix('$').map(|name| name.trim_matches(['{', '}']));
        name.map_or_else(|| word.to_string(), |name| value(name).unwrap_or_default())
    });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_fedora_is_understood() {
        let text = "title Fedora Linux (6.5.6) 39 (Cloud Edition)\nversion 6.5.6\nlinux /vmlinuz-6.5.6\ninitrd /initramfs-6.5.6.img $tuned_initrd\n\
                    options root=UUID=1 ro rootflags=subvol=root\noptions console=ttyS0,115200n8 $tuned_params\ngrub_users $grub_users\n";
        let entry = Entry::parse("abc-6.5.6.conf", text).unwrap();
        assert_eq!(entry.initrds, ["/initramfs-6.5.6.img", "$tuned_initrd"]);
        let options = expand(&entry.options, |_| None);
        assert_eq!(options, "root=UUID=1 ro rootflags=subvol=root console=ttyS0,115200n8");
        assert_eq!(
            expand("a $kernelopts ${x}", |name| (name == "kernelopts").then(|| "b c".into())),
            "a b c"
        );
    }

    #[test]
    fn the_newest_comes_first_and_one_that_has_failed_last() {
        let entry = |name: &str, text: &str| Entry::parse(name, &format!("linux /v\n{text}")).unwrap();
        let mut all = [
            entry("a-6.1.0-9.conf", ""),
            entry("a-6.1.0-13.conf", ""),
            entry("b+0-3.conf", "sort-key z\nversion 9"),
            entry("c+2-1.conf", "sort-key b\nversion 1"),
            entry("d.conf", "sort-key b\nversion 2"),
        ];
        all.sort_by(Entry::rank);
        let order: Vec<&str> = all.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(order, ["d", "c", "a-6.1.0-13", "a-6.1.0-9", "b"]);
        assert!(Entry::parse("x.conf", "title nothing").is_none());
        assert_eq!(Entry::parse("c+plus.conf", "linux /v").unwrap().id, "c+plus");
    }
}
