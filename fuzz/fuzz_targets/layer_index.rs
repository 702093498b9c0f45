//! The file of a layer's entries, with a right checksum: any bytes, or a sound one with changes. What is taken is merged, read and
//! written as EROFS.
#![no_main]
use std::io::Cursor;
use viv_rootfs::{Attributes, Entry, Extent, Kind, Layer, Mtime, Tree};

/// An index with one of everything, without its checksum.
fn sound() -> Vec<u8> {
    let extents = vec![Extent { from: 0, at: 1, blocks: 1 }, Extent { from: 2, at: 2, blocks: 2 }];
    let kinds = [
        ("etc", Kind::Directory),
        ("etc/a", Kind::File { size: 16000, extents }),
        ("etc/b", Kind::Hardlink(b"etc/a".to_vec())),
        ("link", Kind::Symlink(b"../etc/./x/..".to_vec())),
        ("link/c", Kind::File { size: 0, extents: Vec::new() }),
        ("null", Kind::Device { block: false, major: 1, minor: 3 }),
        ("pipe", Kind::Fifo),
        ("etc/b", Kind::Whiteout),
        ("link", Kind::Opaque),
    ];
    let entries = kinds.into_iter().map(|(path, kind)| {
        let plain = matches!(kind, Kind::Hardlink(_) | Kind::Whiteout | Kind::Opaque);
        let xattrs = [(b"user.a".to_vec(), vec![1, 2]), (b"user.b".to_vec(), Vec::new())].into();
        let some =
            Attributes { mode: 0o644, uid: 1, gid: 2, mtime: Mtime { seconds: 3, nanoseconds: 4 }, xattrs };
        Entry { path: path.into(), attributes: if plain { Attributes::default() } else { some }, kind }
    });
    let mut bytes = Layer { entries: entries.collect(), data_blocks: 4 }.to_bytes();
    bytes.truncate(bytes.len() - 32);
    bytes
}

/// Three bytes are a change: where, and to what.
fn changed(changes: &[u8]) -> Vec<u8> {
    let mut content = sound();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % content.len();
        content[at] = change[2];
    }
    content
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Layer::from_bytes(data);
    let Some((form, data)) = data.split_first() else { return };
    let content = if *form == 0 { [b"VIVLAYER\x01\0\0\0", data].concat() } else { changed(data) };
    let bytes = [&content[..], blake3::hash(&content).as_bytes()].concat();
    let Ok(layer) = Layer::from_bytes(&bytes) else { return };
    assert_eq!(layer.to_bytes(), bytes);
    let Ok(tree) = Tree::merge(std::slice::from_ref(&layer)) else { return };
    let mut blobs = [Cursor::new([7u8; 16384])];
    for inode in 0..tree.inodes().len() {
        let _ = tree.read(inode, &mut blobs, 65536);
    }
    let mut metadata = Vec::new();
    if tree.write_erofs(&mut metadata, &[layer.data_blocks]).is_ok() {
        assert_eq!(metadata.len() % viv_rootfs::BLOCK, 0);
    }
});
