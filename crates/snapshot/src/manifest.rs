//! The manifest: what a snapshot is, and the checksums of all that it has.

use crate::{
    GoOn, IMAGE_PART, INITRD, KERNEL, MEMORY, PROGRAM, SEED, SEED_SETTINGS, STATE, SnapshotError, content,
    disk_file,
};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use viv_model::{DiskContent, Manifest, Plain, Section};

/// The manifest's file: one line of JSON, then `blake3 ` and the checksum of that line without its end.
pub const MANIFEST: &str = "manifest";
/// What a manifest will say, for who goes on from a snapshot that is not there yet for others.
pub const DRAFT: &str = "manifest.draft";
/// The format of what has no layers, which the oldest releases read.
pub const FORMAT_WHOLE: u32 = 1;
/// The format of what has layers below it.
pub const FORMAT_LAYERS: u32 = 2;
/// The format of a program.
pub const FORMAT_PROGRAM: u32 = 3;
/// The format of what says what was asked of the VM: the newest.
pub const FORMAT_ASKED: u32 = 4;
/// Most bytes of a manifest: a machine has some hundred bytes for each of its disks.
const MANIFEST_MAX: u64 = 1 << 20;
/// Most bytes of a section.
pub const SECTION_MAX: u64 = 64 << 20;

/// The file called `name` in `dir`, as it is now.
pub fn plain(dir: &Path, name: &str) -> Result<Plain, SnapshotError> {
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(SnapshotError::io("read", &path))?;
    Ok(Plain { name: name.to_string(), checksum: blake3::hash(&bytes).to_hex().to_string() })
}

/// Writes a section at `offset`.
pub fn write_section(
    file: &File,
    name: &str,
    version: u32,
    offset: u64,
    bytes: &[u8],
) -> io::Result<Section> {
    file.write_all_at(bytes, offset)?;
    Ok(Section {
        name: name.to_string(),
        version,
        offset,
        len: bytes.len() as u64,
        checksum: blake3::hash(bytes).to_hex().to_string(),
    })
}

fn read_checked(dir: &Path, section: &Section) -> Result<Vec<u8>, SnapshotError> {
    let path = dir.join(STATE);
    let damaged = |what: &str| SnapshotError::damaged(&path, format!("section {:?} {what}", section.name));
    let file = File::open(&path).map_err(SnapshotError::io("open", &path))?;
    if section.len > SECTION_MAX {
        return Err(damaged("is larger than any"));
    }
    let mut bytes = vec![0; section.len as usize];
    file.read_exact_at(&mut bytes, section.offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("is cut off"),
        _ => SnapshotError::io("read", &path)(error),
    })?;
    if blake3::hash(&bytes).to_hex().as_str() != section.checksum {
        return Err(damaged(&format!("at offset {} is not what was written", section.offset)));
    }
    Ok(bytes)
}

/// The bytes of the sections that are called so and have this version, each once and in this order. There may be no others.
pub fn read_sections(
    dir: &Path,
    manifest: &Manifest,
    known: &[(&str, u32)],
) -> Result<Vec<Vec<u8>>, SnapshotError> {
    read_named(dir, &manifest.sections, known)
}

fn read_named(
    dir: &Path,
    sections: &[Section],
    known: &[(&str, u32)],
) -> Result<Vec<Vec<u8>>, SnapshotError> {
    let path = dir.join(STATE);
    let mut found: HashMap<&str, &Section> = HashMap::new();
    for section in sections {
        // Something that the machine needs is in it: it must not be left out.
        if !known.contains(&(section.name.as_str(), section.version)) {
            let what = format!("section {:?} of version {} is unknown", section.name, section.version);
            return Err(SnapshotError::damaged(&path, what));
        }
        if found.insert(&section.name, section).is_some() {
            return Err(SnapshotError::damaged(&path, format!("section {:?} is there twice", section.name)));
        }
    }
    let read = |(name, _): &(&str, u32)| {
        let missing = || SnapshotError::damaged(&path, format!("section {name:?} is missing"));
        read_checked(dir, found.get(name).ok_or_else(missing)?)
    };
    known.iter().map(read).collect()
}

/// The bytes of the only section, which is called so and has this version.
pub fn read_section(
    dir: &Path,
    manifest: &Manifest,
    name: &str,
    version: u32,
) -> Result<Vec<u8>, SnapshotError> {
    Ok(read_sections(dir, manifest, &[(name, version)])?.pop().unwrap_or_default())
}

/// Reads the manifest of the snapshot in `dir`.
pub fn read_manifest(dir: &Path) -> Result<Manifest, SnapshotError> {
    let path = dir.join(MANIFEST);
    let mut text = String::new();
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SnapshotError::None { path: dir.to_owned() },
        _ => SnapshotError::io("open", &path)(error),
    })?;
    file.take(MANIFEST_MAX).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => SnapshotError::damaged(&path, "it is no text"),
        _ => SnapshotError::io("read", &path)(error),
    })?;
    let (json, rest) = text.split_once('\n').ok_or_else(|| SnapshotError::damaged(&path, "it is cut off"))?;
    let sum = rest.strip_prefix("blake3 ").and_then(|rest| rest.strip_suffix('\n'));
    if sum != Some(blake3::hash(json.as_bytes()).to_hex().as_str()) {
        return Err(SnapshotError::damaged(&path, "its checksum is not that of its text"));
    }
    /// What every format has.
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let head: Head = serde_json::from_str(json)
        .map_err(|error| SnapshotError::damaged(&path, format!("it does not say its format: {error}")))?;
    if head.format > FORMAT_ASKED {
        return Err(SnapshotError::Newer { path: dir.to_owned(), format: head.format, newest: FORMAT_ASKED });
    }
    let manifest: Manifest = serde_json::from_str(json)
        .map_err(|error| SnapshotError::damaged(&path, format!("it is not understood: {error}")))?;
    // It may come from a stranger: it names no file outside its directory.
    match manifest.files.iter().find(|file| !is_plain_file(&file.name)) {
        Some(file) => Err(SnapshotError::damaged(&path, format!("no snapshot has a file {:?}", file.name))),
        None => Ok(manifest),
    }
}

/// Whether a snapshot may have a file of this name beside its contents.
fn is_plain_file(name: &str) -> bool {
    let is_part = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
    [KERNEL, INITRD, PROGRAM, SEED, SEED_SETTINGS].contains(&name)
        || name.strip_prefix(IMAGE_PART).is_some_and(is_part)
}

/// Writes the manifest: with it, the snapshot is there. If it is to outlive the host, all else must be on the disk by then.
pub fn write_manifest(manifest: &Manifest, dir: &Path, outlives_host: bool) -> Result<(), SnapshotError> {
    let path = dir.join(MANIFEST);
    let beside = dir.join("manifest.new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(text(manifest).as_bytes())?;
        if outlives_host {
            file.sync_all()?;
        }
        std::fs::rename(&beside, &path)?;
        if outlives_host { File::open(dir)?.sync_all() } else { Ok(()) }
    };
    write().map_err(SnapshotError::io("write", &path))
}

/// Writes a [`DRAFT`].
pub fn draft_manifest(manifest: &Manifest, dir: &Path) -> Result<(), SnapshotError> {
    let path = dir.join(DRAFT);
    std::fs::write(&path, text(manifest)).map_err(SnapshotError::io("write", &path))
}

fn text(manifest: &Manifest) -> String {
    let json = serde_json::to_string(manifest).unwrap_or_default();
    format!("{json}\nblake3 {}\n", blake3::hash(json.as_bytes()).to_hex())
}

/// Reads all of the snapshot and says what is not what was written; `go_on` hears of the bytes of its memory and its disks.
pub fn verify(manifest: &Manifest, dir: &Path, go_on: GoOn<'_>) -> Result<(), SnapshotError> {
    for file in &manifest.files {
        if plain(dir, &file.name)? != *file {
            return Err(SnapshotError::damaged(&dir.join(&file.name), "it is not what was written"));
        }
    }
    manifest.disks.iter().try_for_each(|disk| verify_disk(dir, disk, go_on))?;
    for section in &manifest.sections {
        read_checked(dir, section)?;
    }
    open_memory(manifest, dir)?.verify(go_on)
}

/// Reads a disk, likewise.
pub fn verify_disk(dir: &Path, disk: &DiskContent, go_on: GoOn<'_>) -> Result<(), SnapshotError> {
    content::Checked::open(&dir.join(disk_file(disk.index)), &disk.content)?.verify(go_on)
}

/// Its memory, to be compared with what was written as it is used.
pub fn open_memory(manifest: &Manifest, dir: &Path) -> Result<content::Checked, SnapshotError> {
    content::Checked::open(&dir.join(MEMORY), &manifest.memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_known_whole_and_there_once() {
        let dir = std::env::temp_dir().join(format!("viv-sections-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = File::create(dir.join(STATE)).unwrap();
        let one = write_section(&file, "one", 1, 0, b"first").unwrap();
        let two = write_section(&file, "two", 3, one.len, b"second").unwrap();
        let read = |sections: &[&Section], known: &[(&str, u32)]| {
            let sections: Vec<Section> = sections.iter().map(|section| (*section).clone()).collect();
            read_named(&dir, &sections, known).map_err(|error| error.to_string())
        };
        let both = [("two", 3), ("one", 1)];
        assert_eq!(read(&[&one, &two], &both).unwrap(), [b"second".to_vec(), b"first".to_vec()]);
        let why = |sections: &[&Section], known: &[(&str, u32)]| read(sections, known).unwrap_err();
        assert!(why(&[&one, &two], &[("one", 1)]).contains("\"two\" of version 3 is unknown"));
        assert!(why(&[&one, &two], &[("one", 1), ("two", 2)]).contains("unknown"));
        assert!(why(&[&one], &both).contains("\"two\" is missing"));
        assert!(why(&[&one, &two, &one], &both).contains("\"one\" is there twice"));
        file.write_all_at(b"S", one.len).unwrap();
        assert!(why(&[&one, &two], &both).contains("section \"two\" at offset 5"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_snapshot_names_no_file_outside_its_directory() {
        for name in ["kernel", "initrd", "program", "image.vmdk", "image.tree", "image.layer12"] {
            assert!(is_plain_file(name), "{name}");
        }
        for name in
            ["", "image.", "image./x", "image.../x", "../x", "/etc/passwd", "kernel/x", "state", "memory"]
        {
            assert!(!is_plain_file(name), "{name}");
        }
    }
}
