//! The file of a layer's entries, with a right checksum: what is taken is merged, read and written as EROFS.
#![no_main]
use std::io::Cursor;
use viv_rootfs::{Layer, Tree};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Layer::from_bytes(data);
    let content = [b"VIVLAYER\x01\0\0\0", data].concat();
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
