//! Files with holes, in all forms that GNU tar writes, and directories with many names.

use crate::archive::Archive;
use crate::host::{Mount, Scratch, check_erofs, disk, layers, not_tested, tool};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use viv_rootfs::{BLOCK, Kind, Tree};

const SIZE: u64 = 8 << 30;
/// What is in the file, and where.
const PIECES: [(u64, &[u8]); 4] =
    [(0, b"beginning"), (1 << 20, &[7; 300_000]), ((5 << 30) + 123, b"middle"), (SIZE - 3, b"end")];

#[test]
fn a_sparse_file_of_8_gib_takes_the_room_of_its_content() {
    let scratch = Scratch::new();
    let file = File::create(scratch.path("file")).unwrap();
    file.set_len(SIZE).unwrap();
    for (at, piece) in PIECES {
        file.write_all_at(piece, at).unwrap();
    }
    File::create(scratch.path("hole")).unwrap().set_len(SIZE + 5).unwrap();
    for form in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let tar = scratch.path("tar");
        let pax = if form == "--format=gnu" { form } else { "--format=pax" };
        tool("tar", &[&"-C", &scratch.0, &"-c", &"--sparse", &pax, &form, &"-f", &tar, &"file", &"hole"]);
        let here = Scratch::new();
        let (layers, mut blobs) = layers(&here, &[fs::read(&tar).unwrap()]);
        // 128 KiB are a granule of 8 GiB.
        assert!(layers[0].data_blocks * (BLOCK as u64) < 2 << 20, "{form}: {}", layers[0].data_blocks);
        let [file, hole] = &layers[0].entries[..] else { panic!("{form}: two files") };
        assert_eq!((&file.path[..], &hole.path[..]), (&b"file"[..], &b"hole"[..]));
        assert_eq!(hole.kind, Kind::File { size: SIZE + 5, extents: vec![] }, "{form}");
        let tree = Tree::merge(&layers).unwrap();
        let image = here.path("disk");
        disk(&image, &tree, &layers, &mut blobs);
        check_erofs(&image);
        check_extents(&file.kind, &blobs[0], form);
        match Mount::new("erofs", "ro", &image, here.path("mount")) {
            Err(why) => not_tested("sparse files as Linux sees them", &why),
            Ok(_mount) => {
                let file = File::open(here.path("mount/file")).unwrap();
                assert_eq!(file.metadata().unwrap().len(), SIZE);
                assert_eq!(fs::metadata(here.path("mount/hole")).unwrap().len(), SIZE + 5);
                check(&mut |at, bytes| file.read_exact_at(bytes, at).unwrap(), form);
            }
        }
    }
}

/// The pieces are where they belong, with zeros around them.
fn check(read: &mut dyn FnMut(u64, &mut [u8]), form: &str) {
    for (at, piece) in PIECES {
        let before = at.min(100);
        let after = (SIZE - at - piece.len() as u64).min(100);
        let mut found = vec![1; (before + after) as usize + piece.len()];
        read(at - before, &mut found);
        let expected = [&vec![0; before as usize][..], piece, &vec![0; after as usize]].concat();
        assert!(found == expected, "{form}: at {at}");
    }
}

fn check_extents(kind: &Kind, blob: &File, form: &str) {
    let Kind::File { size: SIZE, extents } = kind else { panic!("{form}: {kind:?}") };
    let byte = |at: u64| {
        let block = at / BLOCK as u64;
        let extent =
            extents.iter().find(|extent| (extent.from..extent.from + extent.blocks).contains(&block));
        let mut byte = [0];
        if let Some(extent) = extent {
            let at = (extent.at + (block - extent.from)) * BLOCK as u64 + at % BLOCK as u64;
            blob.read_exact_at(&mut byte, at).unwrap();
        }
        byte[0]
    };
    check(&mut |at, bytes| (at..).zip(bytes).for_each(|(at, to)| *to = byte(at)), form);
}

#[test]
fn a_directory_of_100_000_names_is_found_through() {
    let mut archive = Archive::new();
    for number in 0..100_000 {
        archive.file(format!("many/{number:x}-{}", "n".repeat(number % 60)), format!("{number}").as_bytes());
    }
    let scratch = Scratch::new();
    let (layers, mut blobs) = layers(&scratch, &[archive.end()]);
    let tree = Tree::merge(&layers).unwrap();
    let image = scratch.path("disk");
    disk(&image, &tree, &layers, &mut blobs);
    check_erofs(&image);
    match Mount::new("erofs", "ro", &image, scratch.path("mount")) {
        Err(why) => not_tested("a large directory as Linux sees it", &why),
        Ok(_mount) => {
            assert_eq!(fs::read_dir(scratch.path("mount/many")).unwrap().count(), 100_000);
            for number in (0..100_000).step_by(97) {
                let name = format!("mount/many/{number:x}-{}", "n".repeat(number % 60));
                assert_eq!(fs::read_to_string(scratch.path(&name)).unwrap(), number.to_string());
            }
        }
    }
    for number in [0, 1, 99_999] {
        let inode = tree.resolve(format!("/many/{number:x}-{}", "n".repeat(number % 60))).unwrap();
        assert_eq!(tree.read(inode, &mut blobs, 100).unwrap(), number.to_string().as_bytes());
    }
}
