//! Layers of images of containers, unpacked once and shared: what all images with a layer have of it.
//!
//! ```text
//! DIR/layers/HEX/lock     held exclusively by whoever unpacks it, shared by whoever makes an image of it
//! DIR/layers/HEX/part     what has come of it from a registry; a download goes on from there
//! DIR/layers/HEX/data     the contents of its files, each at a 4 KiB boundary; nobody writes to it again
//! DIR/layers/HEX/index    its entries (viv-rootfs)
//! DIR/layers/HEX/facts    written last: the layer is whole
//! ```
//! HEX is the digest of the layer as its registry has it.
use super::fault::{broken, io_fault};
use super::store::write_beside;
use crate::prune::on_disk;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use viv_model::{Fault, Kind};
use viv_oci::{Checked, Layer, Source, Watch};

/// How long what was begun to be downloaded is kept for somebody who goes on.
const PART_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often a download goes on after it broke off without a byte.
const TRIES: u32 = 4;

/// The layers of a store.
#[derive(Debug)]
pub(super) struct Layers {
    dir: PathBuf,
}

/// A layer that is there. While this lives, nobody removes it.
#[derive(Debug)]
pub(super) struct Unpacked {
    dir: PathBuf,
    /// What is known of it.
    pub(super) facts: Facts,
    _shared: File,
}

/// What is known of a layer that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// SHA-256 of the layer's archive without compression.
    pub(super) diff_id: String,
    /// Bytes of `data`.
    pub(super) data_bytes: u64,
    /// BLAKE3 of `data`.
    pub(super) data_blake3: String,
}

impl Unpacked {
    /// Its digest, hexadecimal.
    pub(super) fn hex(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The contents of its files.
    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its entries.
    pub(super) fn index(&self) -> Result<viv_rootfs::Layer, Fault> {
        let path = self.dir.join("index");
        let bytes = fs::read(&path).map_err(io_fault("read", &path))?;
        viv_rootfs::Layer::from_bytes(&bytes)
    }
}

impl Layers {
    pub(super) fn new(store: &Path) -> Layers {
        Layers { dir: store.join("layers") }
    }

    fn dir_of(&self, hex: &str) -> PathBuf {
        self.dir.join(hex)
    }

    /// The layer, if it is whole.
    pub(super) fn get(&self, hex: &str) -> Result<Option<Unpacked>, Fault> {
        let dir = self.dir_of(hex);
        if facts(&dir).is_none() {
            return Ok(None);
        }
        let Ok(file) = open_lock(&dir) else {
            // Somebody is just removing it.
            return Ok(None);
        };
        flock(&file, FlockOperation::LockShared).map_err(|error| io_fault("lock", &dir)(error.into()))?;
        Ok(facts(&dir).map(|facts| Unpacked { dir, facts, _shared: file }))
    }

    /// What the layer takes on the host's disk, bytes.
    pub(super) fn bytes_on_disk(&self, hex: &str) -> u64 {
        let files = ["data", "index"].map(|name| fs::metadata(self.dir_of(hex).join(name)));
        files.into_iter().flatten().map(|found| on_disk(&found)).sum()
    }

    /// Has the layer, from `source` if it is not there yet. Who else wants it meanwhile waits.
    pub(super) fn ensure(
        &self,
        source: &dyn Source,
        layer: &Layer,
        watch: &dyn Watch,
    ) -> Result<Unpacked, Fault> {
        let dir = self.dir_of(layer.digest.hex());
        loop {
            fs::create_dir_all(&dir).map_err(io_fault("make the directory", &dir))?;
            if let Some(there) = self.get(layer.digest.hex())? {
                check_content(layer, &there.facts.diff_id)?;
                watch.bytes(i64::try_from(layer.size).unwrap_or(i64::MAX));
                return Ok(there);
            }
            let file = open_lock(&dir)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Whoever had it may just have removed it, or have it unpacked.
                Ok(()) if !is_in(&file, &dir) || facts(&dir).is_some() => continue,
                Ok(()) => {
                    unpack(&dir, source, layer, watch)?;
                    // Not at once from one to the other: who removes what nobody has may come between.
                    flock(&file, FlockOperation::LockShared)
                        .map_err(|error| io_fault("lock", &dir)(error.into()))?;
                    if let Some(facts) = facts(&dir) {
                        return Ok(Unpacked { dir, facts, _shared: file });
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    if watch.cancelled() {
                        return Err(super::fault::cancelled());
                    }
                    watch.note("waiting for another download of the same");
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(error) => return Err(io_fault("lock", &dir)(error.into())),
            }
        }
    }

    /// Has a layer that was made here, whose files' contents are in `data`, a file of the store's own.
    pub(super) fn adopt(
        &self,
        hex: &str,
        data: &Path,
        layer: &viv_rootfs::Layer,
        diff_id: &str,
    ) -> Result<Unpacked, Fault> {
        let dir = self.dir_of(hex);
        loop {
            fs::create_dir_all(&dir).map_err(io_fault("make the directory", &dir))?;
            if let Some(there) = self.get(hex)? {
                return Ok(there);
            }
            let file = open_lock(&dir)?;
            let lock = |how| flock(&file, how).map_err(|error| io_fault("lock", &dir)(error.into()));
            lock(FlockOperation::LockExclusive)?;
            if !is_in(&file, &dir) || facts(&dir).is_some() {
                continue;
            }
            // Copied, not moved: should somebody remove it before it is held, it is made once more.
            let _ = fs::remove_file(dir.join("data"));
            super::instance::copy(data, &dir.join("data")).map_err(io_fault("copy", data))?;
            whole(&dir, &keep(&dir, layer, diff_id)?)?;
            lock(FlockOperation::LockShared)?;
            if let Some(facts) = facts(&dir) {
                return Ok(Unpacked { dir, facts, _shared: file });
            }
        }
    }

    /// Removes the layers that no image has: what was begun only if it is old, or `all`.
    pub(super) fn collect_garbage(&self, wanted: &BTreeSet<String>, all: bool) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if !wanted.contains(entry.file_name().to_string_lossy().as_ref()) {
                remove(&entry.path(), all);
            }
        }
    }

    /// Removes one that no image has, unless somebody is about to use it.
    pub(super) fn remove(&self, hex: &str) {
        remove(&self.dir_of(hex), true);
    }
}

/// Removes a layer that nobody uses, also one that is half there if it is old or `all` is said.
fn remove(dir: &Path, all: bool) {
    let Ok(file) = open_lock(dir) else { return };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    let age = fs::metadata(dir.join("part")).and_then(|found| found.modified());
    let age = age.map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
    if all || !age.is_ok_and(|age| age < PART_AGE_MAX) {
        // The mark that it is whole goes first.
        let _ = fs::remove_file(dir.join("facts"));
        let _ = fs::remove_dir_all(dir);
    }
}

fn open_lock(dir: &Path) -> Result<File, Fault> {
    let path = dir.join("lock");
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_fault("open the lock", &path))
}

/// Whether `file` is still the directory's lock.
fn is_in(file: &File, dir: &Path) -> bool {
    let identity = |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
    let ours = identity(file.metadata());
    ours.is_some() && ours == identity(fs::metadata(dir.join("lock")))
}

/// What is known of the layer in `dir`, if it is whole. One whose facts cannot be read, or whose data is cut off, is none: it is got
/// again.
fn facts(dir: &Path) -> Option<Facts> {
    let facts: Facts = serde_json::from_slice(&fs::read(dir.join("facts")).ok()?).ok()?;
    let whole = |found: fs::Metadata| found.len() == facts.data_bytes;
    fs::metadata(dir.join("data")).is_ok_and(whole).then_some(facts)
}

/// A stream whose content without compression is summed as it passes.
struct Summed<R> {
    inner: R,
    sum: Sha256,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sum.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// A stream that tells how much of it has passed.
struct Told<R> {
    inner: R,
    bytes: std::sync::mpsc::Sender<u64>,
}

impl<R: Read> Read for Told<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let _ = self.bytes.send(read as u64);
        Ok(read)
    }
}

/// What has come of a file that is being downloaded.
#[derive(Default)]
struct Come {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
    /// Nobody wants the rest.
    useless: AtomicBool,
}

impl Come {
    fn set(&self, bytes: u64, ended: bool) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (bytes, ended);
        self.changed.notify_all();
    }
}

/// Reads a file while it is downloaded.
struct Following {
    file: File,
    at: u64,
    come: Arc<Come>,
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.come.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 <= self.at && !state.1 {
            state = self.come.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let there = usize::try_from(state.0.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        drop(state);
        let read = self.file.read_at(buffer.get_mut(..there).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Gets and unpacks a layer into `dir`, whose lock is ours.
fn unpack(dir: &Path, source: &dyn Source, layer: &Layer, watch: &dyn Watch) -> Result<(), Fault> {
    let part = dir.join("part");
    if !source.is_remote() {
        let blob = source.blob(&layer.descriptor, 0, watch)?;
        let checked = Checked::new(blob.reader, layer.digest.clone(), layer.size);
        let (told, passed) = std::sync::mpsc::channel();
        let stream = Box::new(Told { inner: checked, bytes: told });
        let facts = unpack_stream(dir, stream, layer, source, watch, &passed)?;
        return whole(dir, &facts);
    }
    let file =
        File::options().read(true).append(true).create(true).open(&part).map_err(io_fault("write", &part))?;
    let follower = File::open(&part).map_err(io_fault("read", &part))?;
    let come = Arc::new(Come::default());
    let stream = Box::new(Following { file: follower, at: 0, come: come.clone() });
    let (_told, passed) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // What comes is unpacked at once, and counts for nothing until its digest is right.
        let downloaded = scope.spawn(|| {
            let outcome = download(file, &part, source, layer, watch, &come);
            let bytes = fs::metadata(&part).map(|found| found.len()).unwrap_or_default();
            come.set(bytes, true);
            outcome
        });
        let unpacked = unpack_stream(dir, stream, layer, source, watch, &passed);
        come.useless.store(unpacked.is_err(), Ordering::Relaxed);
        let downloaded = downloaded.join().unwrap_or_else(|_| Err(broken("the download", "it broke off")));
        match (downloaded, unpacked) {
            (Ok(true), Ok(facts)) => whole(dir, &facts),
            (Err(fault), _) => Err(fault),
            (Ok(_), Err(fault)) => {
                // What has come is good for nothing, unless it was given up: it is not gone on with.
                if !watch.cancelled() {
                    let _ = fs::remove_file(&part);
                }
                Err(fault)
            }
            (Ok(false), Ok(_)) => Err(super::fault::cancelled()),
        }
    })
}

/// Marks a layer as whole: everything of it is on the disk.
fn whole(dir: &Path, facts: &Facts) -> Result<(), Fault> {
    let text = serde_json::to_vec(facts).map_err(|error| broken("what is known of a layer", error))?;
    write_beside(&dir.join("facts"), &text)?;
    let _ = fs::remove_file(dir.join("part"));
    Ok(())
}

/// Unpacks a layer from its bytes; `passed` tells how many of them have passed, if nobody else does.
fn unpack_stream(
    dir: &Path,
    stream: Box<dyn Read + Send>,
    layer: &Layer,
    source: &dyn Source,
    watch: &dyn Watch,
    passed: &Receiver<u64>,
) -> Result<Facts, Fault> {
    let data = dir.join("data");
    let in_layer = |fault: Fault| Fault {
        message: format!("layer {} of {}: {}", layer.digest, source.name(), fault.message),
        ..fault
    };
    let mut archive =
        Summed { inner: viv_rootfs::Decompress::new(stream).map_err(in_layer)?, sum: Sha256::new() };
    // VMs may have links to what an earlier try has left.
    let _ = fs::remove_file(&data);
    let mut out = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&data)
        .map_err(io_fault("write", &data))?;
    let mut look = |_| {
        passed.try_iter().for_each(|bytes| watch.bytes(i64::try_from(bytes).unwrap_or_default()));
        if watch.cancelled() { Err(super::fault::cancelled()) } else { Ok(()) }
    };
    let unpacked = viv_rootfs::unpack(&mut archive, &mut out, &viv_rootfs::Limits::default(), &mut look);
    let unpacked = unpacked.map_err(in_layer)?;
    // What is behind the archive's end belongs to its digest, too.
    io::copy(&mut archive, &mut io::sink()).map_err(|error| in_layer(broken("its archive", error)))?;
    let diff_id = super::store::hex(&archive.sum.finalize());
    look(0)?;
    check_content(layer, &diff_id).map_err(in_layer)?;
    drop(out);
    keep(dir, &unpacked, &diff_id)
}

/// Whether a layer's archive is what the image says that it is.
fn check_content(layer: &Layer, diff_id: &str) -> Result<(), Fault> {
    match &layer.diff_id {
        Some(wanted) if wanted.hex() != diff_id => {
            Err(broken("its content", format_args!("it is sha256:{diff_id}, and is to be {wanted}")))
        }
        _ => Ok(()),
    }
}

/// Writes a layer's entries beside its contents, and makes sure that both are on the disk.
fn keep(dir: &Path, layer: &viv_rootfs::Layer, diff_id: &str) -> Result<Facts, Fault> {
    let (data, index) = (dir.join("data"), dir.join("index"));
    fs::write(&index, layer.to_bytes()).map_err(io_fault("write", &index))?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o444)).map_err(io_fault("write", &data))?;
    let (data_blake3, data_bytes) = blake3_file(&data).map_err(io_fault("read", &data))?;
    let sync =
        |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(io_fault("sync", path));
    sync(&index)?;
    sync(&data)?;
    Ok(Facts { diff_id: diff_id.to_string(), data_bytes, data_blake3 })
}

/// BLAKE3 of a file in hexadecimal, and its length.
pub(super) fn blake3_file(path: &Path) -> io::Result<(String, u64)> {
    let mut sum = blake3::Hasher::new();
    let bytes = io::copy(&mut File::open(path)?, &mut sum)?;
    Ok((sum.finalize().to_hex().to_string(), bytes))
}

/// Has the layer's bytes in the file `path`, checked.
pub(super) fn get(path: &Path, source: &dyn Source, layer: &Layer, watch: &dyn Watch) -> Result<(), Fault> {
    let file = File::options().read(true).append(true).create(true).open(path);
    download(file.map_err(io_fault("write", path))?, path, source, layer, watch, &Come::default()).map(drop)
}

/// Has the layer's bytes in the file `part`, checked; false if nobody wants them any more.
fn download(
    mut file: File,
    part: &Path,
    source: &dyn Source,
    layer: &Layer,
    watch: &dyn Watch,
    come: &Come,
) -> Result<bool, Fault> {
    let fault = io_fault("write", part);
    let mut have = file.metadata().map_err(&fault)?.len();
    if have > layer.size {
        file.set_len(0).map_err(&fault)?;
        have = 0;
    }
    let mut sum = Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut sum)).map_err(&fault)?;
    watch.bytes(i64::try_from(have).unwrap_or(i64::MAX));
    come.set(have, false);
    let mut piece = vec![0; 256 << 10];
    let mut failures = 0;
    while have < layer.size {
        let blob = source.blob(&layer.descriptor, have, watch)?;
        // A server that cannot begin in the middle gives what we have once more.
        let mut skip = have - blob.from.min(have);
        let mut reader = blob.reader;
        let before = have;
        let broke = loop {
            if watch.cancelled() {
                return Err(super::fault::cancelled());
            }
            if come.useless.load(Ordering::Relaxed) {
                return Ok(false);
            }
            match reader.read(&mut piece) {
                Ok(0) => break "it ended too early".to_string(),
                Ok(read) => {
                    let skipped = skip.min(read as u64);
                    skip -= skipped;
                    let new = piece.get(skipped as usize..read).unwrap_or_default();
                    if new.len() as u64 > layer.size - have {
                        file.set_len(0).map_err(&fault)?;
                        return Err(damaged(source, layer, "it is longer than its manifest says"));
                    }
                    file.write_all(new).map_err(&fault)?;
                    sum.update(new);
                    have += new.len() as u64;
                    watch.bytes(new.len() as i64);
                    come.set(have, false);
                    if have == layer.size {
                        break String::new();
                    }
                }
                Err(error) => break error.to_string(),
            }
        };
        failures = if have > before { 0 } else { failures + 1 };
        if have < layer.size && failures >= TRIES {
            return Err(Fault::new(
                Kind::Error,
                format!("layer {} of {} breaks off again and again: {broke}", layer.digest, source.name()),
                "try again when the network is better; what has come is kept",
            ));
        }
    }
    let found: String = super::store::hex(&sum.finalize());
    if found != layer.digest.hex() {
        file.set_len(0).map_err(&fault)?;
        return Err(damaged(source, layer, &format!("its content is sha256:{found}")));
    }
    Ok(true)
}

fn damaged(source: &dyn Source, layer: &Layer, why: &str) -> Fault {
    Fault::new(
        Kind::Error,
        format!("layer {} of {} is damaged: {why}", layer.digest, source.name()),
        "try again; if it stays so, the registry lies or is broken: tell whoever runs it",
    )
}

/// Sums what is written to it.
struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use viv_oci::{Blob, Descriptor};

    /// A registry with one layer, which breaks off after `cut` bytes as often as `breaks` says.
    struct Registry {
        bytes: Vec<u8>,
        cut: usize,
        breaks: AtomicUsize,
        asked_from: Mutex<Vec<u64>>,
    }

    struct Broken(io::Cursor<Vec<u8>>, bool);

    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 if self.1 => Err(io::ErrorKind::ConnectionReset.into()),
                read => Ok(read),
            }
        }
    }

    impl Source for Registry {
        fn name(&self) -> String {
            "registry".into()
        }
        fn top(&self, _: &dyn Watch) -> Result<Vec<u8>, Fault> {
            Ok(Vec::new())
        }
        fn document(&self, _: &Descriptor, _: &dyn Watch) -> Result<Vec<u8>, Fault> {
            Ok(Vec::new())
        }
        fn blob(&self, _: &Descriptor, from: u64, _: &dyn Watch) -> Result<Blob, Fault> {
            self.asked_from.lock().unwrap().push(from);
            let rest = self.bytes[from as usize..].to_vec();
            let breaks = self.breaks.load(Ordering::Relaxed) > 0;
            let rest = if breaks { rest[..self.cut.min(rest.len())].to_vec() } else { rest };
            if breaks {
                self.breaks.fetch_sub(1, Ordering::Relaxed);
            }
            Ok(Blob { from, reader: Box::new(Broken(io::Cursor::new(rest), breaks)) })
        }
        fn is_remote(&self) -> bool {
            true
        }
    }

    struct Quiet;

    impl Watch for Quiet {
        fn bytes(&self, _: i64) {}
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            false
        }
    }

    fn archive() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(100_000);
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", &vec![7u8; 100_000][..]).unwrap();
        tar.into_inner().unwrap()
    }

    fn layer_of(bytes: &[u8], digest: &[u8]) -> Layer {
        let digest = viv_oci::Digest::of(digest);
        Layer { digest, size: bytes.len() as u64, diff_id: None, descriptor: Descriptor::default() }
    }

    fn registry(bytes: Vec<u8>, breaks: usize) -> Registry {
        Registry { bytes, cut: 5000, breaks: breaks.into(), asked_from: Mutex::default() }
    }

    fn place(name: &str) -> (PathBuf, Layers) {
        let dir = std::env::temp_dir().join(format!("viv-layers-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        (dir.clone(), Layers::new(&dir))
    }

    #[test]
    fn a_download_goes_on_where_it_broke_off_and_the_layer_is_whole_at_last() {
        let (dir, layers) = place("resume");
        let bytes = archive();
        let layer = layer_of(&bytes, &bytes);
        let source = registry(bytes, 3);
        let there = layers.ensure(&source, &layer, &Quiet).unwrap();
        assert_eq!(*source.asked_from.lock().unwrap(), [0, 5000, 10_000, 15_000]);
        assert_eq!(there.index().unwrap().entries.len(), 1);
        assert!(fs::read(there.data()).unwrap().starts_with(&[7; 100_000]));
        // Nobody removes what somebody has.
        layers.collect_garbage(&BTreeSet::new(), true);
        assert!(layers.get(layer.digest.hex()).unwrap().is_some());
        drop(there);
        layers.collect_garbage(&BTreeSet::new(), true);
        assert!(layers.get(layer.digest.hex()).unwrap().is_none());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_not_what_its_digest_says_is_never_whole_nor_gone_on_with() {
        let (dir, layers) = place("lie");
        let bytes = archive();
        for bytes in [bytes.clone(), vec![7; bytes.len()]] {
            let lie = layer_of(&bytes, b"something else");
            let fault = layers.ensure(&registry(bytes, 0), &lie, &Quiet).unwrap_err();
            assert!(fault.message.contains("damaged"), "{fault}");
            assert!(layers.get(lie.digest.hex()).unwrap().is_none());
            let part = fs::metadata(layers.dir_of(lie.digest.hex()).join("part"));
            assert!(part.map_or(true, |part| part.len() == 0));
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_layer_that_was_damaged_here_is_got_again() {
        let (dir, layers) = place("mend");
        let bytes = archive();
        let layer = layer_of(&bytes, &bytes);
        let source = registry(bytes, 0);
        let own = layers.ensure(&source, &layer, &Quiet).unwrap().dir.clone();
        for damage in [("facts", &b"{"[..]), ("data", b"cut")] {
            fs::remove_file(own.join(damage.0)).unwrap();
            fs::write(own.join(damage.0), damage.1).unwrap();
            assert!(layers.get(layer.digest.hex()).unwrap().is_none());
            layers.ensure(&source, &layer, &Quiet).unwrap();
        }
        assert_eq!(source.asked_from.lock().unwrap().len(), 3);
        fs::remove_dir_all(dir).unwrap();
    }
}
