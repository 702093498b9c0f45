//! Writes initial RAM disks: cpio archives in the "newc" form (Linux Documentation/driver-api/early-userspace/
//! buffer-format.rst), everything owned by root and without times, so that equal contents are equal bytes.
use std::io::{self, Write};

/// File types of the mode field (stat.h).
const DIRECTORY: u32 = 0o040000;
const REGULAR: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;
const CHARACTER: u32 = 0o020000;

/// An archive being written.
pub(super) struct Archive<W> {
    target: W,
    /// Bytes written.
    at: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(target: W) -> Archive<W> {
        Archive { target, at: 0, inode: 0 }
    }

    pub(super) fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, DIRECTORY | mode, b"", (0, 0))
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, content, (0, 0))
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, target.as_bytes(), (0, 0))
    }

    pub(super) fn character_device(&mut self, path: &str, mode: u32, device: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTER | mode, b"", device)
    }

    /// Ends the archive and gives its target back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, b"", (0, 0))?;
        // The kernel wants nothing of it, but loaders like whole blocks.
        let padding = (512 - self.at % 512) % 512;
        self.put(&vec![0; padding as usize])?;
        Ok(self.target)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) -> io::Result<()> {
        let length =
            u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.inode += 1;
        let links = if mode & 0o170000 == DIRECTORY { 2 } else { 1 };
        // ino mode uid gid nlink mtime filesize major minor rmajor rminor namesize check
        let fields =
            [self.inode, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, path.len() as u32 + 1, 0];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(path.as_bytes())?;
        self.put(b"\0")?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn align(&mut self) -> io::Result<()> {
        let zeros = [0; 3];
        let padding = (4 - self.at % 4) % 4;
        self.put(zeros.get(..padding as usize).unwrap_or_default())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.target.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_documents() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("a", 0o755).unwrap();
        archive.file("a/b", 0o644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.starts_with("070701" /* ino */));
        assert_eq!(&text[6..22], "00000001000041ed");
        // Header 110 + "a\0" = 112 is a multiple of 4: the next header follows at once.
        assert_eq!(&text[112..118], "070701");
        assert_eq!(&text[112 + 6 + 8 * 6..112 + 6 + 8 * 7], "00000005");
        // Header 110 + "a/b\0" = 114, padded to 116.
        assert_eq!(&text[112 + 116..112 + 121], "hello");
        assert!(text.contains("TRAILER!!!"));
        assert_eq!(bytes.len() % 512, 0);
    }
}
