//! Doors to the readers of packages and lists, for fuzz targets: whatever the bytes, they return.
use super::{apt, deb, kmod, tar};
use std::io::{Cursor, Read};

/// Most bytes that are taken of what a member decompresses to.
const PLAIN_MAX: u64 = 1 << 20;

/// Reads the members of a package as far as they go.
pub fn read_package(data: &[u8]) {
    for prefix in ["control.tar", "data.tar"] {
        if let Ok(member) = deb::member_of(Cursor::new(data.to_vec()), prefix) {
            entries(tar::Archive::new(member.take(PLAIN_MAX)));
        }
    }
    for name in ["module.ko.xz", "module.ko.zst"] {
        // A short input cannot become long enough to matter: formats without a limit are tried on those only.
        if data.len() < 4096 {
            let _ = deb::decompress(name, data.to_vec());
        }
    }
}

/// Reads a tar archive, as it is and with its first header's checksum made right.
pub fn read_tar(data: &[u8]) {
    entries(tar::Archive::new(data));
    let mut mended = data.to_vec();
    for header in mended.chunks_mut(512) {
        if let Some(field) = header.get_mut(148..156) {
            field.fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            if let Some(field) = header.get_mut(148..156) {
                field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
    }
    entries(tar::Archive::new(&mended[..]));
}

fn entries(mut archive: tar::Archive<impl Read>) {
    while let Ok(Some(_)) = archive.next() {
        let mut start = [0; 16];
        let _ = archive.read(&mut start);
    }
}

/// Reads package lists, lines of apt, and a kernel module's own list.
pub fn read_lists(data: &[u8]) {
    let _ = kmod::depends(data);
    let text = String::from_utf8_lossy(data);
    let _ = apt::stanzas(&text);
    for line in text.lines() {
        let _ = apt::parse_uri_line(line);
    }
}
