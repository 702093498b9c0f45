//! Images of whole computers in registries and archives (decision 118): an artifact whose layers are archives of one file each, the
//! kernel, the initial RAM disk and the disks, without their zeroes. What they are for is in its configuration.
use super::carry::{Written, write_layer};
use super::commit::Told;
use super::fault::{broken, cancelled, io_fault};
use super::layers::Unpacked;
use super::manifest::{Package, Usual};
use super::pull::{MANIFEST, Pulling, fetch};
use super::stack::Documents;
use super::store::Store;
use super::{DISK, DISK_QCOW2, INITRD, Image, KERNEL, Manifest, Watcher};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use viv_model::{DiskFormat, DiskSpec, Fault};
use viv_oci::{MACHINE, Watch as _};
use viv_rootfs::{Attributes, BLOCK, Entry, Extent, Kind, Layer};

/// The only file of a layer, by what it is; disks are in order.
const KERNEL_FILE: &[u8] = b"boot/kernel";
const INITRD_FILE: &[u8] = b"boot/initrd";
const DISK_FILE: &[u8] = b"disk/disk.raw";
/// Everybody may read it, where it is unpacked by others.
const MODE: u16 = 0o644;
/// What a disk is a multiple of, bytes.
const SECTOR: u64 = 512;
/// Bytes that are copied at once.
const PIECE: u64 = 64 << 20;
/// Least bytes of a disk that are content as a whole, and most of these pieces.
const UNIT_MIN: u64 = 64 << 10;
const UNITS_MAX: u64 = 1 << 16;
/// Most characters of what is said in words; of a command line as Linux takes it (arch/x86/include/asm/setup.h, COMMAND_LINE_SIZE).
const WORDS_MAX: usize = 2048;

/// What is said of it besides its files.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    architecture: String,
    os: String,
    /// In a line.
    summary: String,
    /// Words for the kernel's command line.
    append: String,
    usual: Usual,
    packages: Vec<Package>,
    labels: BTreeMap<String, String>,
    rootfs: Value,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            architecture: "amd64".to_string(),
            os: "linux".to_string(),
            summary: String::new(),
            append: String::new(),
            usual: Usual::default(),
            packages: Vec::new(),
            labels: BTreeMap::new(),
            rootfs: Value::Null,
        }
    }
}

/// Writes the image's parts as layers into `scratch`, each of which `each` takes away, with what it is in words; gives the documents over
/// them.
pub(super) fn leave(
    store: &Store,
    image: &Image,
    scratch: &Path,
    watcher: &dyn Watcher,
    each: &mut dyn FnMut(&Written, &str) -> Result<(), Fault>,
) -> Result<Documents, Fault> {
    let Manifest { kernel, initrd, disks, summary, append, usual, packages, labels, .. } = &image.manifest;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (number, part) in kernel.iter().chain(initrd).chain(disks).enumerate() {
        let (called, what) = match part.media_type.as_str() {
            KERNEL => (KERNEL_FILE, "the kernel"),
            INITRD => (INITRD_FILE, "the initial RAM disk"),
            _ => (DISK_FILE, "a disk"),
        };
        let (file, flat) = (store.part(image, part)?, scratch.join(format!("flat{number}")));
        let file = match part.media_type.as_str() {
            DISK_QCOW2 => {
                let disk = DiskSpec { path: file, format: Some(DiskFormat::Qcow2), ..DiskSpec::default() };
                let mut told = Told::new(watcher, format!("copying {what}"));
                super::commit::flat(&disk, &flat, DiskFormat::Raw, &mut told)?;
                flat.clone()
            }
            _ => file,
        };
        let layer = layer_of(&file, called, &mut Told::new(watcher, format!("looking what is on {what}")))?;
        let content = layer.data_blocks.saturating_mul(BLOCK as u64);
        let written = write_layer(
            (&layer, &file, content),
            scratch.join(format!("layer{number}")),
            format!("compressing {what}"),
            watcher,
        )?;
        each(&written, what)?;
        let _ = fs::remove_file(&written.file);
        let _ = fs::remove_file(&flat);
        layers.push(written.descriptor);
        diff_ids.push(written.diff_id);
    }
    let told = |error| broken("the image's configuration", error);
    let config = Config {
        summary: summary.clone(),
        append: append.clone(),
        usual: *usual,
        packages: packages.clone(),
        labels: labels.clone(),
        rootfs: json!({ "type": "layers", "diff_ids": diff_ids }),
        ..Config::default()
    };
    let config = serde_json::to_vec(&config).map_err(told)?;
    let digest = viv_oci::Digest::of(&config).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": MACHINE,
        "config": { "mediaType": MACHINE, "digest": digest, "size": config.len() },
        "layers": layers,
    });
    Ok(Documents { config, manifest: serde_json::to_vec(&manifest).map_err(told)? })
}

/// A layer of one file, whose content is where it is in the file; by what is in it, whatever the file system knows of holes.
fn layer_of(path: &Path, called: &[u8], told: &mut Told<'_>) -> Result<Layer, Fault> {
    let file = File::open(path).map_err(io_fault("read", path))?;
    let size = file.metadata().map_err(io_fault("read", path))?.len();
    told.total = Some(size);
    let mut extents = Vec::<Extent>::new();
    let unit = unit_of(size);
    let mut at = 0;
    while let Some(found) = next_data(&file, at).map_err(io_fault("read", path))? {
        let from = found - found % unit;
        at = from.saturating_add(unit).min(size);
        told.bytes(at)?;
        if is_zero(&file, from, at).map_err(io_fault("read", path))? {
            continue;
        }
        let [from, end] = [from, at].map(|byte| byte.div_ceil(BLOCK as u64));
        match extents.last_mut() {
            Some(last) if last.from.saturating_add(last.blocks) == from => last.blocks += end - from,
            _ => extents.push(Extent { from, at: from, blocks: end - from }),
        }
    }
    let attributes = Attributes { mode: MODE, ..Attributes::default() };
    let entry = Entry { path: called.to_vec(), attributes, kind: Kind::File { size, extents } };
    Ok(Layer { entries: vec![entry], data_blocks: size.div_ceil(BLOCK as u64) })
}

/// Bytes that are content as a whole or not at all: so many that a map of them is read again by everybody who reads archives.
fn unit_of(size: u64) -> u64 {
    size.div_ceil(UNITS_MAX).next_power_of_two().max(UNIT_MIN)
}

/// Where from `at` on there is something else than a hole, if there is.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        // Also at the file's end.
        Err(Errno::NXIO) => Ok(None),
        found => Ok(Some(found?)),
    }
}

/// Whether a part of it is all zero: how a file system keeps holes is not to be seen in the archive.
fn is_zero(file: &File, mut from: u64, to: u64) -> io::Result<bool> {
    let mut piece = vec![0; UNIT_MIN as usize];
    while from < to {
        let piece = piece.get_mut(..(to - from).min(UNIT_MIN) as usize).unwrap_or_default();
        file.read_exact_at(piece, from)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        from += piece.len() as u64;
    }
    Ok(true)
}

/// Makes an image of what is somewhere else.
pub(super) fn arrive(
    store: &Store,
    name: &str,
    key: String,
    source: &dyn viv_oci::Source,
    found: &viv_oci::Image,
    pulling: &Pulling<'_>,
) -> Result<Image, Fault> {
    let config: Config =
        serde_json::from_slice(&found.config_text).map_err(|error| broken("its configuration", error))?;
    for (what, text) in [("summary", &config.summary), ("command line", &config.append)] {
        if text.len() > WORDS_MAX || text.chars().any(char::is_control) {
            return Err(broken(name, format!("its {what} is no line of {WORDS_MAX} characters at most")));
        }
    }
    let layers = fetch(&store.layers(), source, &found.layers, pulling)?;
    let image = publish(store, (name, key), config, &layers, pulling);
    // Their content is in the parts now, or good for nothing.
    let digests: Vec<String> = layers.iter().map(Unpacked::hex).collect();
    drop(layers);
    store.drop_layers(&digests, &store.index_lock()?);
    image
}

/// Makes an image of these layers.
fn publish(
    store: &Store,
    (name, key): (&str, String),
    config: Config,
    layers: &[Unpacked],
    pulling: &Pulling<'_>,
) -> Result<Image, Fault> {
    pulling.note("unpacking its disks");
    let scratch = store.pull_scratch()?;
    let mut files = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = scratch.path().join(format!("part{number}"));
        let kind = unpack(layer, &path, pulling).map_err(|fault| Fault {
            message: format!("layer {} of {name}: {}", layer.hex(), fault.message),
            ..fault
        })?;
        files.push((path, kind));
    }
    let count = |wanted: &str| files.iter().filter(|(_, kind)| *kind == wanted).count();
    if count(KERNEL) > 1 || count(INITRD) > 1 || count(KERNEL) + count(DISK) == 0 {
        return Err(broken(
            name,
            "a machine has a kernel or a disk, and one kernel and initial RAM disk at most",
        ));
    }
    let index = store.index_lock()?;
    let mut manifest = Manifest {
        key,
        created: super::pull::now(),
        summary: config.summary,
        append: config.append,
        usual: config.usual,
        packages: config.packages,
        labels: config.labels,
        ..Manifest::bare()
    };
    for (path, kind) in files {
        let part = store.add_file(&path, kind, &index)?;
        match kind {
            KERNEL => manifest.kernel = Some(part),
            INITRD => manifest.initrd = Some(part),
            _ => manifest.disks.push(part),
        }
    }
    store.publish_in(name, &manifest, &index)
}

/// Writes a layer's only file to `to`; tells what it is.
fn unpack(layer: &Unpacked, to: &Path, pulling: &Pulling<'_>) -> Result<&'static str, Fault> {
    let index = layer.index()?;
    let [Entry { path, kind: Kind::File { size, extents }, .. }] = index.entries.as_slice() else {
        return Err(broken("the layer", "it is not one file"));
    };
    let kind = match path.as_slice() {
        KERNEL_FILE => KERNEL,
        INITRD_FILE => INITRD,
        DISK_FILE if *size > 0 && size.is_multiple_of(SECTOR) => DISK,
        DISK_FILE => return Err(broken("the disk", format!("{size} bytes are no disk's"))),
        _ => return Err(broken("the layer", "it is no part of a machine")),
    };
    let content = extents.iter().fold(0u64, |sum, extent| sum.saturating_add(extent.blocks));
    super::need_space(to.parent().unwrap_or(to), content.saturating_mul(BLOCK as u64))?;
    let path = layer.data();
    let mut data = File::open(&path).map_err(io_fault("read", &path))?;
    let mut out = File::create_new(to).map_err(io_fault("write", to))?;
    out.set_len(*size).map_err(io_fault("write", to))?;
    for extent in extents {
        let [from, at, bytes] =
            [extent.from, extent.at, extent.blocks].map(|blocks| blocks.saturating_mul(BLOCK as u64));
        let bytes = bytes.min(size.saturating_sub(from));
        data.seek(io::SeekFrom::Start(at)).map_err(io_fault("read", &path))?;
        out.seek(io::SeekFrom::Start(from)).map_err(io_fault("write", to))?;
        let mut left = bytes;
        while left > 0 {
            if pulling.cancelled() {
                return Err(cancelled());
            }
            let copied =
                io::copy(&mut (&data).take(left.min(PIECE)), &mut out).map_err(io_fault("write", to))?;
            if copied == 0 {
                return Err(broken("the layer", "its data ends early"));
            }
            left = left.saturating_sub(copied);
        }
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Images, Unwatched};
    use std::path::PathBuf;
    use viv_oci::Digest;

    /// A layout with a machine of these layers, each an archive of files.
    fn layout(dir: &Path, config: &Value, layers: &[Vec<(&str, &[u8])>]) -> PathBuf {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let blob = |bytes: &[u8], kind: &str| {
            let digest = Digest::of(bytes);
            fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
            json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() })
        };
        let layers = layers.iter().map(|files| {
            let mut tar = tar::Builder::new(Vec::new());
            for (name, bytes) in files {
                let mut header = tar::Header::new_ustar();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                tar.append_data(&mut header, name, *bytes).unwrap();
            }
            blob(&tar.into_inner().unwrap(), "application/vnd.oci.image.layer.v1.tar")
        });
        let layers: Vec<Value> = layers.collect();
        let config = blob(config.to_string().as_bytes(), MACHINE);
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        let manifest = blob(manifest.to_string().as_bytes(), MANIFEST);
        fs::write(dir.join("index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string())
            .unwrap();
        dir.to_path_buf()
    }

    #[test]
    fn holes_are_what_is_zero() {
        let path = std::env::temp_dir().join(format!("viv-machine-holes-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        // Zeroes that are written are a hole as well; the last piece is short.
        let size = 5 * UNIT_MIN + 512;
        file.write_all_at(&vec![0; size as usize], 0).unwrap();
        for at in [UNIT_MIN + 100, 2 * UNIT_MIN, 5 * UNIT_MIN] {
            file.write_all_at(b"x", at).unwrap();
        }
        let layer = layer_of(&path, DISK_FILE, &mut Told::new(&Unwatched, String::new())).unwrap();
        let blocks = UNIT_MIN / BLOCK as u64;
        let extents = vec![
            Extent { from: blocks, at: blocks, blocks: 2 * blocks },
            Extent { from: 5 * blocks, at: 5 * blocks, blocks: 1 },
        ];
        assert_eq!(layer.entries[0].kind, Kind::File { size, extents });
        assert_eq!(layer.data_blocks, 5 * blocks + 1);
        file.set_len(0).unwrap();
        let none = layer_of(&path, DISK_FILE, &mut Told::new(&Unwatched, String::new())).unwrap();
        assert_eq!(none.entries[0].kind, Kind::File { size: 0, extents: Vec::new() });
        assert_eq!((unit_of(1), unit_of(4 << 30), unit_of(64 << 30)), (UNIT_MIN, UNIT_MIN, 1 << 20));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_no_machine_is_refused_and_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("viv-machine-{}", std::process::id()));
        let images = Images::open(dir.join("images")).unwrap();
        let pull = |config: &Value, layers: &[Vec<(&str, &[u8])>]| {
            let layout = layout(&dir.join("layout"), config, layers);
            images.pull(&format!("oci:{}", layout.display()), Default::default(), &Unwatched)
        };
        let disk: (&str, &[u8]) = ("disk/disk.raw", &[7; 1024]);
        let kernel: (&str, &[u8]) = ("boot/kernel", b"one");
        let plain = json!({ "summary": "a box", "append": "quiet" });
        let image = pull(&plain, &[vec![kernel], vec![disk]]).unwrap().unwrap();
        assert_eq!((image.summary.as_str(), image.manifest.append.as_str()), ("a box", "quiet"));
        assert!(image.manifest.kernel.is_some() && image.manifest.disks.len() == 1);
        let disks_alone = pull(&plain, &[vec![disk], vec![disk]]).unwrap().unwrap();
        assert!(disks_alone.manifest.boots_itself() && disks_alone.manifest.disks.len() == 2);
        let before = images.list().unwrap();
        let refused = [
            (plain.clone(), vec![]),
            (plain.clone(), vec![vec![]]),
            (plain.clone(), vec![vec![kernel, disk]]),
            (plain.clone(), vec![vec![kernel], vec![kernel]]),
            (plain.clone(), vec![vec![("boot/initrd", b"alone")]]),
            (plain.clone(), vec![vec![("disk/disk.raw", &[7; 1000])]]),
            (plain.clone(), vec![vec![("disk/disk.raw", b"")]]),
            (plain.clone(), vec![vec![("etc/passwd", b"x")], vec![disk]]),
            (json!({ "append": "quiet\u{1b}[2J" }), vec![vec![disk]]),
            (json!({ "summary": "x".repeat(5000) }), vec![vec![disk]]),
            (json!({ "os": "linux", "architecture": "arm64" }), vec![vec![disk]]),
            (json!({ "labels": [] }), vec![vec![disk]]),
            (json!({ "rootfs": { "diff_ids": [format!("sha256:{:064}", 1)] } }), vec![vec![disk]]),
        ];
        for (config, layers) in refused {
            let Err(fault) = pull(&config, &layers) else { panic!("{config} {layers:?} is taken") };
            assert!(!fault.message.contains('\u{1b}'), "{fault:?}");
            assert_eq!(images.list().unwrap(), before, "{fault:?}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
