//! Reads `.deb` files (deb(5)): an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*`.
use super::fault::broken;
use super::tar::Archive;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};
use viv_model::Fault;

/// The `ar` archive's magic string.
const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
/// Bytes of an `ar` member's header.
const AR_HEADER_LEN: usize = 60;
/// Most bytes of a gzip-compressed member, once it is decompressed: those we hold in memory.
const GZIP_LEN_MAX: usize = 64 << 20;

/// A package file.
#[derive(Clone, Debug)]
pub(super) struct Deb {
    path: PathBuf,
}

impl Deb {
    pub(super) fn new(path: impl Into<PathBuf>) -> Deb {
        Deb { path: path.into() }
    }

    /// The files that the package installs.
    pub(super) fn data(&self) -> Result<Archive<Box<dyn Read>>, Fault> {
        self.member("data.tar")
    }

    /// The package's control file, scripts and lists.
    pub(super) fn control(&self) -> Result<Archive<Box<dyn Read>>, Fault> {
        self.member("control.tar")
    }

    /// For faults.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn member(&self, prefix: &str) -> Result<Archive<Box<dyn Read>>, Fault> {
        open_member(&self.path, prefix).map(Archive::new).map_err(|error| broken(&self.name(), error))
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn open_member(path: &Path, prefix: &str) -> io::Result<Box<dyn Read>> {
    member_of(File::open(path)?, prefix)
}

/// The decompressed member of `file` whose name begins with `prefix`.
pub(super) fn member_of(file: impl Read + Seek + 'static, prefix: &str) -> io::Result<Box<dyn Read>> {
    let (name, member) = find_member(file, prefix)?;
    let member = BufReader::with_capacity(256 * 1024, member);
    match name.strip_prefix(prefix) {
        Some(".xz") => Ok(Box::new(lzma_rust2::XzReader::new(member, true))),
        Some(".zst") => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(member).map_err(io::Error::other)?;
            Ok(Box::new(decoder))
        }
        Some(".gz") => Ok(Box::new(io::Cursor::new(gunzip(member)?))),
        Some("") => Ok(Box::new(member)),
        _ => Err(bad(&format!("its {name} is compressed in a way that we cannot read"))),
    }
}

/// The member whose name begins with `prefix`.
fn find_member<F: Read + Seek>(mut file: F, prefix: &str) -> io::Result<(String, Take<F>)> {
    let mut magic = [0; AR_MAGIC.len()];
    file.read_exact(&mut magic)?;
    if &magic != AR_MAGIC {
        return Err(bad("it is no package file"));
    }
    loop {
        let mut header = [0; AR_HEADER_LEN];
        file.read_exact(&mut header).map_err(|_| bad(&format!("it has no {prefix}")))?;
        let field = |from: usize, to: usize| {
            let bytes = header.get(from..to).unwrap_or_default();
            String::from_utf8_lossy(bytes).trim().trim_end_matches('/').to_string()
        };
        let (name, size) =
            (field(0, 16), field(48, 58).parse::<u64>().map_err(|_| bad("a member has no size"))?);
        if name.starts_with(prefix) {
            return Ok((name, file.take(size)));
        }
        // Members begin at even offsets.
        let skip = i64::try_from(size.saturating_add(size & 1)).map_err(|_| bad("a member is too long"))?;
        file.seek(SeekFrom::Current(skip))?;
    }
}

/// RFC 1952, one member.
fn gunzip(mut source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes)?;
    let (Some([0x1f, 0x8b, 8, flags]), Some(mut body)) = (bytes.get(..4), bytes.get(10..)) else {
        return Err(bad("a member is no gzip file"));
    };
    if flags & 4 != 0 {
        let length = body.first_chunk().map_or(0, |bytes| usize::from(u16::from_le_bytes(*bytes)));
        body = body.get(2 + length..).unwrap_or_default();
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            let end = body.iter().position(|byte| *byte == 0).map_or(body.len(), |at| at + 1);
            body = body.get(end..).unwrap_or_default();
        }
    }
    if flags & 2 != 0 {
        body = body.get(2..).unwrap_or_default();
    }
    miniz_oxide::inflate::decompress_to_vec_with_limit(body, GZIP_LEN_MAX)
        .map_err(|error| bad(&format!("gzip: {error}")))
}

/// Decompresses a file whose name says how, e.g. a kernel module.
pub(super) fn decompress(name: &str, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    if name.ends_with(".xz") {
        lzma_rust2::XzReader::new(&bytes[..], true).read_to_end(&mut plain)?;
    } else if name.ends_with(".zst") {
        ruzstd::decoding::StreamingDecoder::new(&bytes[..])
            .map_err(io::Error::other)?
            .read_to_end(&mut plain)?;
    } else {
        return Ok(bytes);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::tar::Kind;

    fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = AR_MAGIC.to_vec();
        for (name, content) in members {
            bytes.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, content.len()).bytes(),
            );
            bytes.extend(*content);
            if content.len() % 2 == 1 {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("viv-deb-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A tar archive with one directory, as tar(1) and gzip(1) write it.
    fn tar_gz() -> Vec<u8> {
        let mut block = vec![0u8; 512];
        block[..2].copy_from_slice(b"./");
        block[156] = b'5';
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.resize(2048, 0);
        let mut gz = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
        gz.extend(b"a.tar\0");
        gz.extend(miniz_oxide::deflate::compress_to_vec(&block, 6));
        gz.extend([0; 8]);
        gz
    }

    #[test]
    fn members_are_found_and_decompressed() {
        let gz = tar_gz();
        let path = file(
            "good",
            &ar(&[("debian-binary", b"2.0\n "), ("control.tar.gz", &gz), ("data.tar.zip", b"?")]),
        );
        let deb = Deb::new(&path);
        let entry = deb.control().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.path.as_str(), entry.kind), ("", Kind::Directory));
        assert!(deb.data().err().unwrap().message.contains("data.tar.zip"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_no_package_is_named() {
        for (name, bytes) in [("empty", vec![]), ("text", b"hello, world".to_vec()), ("none", ar(&[]))] {
            let path = file(name, &bytes);
            let fault = Deb::new(&path).data().err().unwrap();
            assert!(fault.message.contains(&path.display().to_string()), "{fault}");
            std::fs::remove_file(path).unwrap();
        }
    }
}
