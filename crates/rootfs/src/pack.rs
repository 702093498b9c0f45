//! A layer as an archive again, for registries and other programs: the same layer gives the same bytes.
//!
//! Headers are ustar's; what these cannot say stands before them in pax records (POSIX.1-2017, pax), attributes as `SCHILY.xattr.`, files with
//! large holes as GNU's sparse files of version 1.0 (GNU tar manual, "Storing Sparse Files").
use crate::BLOCK;
use crate::fault::{damaged, reading, writing};
use crate::layer::{Attributes, Entry, Extent, Kind, Layer, OPAQUE, WHITEOUT};
use crate::path::{shown, split};
use crate::tar::{Mtime, Watcher};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Read, Seek, SeekFrom, Write};
use tar::{EntryType, Header};
use viv_model::Fault;

/// Bytes of a header, and what contents are padded to.
const RECORD: usize = 512;
/// Bytes of a name in a header.
const NAME_MAX: usize = 100;
/// Largest numbers of headers: 11 and 7 octal digits.
const LONG_MAX: u64 = 0o777_7777_7777;
const SHORT_MAX: u32 = 0o777_7777;
/// Holes together from which a file is stored without them: smaller ones cost little, and every program reads a plain file.
const HOLES_MIN: u64 = 1 << 20;
/// Bytes of a file that are read at once.
const PIECE: usize = 256 << 10;
/// How an attribute's record begins (star(1)).
const XATTR: &str = "SCHILY.xattr.";
/// The name of what has no meaningful name: programs use the records'.
const PLACEHOLDER: &[u8] = b"pax";

/// Writes `layer`, whose files' contents are in `data`, as an archive. `watcher` is told after each file, and each piece of one, how many bytes of
/// contents were written.
pub fn pack<D: Read + Seek>(
    layer: &Layer,
    data: &mut D,
    out: &mut dyn Write,
    watcher: Watcher<'_>,
) -> Result<(), Fault> {
    let mut pack = Pack { out, watcher, written: 0 };
    for entry in &layer.entries {
        pack.entry(entry, data)?;
    }
    // Two records of zeros are the end.
    pack.put(&[0; 2 * RECORD])
}

/// The same, compressed by gzip (RFC 1952), without a time or a name in its header.
pub fn pack_gzip<D: Read + Seek>(
    layer: &Layer,
    data: &mut D,
    archive: &mut dyn Write,
    out: impl Write,
    watcher: Watcher<'_>,
) -> Result<(), Fault> {
    let mut gzip = Tee { first: archive, second: GzEncoder::new(out, Compression::default()) };
    pack(layer, data, &mut gzip, watcher)?;
    gzip.second.finish().map_err(|error| writing("a layer", &error)).map(drop)
}

/// Writes everything twice.
struct Tee<'a, W> {
    first: &'a mut dyn Write,
    second: W,
}

impl<W: Write> Write for Tee<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.second.write(bytes)?;
        self.first.write_all(bytes.get(..written).unwrap_or_default())?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.second.flush()
    }
}

struct Pack<'a> {
    out: &'a mut dyn Write,
    watcher: Watcher<'a>,
    /// Bytes of contents.
    written: u64,
}

/// A header on its way.
struct Head {
    header: Header,
    pax: Vec<u8>,
}

impl Head {
    fn new(kind: EntryType, path: &[u8], attributes: &Attributes) -> Result<Head, Fault> {
        let mut head = Head { header: Header::new_ustar(), pax: Vec::new() };
        let header = &mut head.header;
        header.set_entry_type(kind);
        header.set_mode(u32::from(attributes.mode));
        header.set_uid(u64::from(attributes.uid.min(SHORT_MAX)));
        header.set_gid(u64::from(attributes.gid.min(SHORT_MAX)));
        header.set_size(0);
        let Mtime { seconds, nanoseconds } = attributes.mtime;
        let whole = u64::try_from(seconds).ok().filter(|seconds| *seconds <= LONG_MAX);
        header.set_mtime(whole.unwrap_or_default());
        head.name(path);
        for (key, id) in [("uid", attributes.uid), ("gid", attributes.gid)] {
            if id > SHORT_MAX {
                head.record(key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if whole.is_none() || nanoseconds > 0 {
            head.record(b"mtime", time(attributes.mtime).as_bytes());
        }
        for (name, value) in &attributes.xattrs {
            if name.contains(&b'=') {
                return Err(damaged(format!(
                    "{} has an extended attribute with an equals sign in its name, which archives cannot have",
                    shown(path)
                )));
            }
            head.record(&[XATTR.as_bytes(), name].concat(), value);
        }
        Ok(head)
    }

    /// The path, or what stands for it.
    fn name(&mut self, path: &[u8]) {
        let name = if path.len() <= NAME_MAX { path } else { PLACEHOLDER };
        if let Some(field) = self.header.as_ustar_mut().and_then(|ustar| ustar.name.get_mut(..name.len())) {
            field.copy_from_slice(name);
        }
        if path.len() > NAME_MAX {
            self.record(b"path", path);
        }
    }

    fn link(&mut self, target: &[u8]) {
        let name = if target.len() <= NAME_MAX { target } else { PLACEHOLDER };
        if let Some(field) = self.header.as_ustar_mut().and_then(|ustar| ustar.linkname.get_mut(..name.len()))
        {
            field.copy_from_slice(name);
        }
        if target.len() > NAME_MAX {
            self.record(b"linkpath", target);
        }
    }

    fn size(&mut self, size: u64) {
        self.header.set_size(size.min(LONG_MAX));
        if size > LONG_MAX {
            self.record(b"size", size.to_string().as_bytes());
        }
    }

    /// `LENGTH KEY=VALUE\n`, the length being that of all of it ("pax Extended Header").
    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.pax.extend_from_slice(length.to_string().as_bytes());
        for piece in [b" ", key, b"=", value, b"\n"] {
            self.pax.extend_from_slice(piece);
        }
    }
}

impl Pack<'_> {
    fn entry<D: Read + Seek>(&mut self, entry: &Entry, data: &mut D) -> Result<(), Fault> {
        let (parent, name) = split(&entry.path);
        let within = |parent: &[u8], name: &[u8]| match parent {
            b"" => name.to_vec(),
            parent => [parent, name].join(&b'/'),
        };
        let plain = Attributes::default();
        let path = match &entry.kind {
            Kind::Whiteout => within(parent, &[WHITEOUT, name].concat()),
            Kind::Opaque => within(&entry.path, OPAQUE),
            Kind::Directory if entry.path.is_empty() => b"./".to_vec(),
            Kind::Directory => [&entry.path[..], b"/"].concat(),
            _ => entry.path.clone(),
        };
        let (kind, attributes) = match &entry.kind {
            Kind::File { .. } => (EntryType::Regular, &entry.attributes),
            Kind::Whiteout | Kind::Opaque => (EntryType::Regular, &plain),
            Kind::Directory => (EntryType::Directory, &entry.attributes),
            Kind::Symlink(_) => (EntryType::Symlink, &entry.attributes),
            Kind::Hardlink(_) => (EntryType::Link, &plain),
            Kind::Device { block: true, .. } => (EntryType::Block, &entry.attributes),
            Kind::Device { block: false, .. } => (EntryType::Char, &entry.attributes),
            Kind::Fifo => (EntryType::Fifo, &entry.attributes),
        };
        let mut head = Head::new(kind, &path, attributes)?;
        match &entry.kind {
            Kind::File { size, extents } => return self.file(head, &path, *size, extents, data),
            Kind::Symlink(target) | Kind::Hardlink(target) => head.link(target),
            Kind::Device { major, minor, .. } => head
                .header
                .set_device_major(*major)
                .and_then(|()| head.header.set_device_minor(*minor))
                .map_err(damaged)?,
            _ => {}
        }
        self.head(head)?;
        (self.watcher)(self.written)
    }

    fn file<D: Read + Seek>(
        &mut self,
        mut head: Head,
        path: &[u8],
        size: u64,
        extents: &[Extent],
        data: &mut D,
    ) -> Result<(), Fault> {
        let block = BLOCK as u64;
        // Offset and length in the file, and where the content is.
        let mut pieces = Vec::new();
        for extent in extents {
            let from = extent.from.saturating_mul(block);
            let length = extent.blocks.saturating_mul(block).min(size.saturating_sub(from));
            pieces.push((from, length, extent.at.saturating_mul(block)));
        }
        let stored: u64 = pieces.iter().fold(0, |sum, (_, length, _)| sum.saturating_add(*length));
        let is_sparse = size.saturating_sub(stored) >= HOLES_MIN;
        let mut map = Vec::new();
        if is_sparse {
            // The map ends with the file's end.
            let numbers = pieces.iter().map(|(from, length, _)| (*from, *length)).chain([(size, 0)]);
            map = format!("{}\n", pieces.len() + 1).into_bytes();
            numbers.for_each(|(from, length)| map.extend(format!("{from}\n{length}\n").into_bytes()));
            map.resize(map.len().next_multiple_of(RECORD), 0);
            for (key, value) in [("major", "1"), ("minor", "0")] {
                head.record(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
            }
            head.record(b"GNU.sparse.name", path);
            head.record(b"GNU.sparse.realsize", size.to_string().as_bytes());
        }
        let in_archive = if is_sparse { stored.saturating_add(map.len() as u64) } else { size };
        head.size(in_archive);
        self.head(head)?;
        self.put(&map)?;
        let mut at = 0;
        for (from, length, place) in pieces {
            if !is_sparse {
                self.zeros(from.saturating_sub(at))?;
            }
            data.seek(SeekFrom::Start(place)).map_err(|error| reading(&error))?;
            self.content(data, length)?;
            at = from.saturating_add(length);
        }
        if !is_sparse {
            self.zeros(size.saturating_sub(at))?;
        }
        let padding = in_archive.wrapping_neg() % RECORD as u64;
        self.zeros(padding)?;
        (self.watcher)(self.written)
    }

    fn content<D: Read>(&mut self, data: &mut D, length: u64) -> Result<(), Fault> {
        let mut piece = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
        let mut left = length;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let bytes = piece.get_mut(..now).unwrap_or_default();
            data.read_exact(bytes).map_err(|error| reading(&error))?;
            self.out.write_all(bytes).map_err(|error| writing("a layer", &error))?;
            left -= now as u64;
            self.written = self.written.saturating_add(now as u64);
            (self.watcher)(self.written)?;
        }
        Ok(())
    }

    /// Writes the records of a header, and the header.
    fn head(&mut self, mut head: Head) -> Result<(), Fault> {
        if !head.pax.is_empty() {
            let none = Attributes { mode: 0o644, ..Attributes::default() };
            let mut records = Head::new(EntryType::XHeader, PLACEHOLDER, &none)?;
            records.header.set_size(head.pax.len() as u64);
            records.header.set_cksum();
            self.put(records.header.as_bytes())?;
            self.put(&head.pax)?;
            self.zeros((head.pax.len() as u64).wrapping_neg() % RECORD as u64)?;
        }
        head.header.set_cksum();
        self.put(head.header.as_bytes())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.out.write_all(bytes).map_err(|error| writing("a layer", &error))
    }

    fn zeros(&mut self, count: u64) -> Result<(), Fault> {
        io::copy(&mut io::repeat(0).take(count), self.out)
            .map(drop)
            .map_err(|error| writing("a layer", &error))
    }
}

/// Seconds since 1970 with a fraction; before it, digits count downwards ("pax Header File Times").
fn time(Mtime { seconds, nanoseconds }: Mtime) -> String {
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000u32.saturating_sub(nanoseconds)),
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_pax_wants_them() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (1_234_567_890, 123_456_789, "1234567890.123456789"),
            (5, 500_000_000, "5.5"),
            (-1, 500_000_000, "-0.5"),
            (-86_400, 500_000_000, "-86399.5"),
            (-7, 0, "-7"),
            (100, 0, "100"),
        ] {
            assert_eq!(time(Mtime { seconds, nanoseconds }), text);
        }
    }

    #[test]
    fn a_records_length_counts_itself() {
        let mut head = Head { header: Header::new_ustar(), pax: Vec::new() };
        head.record(b"k", &[b'v'; 4]);
        assert_eq!(head.pax, b"9 k=vvvv\n");
        head.pax.clear();
        head.record(b"k", &[b'v'; 5]);
        assert_eq!(head.pax, b"11 k=vvvvv\n");
        head.pax.clear();
        head.record(b"k", &[b'v'; 93]);
        assert_eq!(head.pax.len(), 100 - 1);
        head.pax.clear();
        head.record(b"k", &[b'v'; 94]);
        assert!(head.pax.starts_with(b"101 ") && head.pax.len() == 101);
    }
}
