//! The tree that comes out is the one that `umoci unpack` makes as root: mode, owner, time, content, links, attributes.

use crate::archive::{Archive, Entry};
use crate::host::{Mount, Scratch, check_erofs, disk, installed, layers, listing, not_tested, tool};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tar::EntryType;
use viv_rootfs::Tree;

/// Capabilities of a file: CAP_NET_RAW, permitted and effective (include/uapi/linux/capability.h, VFS_CAP_REVISION_2).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// An access list: owner rw-, user 1000 r--, group r--, mask r--, others none (include/uapi/linux/posix_acl_xattr.h).
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

pub(crate) fn lower() -> Vec<u8> {
    let mut archive = Archive::new();
    archive.add("./", Entry { mode: 0o711, owner: (3, 4), mtime: 5, ..Entry::DIRECTORY });
    for path in
        ["bin", "etc", "etc/deep", "etc/deep/er", "var", "opaque", "opaque/sub", "gone", "gone/sub", "dev"]
    {
        archive.directory(path);
    }
    archive.add("tmp", Entry { mode: 0o1777, ..Entry::DIRECTORY });
    archive.add("bin/su", Entry { mode: 0o4755, content: b"set-ID", ..Entry::FILE });
    archive.add("bin/wall", Entry { mode: 0o2755, owner: (0, 5), content: &[7; 10_000], ..Entry::FILE });
    archive
        .add("bin/ping", Entry { pax: &[("SCHILY.xattr.security.capability", CAPABILITY)], ..Entry::FILE });
    let attributes: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.bytes", b"a\nb\0c=d"),
        ("SCHILY.xattr.trusted.name", b"value"),
        ("SCHILY.xattr.system.posix_acl_access", ACL),
        ("mtime", b"1234567890.123456789"),
    ];
    archive.add("etc/attributes", Entry { mode: 0o640, content: b"some", pax: attributes, ..Entry::FILE });
    archive.add("etc/deep/attributes", Entry { pax: &attributes[..2], ..Entry::DIRECTORY });
    archive.add("etc/old", Entry { pax: &[("mtime", b"-86399.5")], ..Entry::FILE });
    archive.add("etc/owner", Entry { pax: &[("uid", b"4000000"), ("gid", b"3000000")], ..Entry::FILE });
    archive.file("etc/passwd", b"root:x:0:0::/:/bin/sh\n").file("etc/shadow", b"root:*:::::::\n");
    archive.file("etc/deep/er/file", &[1; 4096]).file("etc/twice", b"first").file("etc/twice", b"second");
    archive.hardlink("etc/passwd-", "etc/passwd").hardlink("var/passwd", "./etc/../etc/passwd");
    archive.symlink("sbin", "bin").symlink("etc/absolute", "/etc/deep").symlink("etc/up", "../../../../var");
    archive.symlink("etc/loop", "loop").symlink("etc/dangling", "/nowhere/at/all");
    archive.symlink("etc/long", &"long/".repeat(300)).hardlink("etc/link-", "etc/dangling");
    archive.file("opaque/a", b"a").file("opaque/sub/b", b"b").file("gone/a", b"a").file("gone/sub/b", b"b");
    archive.file("becomes-directory", b"file").directory("becomes-file").file("becomes-file/in", b"in");
    // umoci keeps no time of a directory in which it makes one that comes only later.
    archive.directory(b"not\xffutf\xfe8").directory("d");
    archive.file("n".repeat(255), b"255 bytes").file(b"not\xffutf\xfe8/\xc3\x28", b"bytes");
    archive.directory(format!("d/{}", "e".repeat(255)));
    archive.add("dev/null", Entry { kind: EntryType::Char, mode: 0o666, device: (1, 3), ..Entry::FILE });
    archive
        .add("dev/disk", Entry { kind: EntryType::Block, mode: 0o660, device: (259, 70_000), ..Entry::FILE });
    archive.add("dev/pipe", Entry { kind: EntryType::Fifo, mode: 0o600, ..Entry::FILE });
    archive.file("zeros", &[0; 70_000]);
    archive.file("holes", &[&[0; 8192][..], &[1; 5000], &[0; 4096 * 5], &[2; 1]].concat());
    archive.end()
}

pub(crate) fn upper() -> Vec<u8> {
    let mut archive = Archive::new();
    archive.add("etc", Entry { mode: 0o700, owner: (1, 1), mtime: 77, ..Entry::DIRECTORY });
    // Whiteouts come before and behind what the layer itself brings.
    archive.directory("gone").file("gone/new", b"new").file(".wh.gone", b"");
    archive.directory("opaque").file("opaque/mine", b"mine").file("opaque/.wh..wh..opq", b"");
    archive.directory("opaque/sub").file("opaque/sub/later", b"later");
    archive.file("etc/.wh.shadow", b"").file("etc/.wh.never-was", b"").file("nowhere/.wh.never-was", b"");
    archive.hardlink("bin/passwd-of-below", "etc/passwd").add("becomes-directory", Entry::DIRECTORY);
    archive.file("becomes-directory/in", b"in").file("becomes-file", b"file");
    // Through links of the lower layer, inside the root.
    archive.file("sbin/through", b"through").file("etc/absolute/through", b"through");
    archive.file("etc/up/through", b"through").file("etc/absolute/er/.wh.file", b"");
    archive.file("etc/twice", b"third");
    archive.end()
}

pub(crate) fn third() -> Vec<u8> {
    let mut archive = Archive::new();
    archive.file(".wh.tmp", b"").add("bin/su", Entry { mode: 0o755, content: b"new", ..Entry::FILE });
    archive.hardlink("var/su", "bin/su").file("etc/deep/.wh..wh..opq", b"").symlink("d", "etc");
    archive.directory("many");
    for number in 0..3000 {
        archive.file(format!("many/file-with-a-name-{number}"), b"");
    }
    archive.end()
}

/// An image in an OCI layout, for umoci.
fn layout(at: &Path, archives: &[Vec<u8>]) {
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&digest), bytes).unwrap();
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let layers: Vec<Value> = archives.iter().map(|bytes| blob(bytes, "layer.v1.tar")).collect();
    let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": digests } });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "test" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(at.join("index.json"), index.to_string()).unwrap();
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Both trees, and that fsck has nothing to say; `unnamed` are directories that no layer names: their time is umoci's own.
pub(crate) fn compare(archives: &[Vec<u8>], unnamed: &[&str]) {
    let scratch = Scratch::new();
    let (layers, mut blobs) = layers(&scratch, archives);
    let tree = Tree::merge(&layers).unwrap();
    let image = scratch.path("disk");
    disk(&image, &tree, &layers, &mut blobs);
    check_erofs(&image);
    let what = "a tree beside that of umoci";
    if !rustix::process::geteuid().is_root() {
        return not_tested(what, "umoci keeps owners and devices only as root");
    }
    if !installed("umoci") {
        return not_tested(what, "umoci is not installed");
    }
    let mount = match Mount::new("erofs", "ro", &image, scratch.path("ours")) {
        Ok(mount) => mount,
        Err(why) => return not_tested(what, &why),
    };
    layout(&scratch.path("layout"), archives);
    let reference = format!("{}:test", scratch.path("layout").display());
    tool("umoci", &[&"unpack", &"--image", &reference, &scratch.path("bundle")]);
    let ours = listing(&scratch.path("ours"));
    let theirs = listing(&scratch.path("bundle/rootfs"));
    drop(mount);
    let without_time = |line: &str| {
        let (before, after) = line.split_once("changed ").unwrap();
        format!("{before}{}", after.split_once(',').unwrap().1)
    };
    let shown = |lines: &BTreeMap<Vec<u8>, String>| -> BTreeMap<String, String> {
        lines.iter().map(|(name, line)| (String::from_utf8_lossy(name).into_owned(), line.clone())).collect()
    };
    assert_eq!(shown(&ours).keys().collect::<Vec<_>>(), shown(&theirs).keys().collect::<Vec<_>>());
    for (name, line) in &ours {
        let text = String::from_utf8_lossy(name);
        let their = &theirs[name];
        if unnamed.contains(&&*text) {
            assert_eq!(without_time(line), without_time(their), "{text}");
        } else {
            assert_eq!(line, their, "{text}");
        }
    }
}

#[test]
fn awkward_layers_make_the_tree_that_umoci_makes() {
    compare(&[lower()], &[]);
    // A whiteout behind the directory that it empties leaves umoci's time there.
    compare(&[lower(), upper()], &["gone"]);
    compare(&[lower(), upper(), third()], &["gone"]);
}

#[test]
fn directories_that_no_layer_names_are_made() {
    let mut archive = Archive::new();
    archive.file("a/b/c/file", b"content").symlink("link", "x/../y/z").file("link/deep/file", b"content");
    compare(&[archive.end()], &["", "a", "a/b", "a/b/c", "y", "y/z", "y/z/deep"]);
}
