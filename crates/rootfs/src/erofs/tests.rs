//! What fsck.erofs and the kernel do not tell: the integration tests have them.
use super::*;
use crate::layer::{Attributes, Entry, Extent, Kind, Layer};

fn layer(entries: Vec<(String, Kind)>, data_blocks: u64) -> Layer {
    let entries = entries.into_iter().map(|(path, kind)| Entry {
        path: path.into_bytes(),
        attributes: Attributes { mode: 0o755, ..Attributes::default() },
        kind,
    });
    Layer { entries: entries.collect(), data_blocks }
}

fn written(layers: &[Layer]) -> Vec<u8> {
    let blocks: Vec<u64> = layers.iter().map(|layer| layer.data_blocks).collect();
    let mut out = Vec::new();
    let length = Tree::merge(layers).unwrap().write_erofs(&mut out, &blocks).unwrap();
    assert_eq!(length, out.len() as u64);
    assert_eq!(out.len() % BLOCK, 0);
    out
}

fn file(name: &str, size: u64, extents: &[[u64; 3]]) -> (String, Kind) {
    let extents = extents.iter().map(|[from, at, blocks]| Extent { from: *from, at: *at, blocks: *blocks });
    (name.to_string(), Kind::File { size, extents: extents.collect() })
}

#[test]
fn the_same_tree_is_the_same_to_the_byte() {
    let entries = |names: &[&str]| names.iter().map(|name| file(name, 5, &[[0, 0, 1]])).collect();
    let one = written(&[layer(entries(&["a", "b/c", "d"]), 1)]);
    let other = written(&[layer(entries(&["d", "b/c", "a"]), 1)]);
    assert!(one == other, "the order of entries is not in the result");
    let more = written(&[layer(entries(&["a", "b/c", "e"]), 1)]);
    let uuid = |image: &[u8]| image[SUPER_OFFSET + 48..SUPER_OFFSET + 64].to_vec();
    assert_ne!(uuid(&one), uuid(&more));
    assert_eq!((uuid(&one)[6] >> 4, uuid(&one)[8] >> 6), (8, 2), "a UUID of RFC 9562's version 8");
}

#[test]
fn files_are_in_one_piece_or_in_the_largest_chunks() {
    let bits = |size, extents: &[[u64; 3]]| match file("", size, extents).1 {
        Kind::File { size, extents } => body::chunk_bits(size, &extents),
        _ => None,
    };
    assert_eq!(bits(0, &[]), None);
    assert_eq!(bits(5000, &[[0, 7, 2]]), None);
    assert_eq!(bits(5000, &[[1, 7, 1]]), Some(0));
    assert_eq!(bits(1 << 20, &[[0, 0, 64], [128, 64, 128]]), Some(6));
    assert_eq!(bits(1 << 20, &[[64, 0, 192]]), Some(6));
    // Content that ends with the file cuts no chunk.
    assert_eq!(bits(65 * 4096, &[[64, 0, 1]]), Some(6));
    // Holes alone: a chunk is as large as the file, up to 1 GiB.
    assert_eq!(bits(8192, &[]), Some(1));
    assert_eq!(bits(8 << 30, &[]), Some(18));
}

#[test]
fn blocks_of_layers_follow_each_other() {
    let lower = layer(vec![file("a", 4096, &[[0, 2, 1]])], 10);
    let upper = layer(vec![file("b", 8192, &[[1, 3, 1]])], 5);
    let image = written(&[lower, upper]);
    let metadata = (image.len() / BLOCK) as u32;
    let blocks = u32::from_le_bytes(image[SUPER_OFFSET + 36..SUPER_OFFSET + 40].try_into().unwrap());
    assert_eq!(blocks, metadata + 15);
    // a: in one piece, from the lower blob's block 2. b: two chunks, the second at the upper blob's block 3.
    assert!(image.windows(4).any(|bytes| bytes == (metadata + 2).to_le_bytes()));
    let map = [NULL.to_le_bytes(), (metadata + 10 + 3).to_le_bytes()].concat();
    assert!(image.windows(8).any(|bytes| bytes == map));
}

const NULL: u32 = spec::NULL_ADDR;

#[test]
fn more_than_a_device_holds_is_refused() {
    let layers = [layer(vec![], BLOCKS_MAX / 2), layer(vec![], BLOCKS_MAX / 2)];
    let tree = Tree::merge(&layers).unwrap();
    let fault = tree.write_erofs(&mut Vec::new(), &[BLOCKS_MAX / 2, BLOCKS_MAX / 2]).unwrap_err();
    assert!(fault.message.contains("16 TiB"), "{fault}");
    tree.write_erofs(&mut Vec::new(), &[0]).unwrap_err();
    let wrong = layer(vec![file("a", 4096, &[[0, u64::MAX - 1, 1]])], 1);
    Tree::merge(&[wrong]).unwrap().write_erofs(&mut Vec::new(), &[1]).unwrap_err();
}
