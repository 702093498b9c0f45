//! A file system of a few files that any guest reads: ISO 9660 (ECMA-119) with long names (Joliet), written at once.

/// Bytes of a sector.
const SECTOR: usize = 2048;
/// Where things are, in sectors: after the system area come the descriptors, the path tables and the two root directories.
const DESCRIPTORS: usize = 16;
const TABLES: usize = 19;
const ROOTS: usize = 23;
const FILES: usize = 25;
/// A date (ECMA-119 §9.1.5), always the same, so that the same files give the same bytes: 1 January 1980.
const DATE: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];
/// No date (ECMA-119 §8.4.26.1).
const NO_DATE: [u8; 17] = *b"0000000000000000\0";
/// Joliet, level 3.
const ESCAPE: &[u8] = b"%/E";
/// Flag of a directory (ECMA-119 §9.1.6).
const DIRECTORY: u8 = 2;

/// A file: its name, at most 30 letters, digits and `-`, and its content.
pub(super) type File<'a> = (&'a str, &'a [u8]);

/// Names as one of the two trees has them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// In capitals, with a version.
    Plain,
    /// As they are, in 16 bits each.
    Joliet,
}

impl Tree {
    fn name(self, name: &str) -> Vec<u8> {
        match self {
            Tree::Plain => format!("{}.;1", name.to_ascii_uppercase()).into_bytes(),
            Tree::Joliet => wide(name),
        }
    }

    /// Text in a field of fixed length.
    fn field(self, text: &str, len: usize) -> Vec<u8> {
        let (mut bytes, space) = match self {
            Tree::Plain => (text.as_bytes().to_vec(), vec![b' ']),
            Tree::Joliet => (wide(text), wide(" ")),
        };
        while bytes.len() < len {
            bytes.extend(&space);
        }
        bytes.truncate(len);
        bytes
    }
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A number in both orders of bytes (ECMA-119 §7.3.3, §7.2.3).
fn both(number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    let [e, f, g, h] = number.to_be_bytes();
    [a, b, c, d, e, f, g, h]
}

fn both16(number: u16) -> [u8; 4] {
    let [a, b] = number.to_le_bytes();
    let [c, d] = number.to_be_bytes();
    [a, b, c, d]
}

/// The image with these files, with a label of at most 16 letters.
pub(super) fn image(label: &str, files: &[File<'_>]) -> Vec<u8> {
    let mut files = files.to_vec();
    files.sort_unstable();
    let mut places = Vec::new();
    let mut end = FILES;
    for (_, content) in &files {
        places.push(end as u32);
        end += content.len().div_ceil(SECTOR);
    }
    let mut image = vec![0; DESCRIPTORS * SECTOR];
    for (tree, kind) in [(Tree::Plain, 1), (Tree::Joliet, 2)] {
        image.extend(descriptor(tree, kind, label, end as u32));
    }
    image.extend(b"\xffCD001\x01");
    pad(&mut image);
    for root in [ROOTS, ROOTS + 1] {
        for little in [true, false] {
            image.extend(path_table(root as u32, little));
            pad(&mut image);
        }
    }
    for (tree, place) in [(Tree::Plain, ROOTS), (Tree::Joliet, ROOTS + 1)] {
        image.extend(record(&[0], place as u32, SECTOR as u32, DIRECTORY));
        image.extend(record(&[1], place as u32, SECTOR as u32, DIRECTORY));
        for ((name, content), place) in files.iter().zip(&places) {
            image.extend(record(&tree.name(name), *place, content.len() as u32, 0));
        }
        pad(&mut image);
    }
    for (_, content) in &files {
        image.extend(*content);
        pad(&mut image);
    }
    image
}

fn pad(image: &mut Vec<u8>) {
    image.resize(image.len().next_multiple_of(SECTOR), 0);
}

/// A volume descriptor (ECMA-119 §8.4, §8.5).
fn descriptor(tree: Tree, kind: u8, label: &str, sectors: u32) -> Vec<u8> {
    let root = if tree == Tree::Plain { ROOTS } else { ROOTS + 1 } as u32;
    let table = if tree == Tree::Plain { TABLES } else { TABLES + 2 } as u32;
    let mut data = vec![kind];
    data.extend(b"CD001\x01\0");
    data.extend(tree.field("", 32));
    data.extend(tree.field(label, 32));
    data.extend([0; 8]);
    data.extend(both(sectors));
    let escape = if tree == Tree::Joliet { ESCAPE } else { &[] };
    data.extend(escape);
    data.resize(data.len() + 32 - escape.len(), 0);
    data.extend(both16(1));
    data.extend(both16(1));
    data.extend(both16(SECTOR as u16));
    data.extend(both(10)); // the size of a path table of one directory
    data.extend(table.to_le_bytes());
    data.extend([0; 4]);
    data.extend((table + 1).to_be_bytes());
    data.extend([0; 4]);
    data.extend(record(&[0], root, SECTOR as u32, DIRECTORY));
    for len in [128, 128, 128, 128, 37, 37, 37] {
        data.extend(tree.field("", len));
    }
    for _ in 0..4 {
        data.extend(NO_DATE);
    }
    data.push(1);
    data.resize(SECTOR, 0);
    data
}

/// The path table of a root alone, in either order of bytes (ECMA-119 §9.4).
fn path_table(root: u32, little: bool) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = match little {
        true => (root.to_le_bytes(), 1u16.to_le_bytes()),
        false => (root.to_be_bytes(), 1u16.to_be_bytes()),
    };
    [1, 0, a, b, c, d, e, f, 0, 0]
}

/// A directory record (ECMA-119 §9.1).
fn record(name: &[u8], place: u32, len: u32, flags: u8) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(both(place));
    data.extend(both(len));
    data.extend(DATE);
    data.extend([flags, 0, 0]);
    data.extend(both16(1));
    data.push(name.len() as u8);
    data.extend(name);
    data.resize(data.len().next_multiple_of(2), 0);
    let total = data.len() as u8;
    if let Some(first) = data.first_mut() {
        *first = total;
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_image_is_whole_sectors_and_the_same_each_time() {
        let files: &[File<'_>] = &[("user-data", b"#cloud-config\n"), ("meta-data", &[b'x'; 5000])];
        let bytes = image("cidata", files);
        assert_eq!(bytes.len(), (FILES + 1 + 3) * SECTOR);
        assert_eq!(bytes, image("cidata", files));
        assert_eq!(bytes.get(16 * SECTOR + 40..16 * SECTOR + 46), Some(&b"cidata"[..]));
    }

    /// Debian's genisoimage has it.
    #[test]
    fn isoinfo_reads_it() {
        if Command::new("isoinfo").arg("-version").output().is_err() {
            println!("there is no isoinfo (genisoimage) here: not compared");
            return;
        }
        let path = std::env::temp_dir().join(format!("viv-iso-{}.iso", std::process::id()));
        let long = vec![b'y'; 3000];
        std::fs::write(&path, image("cidata", &[("user-data", b"hello"), ("network-config", &long)]))
            .unwrap();
        let isoinfo = |arguments: &[&str]| {
            let output = Command::new("isoinfo").arg("-i").arg(&path).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(isoinfo(&["-d"]).contains("Volume id: cidata"));
        let listed = isoinfo(&["-J", "-f"]);
        assert!(listed.contains("/user-data") && listed.contains("/network-config"), "{listed}");
        assert_eq!(isoinfo(&["-J", "-x", "/user-data"]), "hello");
        assert_eq!(isoinfo(&["-J", "-x", "/network-config"]).as_bytes(), long);
        assert_eq!(isoinfo(&["-x", "/USER-DATA.;1"]), "hello");
        std::fs::remove_file(path).unwrap();
    }
}
