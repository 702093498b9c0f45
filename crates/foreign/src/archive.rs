//! Tar archives, plain or compressed: which members there are, and their contents one after the other. A member's name is compared with names
//! that descriptions give; no file is ever made by it, but the parts of a disk that name each other, and then by a plain name.
use crate::checksums::{Checksum, Sum};
use crate::fault::{damaged, failed, unsupported};
use crate::machine::shown;
use crate::source::{Watcher, unpacked};
use crate::xml::TEXT_MAX;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tar::{Entry, EntryType};
use viv_model::Fault;

/// Most members of an archive.
const MEMBERS_MAX: usize = 10_000;
/// Bytes of a record.
const RECORD: u64 = 512;
/// Most bytes behind the end of an archive that is compressed.
const TAIL_MAX: u64 = 64 << 20;
/// Bytes that are copied at once, and in which zeroes are looked for.
const PIECE: usize = 1 << 20;
const BLOCK: usize = 64 << 10;

/// An archive, looked through.
pub(crate) struct Archive {
    path: PathBuf,
    compressed: bool,
    /// Members and their sizes.
    members: BTreeMap<String, u64>,
    /// The contents of those that are descriptions.
    texts: BTreeMap<String, Vec<u8>>,
}

/// What is done with a member.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&str, u64, &mut dyn Read) -> Result<(), Fault>;

impl Archive {
    /// Looks through the archive at `path`.
    pub(crate) fn open(path: &Path, compressed: bool, watcher: Watcher<'_>) -> Result<Archive, Fault> {
        let mut archive =
            Archive { path: path.to_owned(), compressed, members: BTreeMap::new(), texts: BTreeMap::new() };
        let (mut members, mut texts) = (BTreeMap::new(), BTreeMap::new());
        archive.each(&mut |name, size, content| {
            watcher("looking through the archive", members.len() as u64, None)?;
            if is_text(name) && size <= TEXT_MAX {
                let mut text = Vec::new();
                content.read_to_end(&mut text).map_err(failed("read", path))?;
                if (text.len() as u64) < size {
                    return Err(cut(path));
                }
                texts.insert(name.to_string(), text);
            }
            match members.insert(name.to_string(), size) {
                None if members.len() <= MEMBERS_MAX => Ok(()),
                None => Err(damaged(path.display(), "it has too many members")),
                Some(_) => Err(damaged(path.display(), format!("it has {:?} twice", shown(name)))),
            }
        })?;
        (archive.members, archive.texts) = (members, texts);
        Ok(archive)
    }

    /// Whether it has a member of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// The names of its members.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// A member's bytes, if it is a description.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.texts.get(name).map(Vec::as_slice)
    }

    /// Goes through the members, in their order.
    pub(crate) fn each(&self, take: Take<'_>) -> Result<(), Fault> {
        if self.compressed {
            let mut content = unpacked(&self.path)?;
            let mut tar = tar::Archive::new(&mut content);
            let entries = tar.entries().map_err(self.broken())?;
            for entry in entries {
                let mut entry = entry.map_err(self.broken())?;
                self.one(&mut entry, take)?;
            }
            // The rest holds the checksum of all.
            let rest = io::copy(&mut content.by_ref().take(TAIL_MAX), &mut io::sink());
            return match rest.map_err(self.broken())? {
                TAIL_MAX => Err(damaged(self.path.display(), "it goes on behind its end")),
                _ => Ok(()),
            };
        }
        let file = File::open(&self.path).map_err(failed("read", &self.path))?;
        let len = file.metadata().map_err(failed("read", &self.path))?.len();
        let mut end = 0u64;
        let mut tar = tar::Archive::new(BufReader::new(&file));
        let entries = tar.entries_with_seek().map_err(self.broken())?;
        for entry in entries {
            let mut entry = entry.map_err(self.broken())?;
            let stored = entry.header().entry_size().map_err(self.broken())?;
            let after = stored.checked_next_multiple_of(RECORD);
            end = after.and_then(|bytes| entry.raw_file_position().checked_add(bytes)).unwrap_or(u64::MAX);
            if end > len {
                return Err(cut(&self.path));
            }
            self.one(&mut entry, take)?;
        }
        // A record of zeroes stands behind the last member (POSIX.1-2017, pax, "ustar Interchange Format").
        let mut mark = [1; RECORD as usize];
        let mut file = file;
        file.seek(SeekFrom::Start(end)).map_err(failed("read", &self.path))?;
        match file.read_exact(&mut mark) {
            Ok(()) if mark.iter().all(|byte| *byte == 0) => Ok(()),
            _ => Err(cut(&self.path)),
        }
    }

    fn broken(&self) -> impl Fn(io::Error) -> Fault + '_ {
        |error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut(&self.path),
            io::ErrorKind::PermissionDenied => failed("read", &self.path)(error),
            _ => damaged(self.path.display(), error),
        }
    }

    fn one<R: Read>(&self, entry: &mut Entry<'_, R>, take: Take<'_>) -> Result<(), Fault> {
        let what = self.path.display();
        let name = entry.path_bytes();
        let name = std::str::from_utf8(&name).map_err(|_| damaged(&what, "a member's name is no text"))?;
        let name = name.strip_prefix("./").unwrap_or(name).trim_end_matches('/').to_string();
        if name.starts_with('/') || name.contains('\0') || name.split('/').any(|part| part == "..") {
            return Err(damaged(&what, format!("its member {:?} would lie outside of it", shown(&name))));
        }
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {}
            EntryType::Directory | EntryType::XGlobalHeader => return Ok(()),
            EntryType::Link | EntryType::Symlink => {
                return Err(damaged(&what, format!("its member {:?} is a link", shown(&name))));
            }
            _ => return Err(damaged(&what, format!("its member {:?} is no file", shown(&name)))),
        }
        if name.contains("GNUSparseFile.") {
            let fix = "pack it again without --sparse, or with --format=gnu";
            return Err(unsupported(
                &what,
                format!("its member {:?} is a sparse file of pax", shown(&name)),
                fix,
            ));
        }
        let size = entry.size();
        take(&name, size, entry)
    }
}

fn cut(path: &Path) -> Fault {
    damaged(path.display(), "it is cut off")
}

/// Whether a member is a description, which is kept.
fn is_text(name: &str) -> bool {
    let end = name.rsplit(['.', '/']).next().unwrap_or_default().to_ascii_lowercase();
    matches!(end.as_str(), "ovf" | "mf" | "cert" | "json" | "vagrantfile" | "vmx")
}

/// Copies all of `content` to a new file, without its zeroes, comparing it with its checksum. It has `size` bytes if that is known, else at
/// most `limit`.
pub(crate) fn spill(
    content: &mut dyn Read,
    (name, size, limit): (&str, Option<u64>, u64),
    to: &Path,
    checksum: Option<&Checksum>,
    watcher: Watcher<'_>,
) -> Result<(), Fault> {
    let mut out = File::options().write(true).create_new(true).open(to).map_err(failed("write", to))?;
    let mut sum = checksum.map(Sum::new);
    let step = format!("unpacking {}", shown(name));
    let mut piece = vec![0; PIECE];
    let mut done = 0u64;
    loop {
        let mut filled = 0;
        while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let read = content.read(rest).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(shown(name), "it is cut off"),
                _ => damaged(shown(name), error),
            })?;
            if read == 0 {
                break;
            }
            filled += read;
        }
        let data = piece.get(..filled).unwrap_or_default();
        done = done.saturating_add(filled as u64);
        if done > size.unwrap_or(limit) {
            return Err(damaged(shown(name), "it is larger than it says"));
        }
        if let Some(sum) = &mut sum {
            sum.update(data);
        }
        for block in data.chunks(BLOCK) {
            let written = match block.iter().all(|byte| *byte == 0) {
                true => out.seek(SeekFrom::Current(block.len() as i64)).map(drop),
                false => out.write_all(block),
            };
            written.map_err(failed("write", to))?;
        }
        watcher(&step, done, size)?;
        if filled < PIECE {
            break;
        }
    }
    if size.is_some_and(|size| done < size) {
        return Err(damaged(shown(name), "it is cut off"));
    }
    out.set_len(done).map_err(failed("write", to))?;
    match sum.zip(checksum) {
        Some((sum, checksum)) => sum.check(checksum),
        None => Ok(()),
    }
}
