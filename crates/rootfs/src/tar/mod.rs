//! Tar archives as layers have them: ustar, GNU and pax (POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Tar
//! Internals"). The `tar` crate reads the fields of a header; the order of headers, sparse maps and bounds are ours.
mod header;
mod pax;
mod sparse;

use crate::fault::{damaged, excessive, reading};
use crate::limits::Limits;
use header::{check_sum, device, field};
use pax::Pax;
pub(crate) use sparse::Segment;
use std::collections::BTreeMap;
use std::io::{self, Read};
use viv_model::Fault;

/// Bytes of a header, and what contents are padded to.
const RECORD: usize = 512;
/// Longest pax header and longest sparse map, bytes: attributes of 128 KiB and a map of many thousand pieces fit.
const EXTENDED_LEN_MAX: u64 = 4 << 20;
/// How often the watcher is asked, bytes.
const WATCH: u64 = 1 << 20;

/// When a file's content changed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtime {
    /// Since 1970; negative before.
    pub seconds: i64,
    /// Less than 1,000,000,000, upwards from the second.
    pub nanoseconds: u32,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    Directory,
    Symlink,
    Hardlink,
    Character,
    Block,
    Fifo,
}

/// A member; its content follows, segment by segment, in the reader.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Type,
    /// Bytes of the file, holes and all.
    pub(crate) size: u64,
    /// Where the content that follows belongs in the file, in order.
    pub(crate) segments: Vec<Segment>,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Mtime,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Asked on the way with the bytes that were read so far; its fault ends the work.
pub type Watcher<'a> = &'a mut dyn FnMut(u64) -> Result<(), Fault>;

/// An archive, read from its beginning to its end.
pub(crate) struct Reader<'a, R> {
    source: R,
    limits: &'a Limits,
    watcher: Watcher<'a>,
    /// Bytes read, and what they were when the watcher was asked.
    read: u64,
    watched: u64,
    /// Bytes of the present member's content that were not read, and of its padding.
    left: u64,
    padding: u64,
    global: Pax,
}

impl<'a, R: Read> Reader<'a, R> {
    pub(crate) fn new(source: R, limits: &'a Limits, watcher: Watcher<'a>) -> Reader<'a, R> {
        Reader { source, limits, watcher, read: 0, watched: 0, left: 0, padding: 0, global: Pax::default() }
    }

    /// The next member, or the archive's end: then everything behind it was read as well.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Fault> {
        let mut pax = self.global.clone();
        let (mut long_path, mut long_link, mut described) = (None, None, false);
        loop {
            self.skip()?;
            let mut bytes = [0; RECORD];
            if !self.some(&mut bytes)? {
                if self.read == 0 {
                    return Err(damaged("its archive is empty"));
                }
                // The standard wants records of zeros there; some tools (umoci insert) leave them out.
                return if described { Err(self.breaks_off(0)) } else { Ok(None) };
            }
            if bytes.iter().all(|byte| *byte == 0) {
                // One record of zeros is the end for everybody but the standard, which wants two.
                return self.drain().map(|()| None);
            }
            let header = tar::Header::from_byte_slice(&bytes);
            check_sum(header)?;
            let stored: u64 = field(&header.as_old().size, "size")?;
            described = true;
            self.left = stored;
            self.padding = stored.wrapping_neg() % RECORD as u64;
            match header.entry_type().as_byte() {
                b'L' => long_path = Some(until_zero(self.extended(stored)?)),
                b'K' => long_link = Some(until_zero(self.extended(stored)?)),
                b'x' | b'X' => pax.read(&self.extended(stored)?)?,
                b'g' => {
                    let records = self.extended(stored)?;
                    self.global.read(&records)?;
                    pax.read(&records)?;
                }
                kind => {
                    let path = pax.sparse.name.take().or(pax.path.take()).or(long_path);
                    let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = pax.linkpath.take().or(long_link);
                    let link = link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
                    return self.member(header, kind, path, link.unwrap_or_default(), pax).map(Some);
                }
            }
        }
    }

    fn member(
        &mut self,
        header: &tar::Header,
        kind: u8,
        path: Vec<u8>,
        link: Vec<u8>,
        pax: Pax,
    ) -> Result<Member, Fault> {
        let shown = crate::path::shown(&path);
        let in_member = |fault: Fault| Fault { message: format!("{} ({shown})", fault.message), ..fault };
        let kind = match kind {
            0 | b'0' | b'7' | b'S' if path.ends_with(b"/") => Type::Directory,
            0 | b'0' | b'7' | b'S' => Type::File,
            b'1' => Type::Hardlink,
            b'2' => Type::Symlink,
            b'3' => Type::Character,
            b'4' => Type::Block,
            b'5' => Type::Directory,
            b'6' => Type::Fifo,
            other => {
                return Err(damaged(format!(
                    "{shown} is of the kind {:?}, which no image has",
                    other as char
                )));
            }
        };
        let stored = pax.size.unwrap_or(self.left);
        // Only files have content; what else names a size means another file's (a hard link), or nothing.
        (self.left, self.padding) =
            if kind == Type::File { (stored, stored.wrapping_neg() % RECORD as u64) } else { (0, 0) };
        let (size, segments) = if kind == Type::File {
            self.map(header, &pax, stored).map_err(in_member)?
        } else {
            (0, Vec::new())
        };
        let old = header.as_old();
        let id = |given: Option<u32>, bytes, what| given.map_or_else(|| field(bytes, what), Ok);
        Ok(Member {
            kind,
            size,
            segments,
            mode: (field::<u64>(&old.mode, "mode").map_err(in_member)? & 0o7777) as u16,
            uid: id(pax.uid, &old.uid, "owner").map_err(in_member)?,
            gid: id(pax.gid, &old.gid, "group").map_err(in_member)?,
            mtime: match pax.mtime {
                Some(time) => time,
                // A time before 1970 is a negative number in GNU's form.
                None => Mtime { seconds: field(&old.mtime, "time").map_err(in_member)?, nanoseconds: 0 },
            },
            device: match kind {
                Type::Character | Type::Block => device(header).map_err(in_member)?,
                _ => (0, 0),
            },
            xattrs: pax.xattrs,
            path,
            link,
        })
    }

    /// A file's size, and where its content belongs in it.
    fn map(&mut self, header: &tar::Header, pax: &Pax, stored: u64) -> Result<(u64, Vec<Segment>), Fault> {
        let (size, segments) = if pax.sparse.before_content {
            let size = pax.sparse.size.ok_or_else(|| damaged("a sparse file has no size"))?;
            (size, self.map_before_content()?)
        } else if let Some(map) = &pax.sparse.map {
            let size = pax.sparse.size.ok_or_else(|| damaged("a sparse file has no size"))?;
            (size, sparse::from_pairs(map)?)
        } else if let Some(gnu) = header.as_gnu().filter(|_| header.entry_type().is_gnu_sparse()) {
            (field(&gnu.realsize, "size")?, self.map_in_headers(gnu)?)
        } else {
            return Ok((stored, vec![Segment { offset: 0, length: stored }]));
        };
        sparse::check(&segments, size, self.left)?;
        Ok((size, segments))
    }

    /// The map in front of a pax 1.0 sparse file: decimal numbers, each with its line end, padded to a record.
    fn map_before_content(&mut self) -> Result<Vec<Segment>, Fault> {
        let mut lines = sparse::Lines::default();
        let mut read = 0;
        while !lines.complete() {
            let mut record = [0; RECORD];
            read += RECORD as u64;
            if read > EXTENDED_LEN_MAX || self.left < RECORD as u64 {
                return Err(damaged("the map of a sparse file does not end"));
            }
            self.content(&mut record)?;
            lines.read(&record)?;
        }
        lines.segments()
    }

    /// The map of GNU's old form: in the header, and in more headers behind it.
    fn map_in_headers(&mut self, gnu: &tar::GnuHeader) -> Result<Vec<Segment>, Fault> {
        let mut segments = Vec::new();
        let mut take = |piece: &tar::GnuSparseHeader| {
            if !piece.is_empty() {
                let (offset, length) = (field(&piece.offset, "map")?, field(&piece.numbytes, "map")?);
                segments.push(Segment { offset, length });
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut take)?;
        let (mut more, mut read) = (gnu.is_extended(), 0);
        while more {
            let mut header = tar::GnuExtSparseHeader::new();
            self.fill(header.as_mut_bytes())?;
            read += RECORD as u64;
            if read > EXTENDED_LEN_MAX {
                return Err(damaged("the map of a sparse file does not end"));
            }
            header.sparse().iter().try_for_each(&mut take)?;
            more = header.is_extended();
        }
        Ok(segments)
    }

    /// Reads content of the present member.
    pub(crate) fn content(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        self.left = self
            .left
            .checked_sub(buffer.len() as u64)
            .ok_or_else(|| damaged("a file's content is shorter than it says"))?;
        self.fill(buffer)
    }

    /// Skips what is left of the present member.
    fn skip(&mut self) -> Result<(), Fault> {
        let mut sink = [0; 8 * RECORD];
        while self.left > 0 {
            let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(sink.len());
            self.fill(sink.get_mut(..wanted).unwrap_or_default())?;
            self.left -= wanted as u64;
        }
        // Some tools (umoci insert) do not fill the last record up.
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        self.some(sink.get_mut(..padding).unwrap_or_default()).map(drop)
    }

    /// The content of a member that describes the next one.
    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > EXTENDED_LEN_MAX {
            return Err(excessive(format!(
                "a header of {size} bytes is more than the {EXTENDED_LEN_MAX} that an archive may have"
            )));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.content(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads to the source's end, so that a digest over it is of all of it.
    fn drain(&mut self) -> Result<(), Fault> {
        let mut sink = [0; 8 * RECORD];
        loop {
            match self.source.read(&mut sink) {
                Ok(0) => return Ok(()),
                Ok(read) => self.count(read)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(reading(&error)),
            }
        }
    }

    /// Fills the buffer; false if the archive ends before it.
    fn some(&mut self, buffer: &mut [u8]) -> Result<bool, Fault> {
        let first = loop {
            match self.source.read(buffer) {
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(reading(&error)),
            }
        };
        if first > 0 {
            self.count(first)?;
            self.fill(buffer.get_mut(first..).unwrap_or_default())?;
        }
        Ok(first > 0)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        self.source.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.breaks_off(buffer.len()),
            _ => reading(&error),
        })?;
        self.count(buffer.len())
    }

    fn breaks_off(&self, wanted: usize) -> Fault {
        let at = self.read.saturating_add(wanted as u64);
        damaged(format!("its archive breaks off about {at} bytes after its beginning"))
    }

    fn count(&mut self, bytes: usize) -> Result<(), Fault> {
        self.read = self.read.saturating_add(bytes as u64);
        if self.read > self.limits.bytes {
            return Err(excessive(format!(
                "its archive is larger than the {} bytes that a layer may have",
                self.limits.bytes
            )));
        }
        if self.read - self.watched >= WATCH {
            self.watched = self.read;
            (self.watcher)(self.read)?;
        }
        Ok(())
    }
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}
