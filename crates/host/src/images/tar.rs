//! Reads tar archives as packages have them: ustar (POSIX.1-1988), GNU long names, pax records for paths.
use std::io::{self, Read};

/// Bytes of a header and of a record's padding.
const BLOCK: usize = 512;
/// Longest path, link target or pax header that we hold, bytes.
const NAME_LEN_MAX: u64 = 64 * 1024;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink(String),
    /// To a path of the same archive.
    Hardlink(String),
    /// Devices and pipes: no package of ours has them.
    Other(u8),
}

/// One entry; its content follows in the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Without leading `./` or `/`, without `..`; empty for the root.
    pub(super) path: String,
    pub(super) kind: Kind,
    /// Permission bits with set-ID and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: u64,
    /// Bytes of content.
    pub(super) size: u64,
}

/// An archive, read from its beginning to its end.
pub(super) struct Archive<R> {
    source: R,
    /// Bytes of the present entry's content that were not read, and of its padding.
    left: u64,
    padding: u64,
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("tar archive: {why}"))
}

impl<R: Read> Archive<R> {
    pub(super) fn new(source: R) -> Archive<R> {
        Archive { source, left: 0, padding: 0 }
    }

    /// The next entry, or the archive's end.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let (mut long_path, mut long_link, mut pax_size) = (None, None, None);
        loop {
            self.skip()?;
            let mut header = [0; BLOCK];
            match self.source.read_exact(&mut header) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                other => other?,
            }
            if header.iter().all(|byte| *byte == 0) {
                // One block of zeros is the end for everybody but the standard, which wants two.
                return Ok(None);
            }
            check_sum(&header)?;
            let field = |from: usize, length: usize| header.get(from..from + length).unwrap_or_default();
            let size = pax_size.take().map_or_else(|| number(field(124, 12)), Ok)?;
            self.left = size;
            self.padding = size.wrapping_neg() % BLOCK as u64;
            match header[156] {
                b'L' => long_path = Some(self.text(size)?),
                b'K' => long_link = Some(self.text(size)?),
                b'x' => {
                    let records = self.bytes(size)?;
                    for (name, value) in pax_records(&records) {
                        match name {
                            "path" => long_path = Some(value.to_string()),
                            "linkpath" => long_link = Some(value.to_string()),
                            "size" => pax_size = value.parse().ok(),
                            _ => {}
                        }
                    }
                }
                b'g' => {}
                kind => {
                    let name = text(field(0, 100));
                    let prefix =
                        if field(257, 6) == b"ustar\0" { text(field(345, 155)) } else { String::new() };
                    let short = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                    let target = long_link.take().unwrap_or_else(|| text(field(157, 100)));
                    let path = long_path.take().unwrap_or(short);
                    let kind = match kind {
                        b'0' | 0 | b'7' if path.ends_with('/') => Kind::Directory,
                        b'0' | 0 | b'7' => Kind::File,
                        b'1' => Kind::Hardlink(clean(&target)?),
                        b'2' => Kind::Symlink(target),
                        b'5' => Kind::Directory,
                        other => Kind::Other(other),
                    };
                    return Ok(Some(Entry {
                        path: clean(&path)?,
                        kind,
                        mode: number(field(100, 8))? as u32 & 0o7777,
                        uid: number(field(108, 8))? as u32,
                        gid: number(field(116, 8))? as u32,
                        mtime: number(field(136, 12))?,
                        size,
                    }));
                }
            }
        }
    }

    /// Skips what is left of the present entry.
    fn skip(&mut self) -> io::Result<()> {
        // No archive has so many bytes: then it ends inside the entry.
        let wanted = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut self.source.by_ref().take(wanted), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped < wanted { Err(bad("it ends inside an entry")) } else { Ok(()) }
    }

    fn bytes(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > NAME_LEN_MAX {
            return Err(bad("a name without end"));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self, size: u64) -> io::Result<String> {
        Ok(text(&self.bytes(size)?))
    }
}

/// Reads the present entry's content.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let read = self.source.read(buffer)?;
        if read == 0 {
            return Err(bad("it ends inside an entry"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// The header's own sum: of its bytes, with the sum's field as spaces.
fn check_sum(header: &[u8; BLOCK]) -> io::Result<()> {
    let sum = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) })
        .sum::<u64>();
    let claimed = number(header.get(148..156).unwrap_or_default())?;
    if sum == claimed { Ok(()) } else { Err(bad("a header's checksum is wrong")) }
}

/// Octal digits, or GNU's big-endian number with the first bit set.
fn number(field: &[u8]) -> io::Result<u64> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        let mut value = u64::from(first & 0x3f);
        for byte in rest {
            value = value.checked_mul(256).ok_or_else(|| bad("a number is too large"))? + u64::from(*byte);
        }
        return Ok(value);
    }
    let digits = text(field);
    let digits = digits.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| bad("a number is none"))
}

/// Up to the first zero byte.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

/// `length name=value\n` records (POSIX.1-2001, pax extended header).
fn pax_records(mut bytes: &[u8]) -> Vec<(&str, &str)> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
        let length =
            bytes.get(..space).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| bytes.get(space + 1..length)) else { break };
        if let Ok(text) = std::str::from_utf8(record)
            && let Some((name, value)) = text.trim_end_matches('\n').split_once('=')
        {
            records.push((name, value));
        }
        bytes = bytes.get(length.unwrap_or(0)..).unwrap_or_default();
    }
    records
}

/// A path that stays inside the archive's root.
fn clean(path: &str) -> io::Result<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(bad("a path leads out of it"));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(path: &str, kind: u8, size: usize, link: &str) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, b"0004755\0");
        put(108, b"0000144\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\0");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn entry(path: &str, kind: u8, content: &[u8], link: &str) -> Vec<u8> {
        let mut bytes = header(path, kind, content.len(), link);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    #[test]
    fn entries_and_their_contents_are_read() {
        let long = "x/".repeat(100) + "end";
        let mut bytes = entry("./usr/bin/su", b'0', b"hello", "");
        bytes.extend(entry("./bin", b'2', b"", "usr/bin"));
        bytes.extend(entry("././@LongLink", b'L', long.as_bytes(), ""));
        bytes.extend(entry("short", b'5', b"", ""));
        bytes.extend(entry("pax", b'x', b"17 path=from/pax\n", ""));
        bytes.extend(entry("short", b'1', b"", "./usr/bin/su"));
        bytes.extend([0; 1024]);
        let mut archive = Archive::new(&bytes[..]);
        let first = archive.next().unwrap().unwrap();
        assert_eq!((first.path.as_str(), first.mode, first.uid), ("usr/bin/su", 0o4755, 100));
        let mut content = String::new();
        archive.read_to_string(&mut content).unwrap();
        assert_eq!(content, "hello");
        assert_eq!(archive.next().unwrap().unwrap().kind, Kind::Symlink("usr/bin".into()));
        assert_eq!(archive.next().unwrap().unwrap().path, long);
        let last = archive.next().unwrap().unwrap();
        assert_eq!((last.path.as_str(), last.kind), ("from/pax", Kind::Hardlink("usr/bin/su".into())));
        assert!(archive.next().unwrap().is_none());
    }

    #[test]
    fn nothing_leaves_the_root_and_a_cut_archive_is_an_error() {
        let bytes = entry("a/../../etc/passwd", b'0', b"", "");
        assert!(Archive::new(&bytes[..]).next().is_err());
        let bytes = entry("a", b'0', &[1; 600], "");
        let mut archive = Archive::new(&bytes[..700]);
        archive.next().unwrap();
        assert!(archive.next().is_err());
        let mut bytes = entry("a", b'0', b"", "");
        bytes[0] = b'b';
        assert!(Archive::new(&bytes[..]).next().is_err(), "the checksum is looked at");
    }

    proptest! {
        #[test]
        fn noise_never_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..2048),
            at in 0usize..512,
            byte in any::<u8>(),
        ) {
            let mut archive = Archive::new(&noise[..]);
            while let Ok(Some(_)) = archive.next() {}
            let mut bytes = entry("usr/a", b'x', b"9 size=1\n", "");
            bytes[at] = byte;
            let sum: u32 = bytes[..512].iter().enumerate()
                .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            bytes.extend(noise);
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next() {}
        }
    }
}
