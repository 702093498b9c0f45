//! Archives that are made to do harm: each gives a fault with a way out, or a tree that is confined; nothing else is written.
use crate::archive::{Archive, Entry};
use crate::host::Scratch;
use crate::umoci::lower;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::{Cursor, Read, Write};
use tar::EntryType;
use viv_model::{Fault, Kind};
use viv_rootfs::{Content, Decompress, Limits, Tree, unpack};

const LIMITS: Limits = Limits { bytes: 8 << 20, entries: 2000, path_len: 4095, xattr_bytes: 64 << 10 };

/// Reads, merges and writes a layer.
fn tree(archive: impl Read + Send + 'static) -> Result<Tree, Fault> {
    let mut data = Cursor::new(Vec::new());
    let layer = unpack(Decompress::new(archive)?, &mut data, &LIMITS, &mut |_| Ok(()))?;
    assert_eq!(data.into_inner().len() as u64, layer.data_blocks * 4096);
    let tree = Tree::merge(std::slice::from_ref(&layer))?;
    tree.write_erofs(&mut Vec::new(), &[layer.data_blocks])?;
    Ok(tree)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A fault of `what`, in words, with a way out.
fn refused(name: &str, archive: Vec<u8>, words: &[&str]) {
    for bytes in [gzip(&archive), archive] {
        let fault = match tree(Cursor::new(bytes)) {
            Ok(_) => panic!("{name}: it is taken"),
            Err(fault) => fault,
        };
        assert!(
            words.iter().any(|word| fault.message.contains(word)) && !fault.fix.is_empty(),
            "{name}: {fault}"
        );
    }
}

/// What leads out of a root, in all the ways in which archives try it.
fn escapes() -> Vec<String> {
    let mut paths = Vec::new();
    for up in
        ["../", "../../../../../../../../", "./../", "a/../../", "/../", "//../..//", "a/b/../../../", "/"]
    {
        for end in ["canary", "tmp/canary", "etc/passwd"] {
            paths.push(format!("{up}{end}"));
        }
    }
    paths
}

#[test]
fn nothing_leaves_the_root() {
    let scratch = Scratch::new();
    let canary = scratch.path("canary");
    fs::write(&canary, "sings").unwrap();
    let outside = canary.to_str().unwrap().to_string();
    let mut count = 0;
    for path in escapes().into_iter().chain([outside.clone()]) {
        let end = path.rsplit('/').next().unwrap();
        let mut archives: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut made = |what, build: &dyn Fn(&mut Archive)| {
            let mut archive = Archive::new();
            build(&mut archive);
            archives.push((what, archive.end()));
        };
        made("a file", &|archive| {
            archive.file(&path, b"dead");
        });
        made("a directory's file", &|archive| {
            archive.directory(&path).file(format!("{path}/in"), b"dead");
        });
        made("a link, then a file through it", &|archive| {
            archive.symlink("link", &path).file("link/in", b"dead").file("link", b"dead");
        });
        made("a link to the directory, then a file through it", &|archive| {
            let parent = path.strip_suffix(end).unwrap();
            archive.symlink("link", if parent.is_empty() { "." } else { parent });
            archive.file(format!("link/{end}"), b"dead");
        });
        made("a link, then whiteouts through it", &|archive| {
            archive.symlink("link", &path).file("link/.wh.a", b"").file("link/.wh..wh..opq", b"");
        });
        for (what, archive) in archives {
            count += 1;
            let tree = tree(Cursor::new(archive)).unwrap_or_else(|fault| panic!("{what} {path}: {fault}"));
            for inode in tree.inodes() {
                let Content::Directory { names, .. } = &inode.content else { continue };
                for name in names.keys() {
                    assert!(
                        !name.is_empty() && !name.contains(&b'/') && name != b".." && name != b".",
                        "{what} {path}"
                    );
                }
            }
        }
        let mut archive = Archive::new();
        refused(&path, archive.hardlink("link", &path).file("link", b"dead").end(), &["which is not there"]);
        count += 1;
    }
    assert!(count > 100, "{count}");
    assert_eq!(fs::read_to_string(&canary).unwrap(), "sings");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
}

#[test]
fn an_archive_that_breaks_off_is_refused() {
    let archive = lower();
    let packed = gzip(&archive);
    // All records but those of the end.
    let length = archive.len() - archive.iter().rev().take_while(|byte| **byte == 0).count();
    let whole = tree(Cursor::new(archive.clone())).unwrap().inodes().len();
    let mut taken = 0;
    let cuts = (512..length / 512 * 512).step_by(512).flat_map(|at| [at, at + 1, at + 511]);
    for at in cuts.clone() {
        match tree(Cursor::new(archive[..at].to_vec())) {
            Err(fault) => assert!(fault.message.contains("breaks off"), "{at} bytes: {fault}"),
            // Between two members: some tools leave out the end. That something is missing, its digest tells.
            Ok(tree) => {
                assert!(tree.inodes().len() < whole, "{at} bytes: nothing is missing");
                taken += 1;
            }
        }
    }
    assert!(taken * 3 < cuts.count(), "{taken} are taken");
    refused("0 bytes", Vec::new(), &["empty"]);
    for at in (1..packed.len()).step_by(61) {
        let fault = tree(Cursor::new(packed[..at].to_vec())).unwrap_err();
        assert!(fault.message.contains("damaged"), "{fault}");
    }
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0x10;
    tree(Cursor::new(flipped)).unwrap_err();
}

#[test]
fn bombs_do_not_go_off() {
    let bombs = [
        ("zeros without end", {
            let mut archive = Archive::new();
            archive.file("zeros", &vec![0; 9 << 20]).end()
        }),
        ("entries without end", {
            let mut archive = Archive::new();
            for number in 0..2001 {
                archive.file(format!("{number}"), b"");
            }
            archive.end()
        }),
        ("a path without end", Archive::new().file("d/".repeat(3000), b"").end()),
        ("a target without end", Archive::new().symlink("link", &"d/".repeat(3000)).end()),
        ("attributes without end", {
            let value = [7; 40_000];
            let pax: [(&str, &[u8]); 2] = [("SCHILY.xattr.user.a", &value), ("SCHILY.xattr.user.b", &value)];
            Archive::new().add("file", Entry { pax: &pax, ..Entry::FILE }).end()
        }),
        ("a header without end", {
            let value = vec![b'a'; 5 << 20];
            Archive::new().add("file", Entry { pax: &[("comment", &value)], ..Entry::FILE }).end()
        }),
        ("a sparse file without end", {
            let pax: [(&str, &[u8]); 3] = [
                ("GNU.sparse.numblocks", b"0"),
                ("GNU.sparse.size", b"9223372036854775807"),
                ("GNU.sparse.map", b""),
            ];
            Archive::new().add("file", Entry { pax: &pax, ..Entry::FILE }).end()
        }),
        ("sparse files that fill the disk together", {
            let mut archive = Archive::new();
            for number in 0..1500 {
                // Content at the end of each granule of 256 MiB makes all of them take a place.
                let map: Vec<String> = (1..64u64).map(|at| format!("{},1", (at << 28) - 1)).collect();
                let map = map.join(",");
                let pax: [(&str, &[u8]); 2] =
                    [("GNU.sparse.size", b"17592186040320"), ("GNU.sparse.map", map.as_bytes())];
                archive.add(format!("{number}"), Entry { content: &[1; 63], pax: &pax, ..Entry::FILE });
            }
            archive.end()
        }),
    ];
    for (name, archive) in bombs {
        for bytes in [gzip(&archive), archive] {
            let Err(fault) = tree(Cursor::new(bytes)) else { panic!("{name}: it is taken") };
            assert_eq!(fault.kind, Kind::NoCapacity, "{name}: {fault}");
        }
    }
    // A stream of zeros that is never stored anywhere.
    let mut endless = GzEncoder::new(Vec::new(), Compression::fast());
    endless
        .write_all(&Archive::new().add("file", Entry { content: &vec![0; 64 << 20], ..Entry::FILE }).end())
        .unwrap();
    let endless = endless.finish().unwrap();
    assert!(endless.len() < 1 << 20);
    assert_eq!(tree(Cursor::new(endless)).unwrap_err().kind, Kind::NoCapacity);
}

#[test]
fn what_no_file_can_be_is_refused() {
    let long = "n".repeat(256);
    let add = |path: &str, entry: Entry<'_>| Archive::new().add(path, entry).end();
    let pax =
        |records: &[(&str, &[u8])]| add("file", Entry { content: b"1234", pax: records, ..Entry::FILE });
    let device =
        |major, minor| add("dev", Entry { kind: EntryType::Char, device: (major, minor), ..Entry::FILE });
    let mut wrong_sum = add("file", Entry::FILE);
    wrong_sum[3] ^= 1;
    let mut no_number = add("file", Entry::FILE);
    no_number[124..136].copy_from_slice(b"99999999999\0");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a long name", add(&long, Entry::FILE)),
        ("a long name on the way", add(&format!("{long}/file"), Entry::FILE)),
        ("a name with a zero", pax(&[("path", b"a\0b")])),
        ("a link to nothing", add("link", Entry::SYMLINK)),
        ("the root as a file", add("./", Entry { link: b"x", ..Entry::SYMLINK })),
        ("a hard link to itself", add("link", Entry { link: b"link", ..Entry::HARDLINK })),
        ("a hard link to the root", add("link", Entry { link: b"/", ..Entry::HARDLINK })),
        ("a hard link to a later file", Archive::new().hardlink("a", "b").file("b", b"").end()),
        ("a device of no driver", device(0x1000, 0)),
        ("a device of no number", device(1, 0x10_0000)),
        ("a whiteout of nothing", add("a/.wh.", Entry::FILE)),
        ("a whiteout of the parent", add("a/.wh...", Entry::FILE)),
        ("a whiteout of itself", add("a/.wh..", Entry::FILE)),
        ("another volume", add("file", Entry { kind: EntryType::new(b'M'), ..Entry::FILE })),
        ("a wrong checksum", wrong_sum),
        ("a size that is none", no_number),
        ("a record that is none", pax(&[("mtime", b"yesterday")])),
        ("an owner that is too large", pax(&[("uid", b"4294967296")])),
        ("a size with a sign", pax(&[("size", b"-1")])),
        ("a size that is too large", pax(&[("size", b"18446744073709551615")])),
        ("a map out of order", pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"50,2,10,2")])),
        ("a map behind the end", pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"98,4")])),
        (
            "a map that overflows",
            pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"18446744073709551615,4")]),
        ),
        ("a map of less", pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,3")])),
        ("a map of half a piece", pax(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,4,5")])),
        ("a map without a size", pax(&[("GNU.sparse.map", b"0,4")])),
        ("a map that is none", pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"100")])),
        ("an attribute that is too large", pax(&[("SCHILY.xattr.user.a", &[1; 65536])])),
        ("an attribute's name that is too long", pax(&[(&format!("SCHILY.xattr.user.{long}"), b"1")])),
        ("an attribute in no base64", pax(&[("LIBARCHIVE.xattr.user.a", b"!")])),
        ("no archive", vec![7; 5000]),
        ("a header that describes nothing", {
            let described = add("file", Entry { pax: &[("uid", b"1")], ..Entry::FILE });
            described[..1024].to_vec()
        }),
    ];
    for (name, archive) in cases {
        refused(name, archive, &["damaged", "refused"]);
    }
}
