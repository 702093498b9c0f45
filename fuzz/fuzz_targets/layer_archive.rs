//! A layer's archive: compressed, with right checksums, or a sound one with changes. What is taken is merged with itself and written as
//! EROFS.
#![no_main]
use std::io::Cursor;
use viv_rootfs::{Decompress, Layer, Limits, Tree, unpack};

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000, path_len: 4095, xattr_bytes: 64 << 10 };

/// A header, its content behind it.
fn member(out: &mut Vec<u8>, path: &str, kind: u8, link: &str, content: &[u8]) {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0004755\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar  \0");
    out.extend(header);
    out.extend(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// A pax header with records of less than 100 bytes.
fn pax(out: &mut Vec<u8>, records: &[&str]) {
    let records: Vec<String> =
        records.iter().map(|record| format!("{:02} {record}\n", record.len() + 4)).collect();
    member(out, "pax", b'x', "", records.concat().as_bytes());
}

/// An archive with one of everything, without checksums.
fn sound() -> Vec<u8> {
    let mut out = Vec::new();
    member(&mut out, "etc/", b'5', "", b"");
    pax(&mut out, &["mtime=1234.567890", "SCHILY.xattr.user.a=bc", "path=etc/a"]);
    member(&mut out, "short", b'0', "", &[7; 700]);
    member(&mut out, "etc/b", b'1', "etc/a", b"");
    member(&mut out, "link", b'2', "../etc", b"");
    member(&mut out, "link/through", b'0', "", b"through");
    pax(&mut out, &["GNU.sparse.major=1", "GNU.sparse.name=sparse", "GNU.sparse.realsize=20000"]);
    let mut map = b"2\n0\n3\n9000\n4\n".to_vec();
    map.resize(512, 0);
    member(&mut out, "GNUSparseFile.0/sparse", b'0', "", &[&map[..], b"1234567"].concat());
    pax(&mut out, &["GNU.sparse.map=0,2,5,1", "GNU.sparse.size=100"]);
    member(&mut out, "older", b'0', "", b"123");
    member(&mut out, "././@LongLink", b'L', "", b"etc/longer\0");
    member(&mut out, "null", b'3', "", b"");
    member(&mut out, "etc/.wh.a", b'0', "", b"");
    member(&mut out, "link/.wh..wh..opq", b'0', "", b"");
    out.resize(out.len() + 1024, 0);
    out
}

/// Three bytes are a change: where, and to what.
fn changed(changes: &[u8]) -> Vec<u8> {
    let mut archive = sound();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % archive.len();
        archive[at] = change[2];
    }
    archive
}

/// The checksum of each record that poses as a header.
fn with_sums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for record in data.chunks_exact_mut(512).filter(|record| record[257..262] == *b"ustar") {
        record[148..156].fill(b' ');
        let sum: u32 = record.iter().map(|byte| u32::from(*byte)).sum();
        record[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}

fn read(data: &[u8], packed: bool) -> Result<Layer, viv_model::Fault> {
    let mut blob = Cursor::new(Vec::new());
    if packed {
        unpack(Decompress::new(Cursor::new(data.to_vec()))?, &mut blob, &LIMITS, &mut |_| Ok(()))
    } else {
        unpack(data, &mut blob, &LIMITS, &mut |_| Ok(()))
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((form, data)) = data.split_first() else { return };
    let layer = match form {
        0 => read(data, true),
        1 => read(&with_sums(data), false),
        _ => read(&with_sums(&changed(data)), false),
    };
    let Ok(layer) = layer else { return };
    assert_eq!(Layer::from_bytes(&layer.to_bytes()).as_ref(), Ok(&layer));
    let blocks = [layer.data_blocks; 2];
    if let Ok(tree) = Tree::merge(&[layer.clone(), layer]) {
        let _ = tree.resolve("/etc/passwd");
        let _ = tree.write_erofs(&mut Vec::new(), &blocks);
    }
});
