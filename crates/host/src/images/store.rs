//! Blobs by content, names by an index, and nothing visible before it is whole.
//!
//! ```text
//! DIR/oci-layout            the version of this layout (OCI image layout specification 1.0)
//! DIR/index.json            name → manifest's digest
//! DIR/blobs/sha256/HEX      manifests and parts, never changed once they are there
//! DIR/layers/               layers of images of containers (layers.rs)
//! DIR/work/PID-N/           what a build is doing; cleared when nobody builds
//! DIR/pulls/PID-N/          the same of pulls, of which several may go on; cleared when the store is opened
//! DIR/cache/                downloaded packages and private package lists
//! DIR/lock                  held by whoever builds
//! DIR/index.lock            held by whoever adds blobs and names, or removes them
//! ```
use super::fault::{broken, cancelled, io_fault};
use super::layers::Layers;
use super::{Image, Manifest, Part, Watcher};
use crate::places::is_gone;
use crate::prune::on_disk;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use viv_api::operation::Progress;
use viv_model::{Fault, Kind};

/// The annotation that names a manifest (OCI image specification, annotations).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most bytes of an index or a manifest that we read.
const JSON_LEN_MAX: u64 = 16 << 20;

/// `index.json` (OCI image layout specification).
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The store's files. What changes them asks for the [`Lock`].
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
}

/// Held by the one who builds.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Held for the moment in which images come and go.
#[derive(Debug)]
pub(super) struct IndexLock {
    _file: File,
}

/// A directory for one build; it and everything in it goes away with this value.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Store {
    /// Opens the store, making it if need be; clears what interrupted builds left unless a build goes on.
    pub(super) fn open(dir: PathBuf) -> Result<Store, Fault> {
        // Other programs are given our paths, in directories of their own.
        let dir = std::path::absolute(&dir).map_err(io_fault("find", &dir))?;
        for part in ["blobs/sha256", "layers", "work", "pulls", "cache"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(io_fault("make the directory", &path))?;
        }
        let store = Store { dir };
        let layout = store.dir.join("oci-layout");
        if !layout.exists() {
            write_beside(&layout, b"{\"imageLayoutVersion\":\"1.0.0\"}\n")?;
        }
        if let Some(lock) = store.try_lock()? {
            store.clear_work(&lock);
        }
        store.clear_pulls();
        Ok(store)
    }

    /// Where the store is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The layers of images of containers.
    pub(super) fn layers(&self) -> Layers {
        Layers::new(&self.dir)
    }

    /// Where downloads and package lists are kept.
    pub(super) fn cache_dir(&self) -> PathBuf {
        self.dir.join("cache")
    }

    fn try_lock(&self) -> Result<Option<Lock>, Fault> {
        let path = self.dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_fault("open the lock", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io_fault("lock", &path)(error.into())),
        }
    }

    /// Waits until nobody else builds.
    pub(super) fn lock(&self, watcher: &dyn Watcher) -> Result<Lock, Fault> {
        loop {
            if let Some(lock) = self.try_lock()? {
                self.clear_work(&lock);
                return Ok(lock);
            }
            if watcher.cancelled() {
                return Err(cancelled());
            }
            let step = "waiting for another build".to_string();
            watcher.progress(Progress { step, done: 0, total: None, bytes: false });
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn clear_work(&self, _lock: &Lock) {
        let work = self.dir.join("work");
        for entry in fs::read_dir(&work).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }

    /// Clears what pulls of processes that are gone were doing.
    fn clear_pulls(&self) {
        for entry in fs::read_dir(self.dir.join("pulls")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(pid).exists() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// A directory for the build that holds `lock`.
    pub(super) fn scratch(&self, _lock: &Lock) -> Result<Scratch, Fault> {
        self.scratch_in("work")
    }

    /// A directory for a pull.
    pub(super) fn pull_scratch(&self) -> Result<Scratch, Fault> {
        self.scratch_in("pulls")
    }

    fn scratch_in(&self, part: &str) -> Result<Scratch, Fault> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(part).join(format!("{}-{count}", std::process::id()));
        fs::create_dir_all(&path).map_err(io_fault("make the directory", &path))?;
        Ok(Scratch { path })
    }

    /// Waits for the moment to add or remove.
    pub(super) fn index_lock(&self) -> Result<IndexLock, Fault> {
        let path = self.dir.join("index.lock");
        let fault = io_fault("open the lock", &path);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(&fault)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| fault(error.into()))?;
        Ok(IndexLock { _file: file })
    }

    /// Where the blob of `digest` is, if the digest has the form of one.
    pub(super) fn blob_path(&self, digest: &str) -> Result<PathBuf, Fault> {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(broken("the image store", format_args!("{digest:?} is no digest")));
        }
        Ok(self.dir.join("blobs/sha256").join(hex))
    }

    /// Moves a file of the store's own scratch directory among the blobs. No pull removes it before the build is done.
    pub(super) fn add_blob(&self, file: &Path, media_type: &str, _lock: &Lock) -> Result<Part, Fault> {
        self.add_file(file, media_type, &self.index_lock()?)
    }

    /// The same while blobs are added and an image is published.
    pub(super) fn add_file(&self, file: &Path, media_type: &str, _lock: &IndexLock) -> Result<Part, Fault> {
        let fault = io_fault("store", file);
        let (hex, size) = sha256_file(file).map_err(&fault)?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o444)).map_err(&fault)?;
        File::open(file).and_then(|file| file.sync_all()).map_err(&fault)?;
        let path = self.blob_path(&hex)?;
        fs::rename(file, &path).map_err(&fault)?;
        sync_dir(&path)?;
        Ok(Part { media_type: media_type.to_string(), digest: format!("sha256:{hex}"), size })
    }

    /// Makes `manifest` what `name` means. The last step of a build: afterwards the image is there.
    pub(super) fn publish(&self, name: &str, manifest: &Manifest, lock: &Lock) -> Result<Image, Fault> {
        let index = self.index_lock()?;
        let image = self.publish_in(name, manifest, &index)?;
        self.collect_garbage(lock, &index, false);
        Ok(image)
    }

    /// The same without removing what no image has: somebody may just build with it.
    pub(super) fn publish_in(
        &self,
        name: &str,
        manifest: &Manifest,
        lock: &IndexLock,
    ) -> Result<Image, Fault> {
        let text = serde_json::to_vec_pretty(manifest).map_err(|error| broken("the manifest", error))?;
        let scratch = self.pull_scratch()?;
        let file = scratch.path().join("manifest");
        fs::write(&file, &text).map_err(io_fault("write", &file))?;
        let part = self.add_file(&file, Manifest::MEDIA_TYPE, lock)?;
        self.point(name, part, lock)
    }

    /// Makes the manifest `part` what `name` means.
    fn point(&self, name: &str, part: Part, _lock: &IndexLock) -> Result<Image, Fault> {
        let mut index = self.index()?;
        index.schema_version = 2;
        index.manifests.retain(|entry| entry.annotations.get(REF_NAME).is_none_or(|old| old != name));
        index.manifests.push(Entry {
            media_type: part.media_type,
            digest: part.digest,
            size: part.size,
            annotations: BTreeMap::from([(REF_NAME.to_string(), name.to_string())]),
        });
        self.write_index(&index)?;
        self.get(name)?.ok_or_else(|| broken("the image store", format_args!("{name} is gone again")))
    }

    /// Lets `new` mean what `name` means.
    pub(super) fn tag(&self, name: &str, new: &str) -> Result<Option<Image>, Fault> {
        let lock = self.index_lock()?;
        let entry = self.index()?.manifests.into_iter().find(|entry| is_called(entry, name));
        let part =
            entry.map(|entry| Part { media_type: entry.media_type, digest: entry.digest, size: entry.size });
        part.map(|part| self.point(new, part, &lock)).transpose()
    }

    /// Forgets `name`; whether it was there.
    pub(super) fn remove(&self, name: &str, lock: &Lock) -> Result<bool, Fault> {
        let held = self.index_lock()?;
        let mut index = self.index()?;
        let before = index.manifests.len();
        index.manifests.retain(|entry| entry.annotations.get(REF_NAME).is_none_or(|old| old != name));
        if index.manifests.len() == before {
            return Ok(false);
        }
        self.write_index(&index)?;
        self.collect_garbage(lock, &held, false);
        Ok(true)
    }

    /// Removes what no image has, also what was begun and broken off: bytes that are free now.
    pub(super) fn prune(&self, lock: &Lock) -> Result<u64, Fault> {
        let before = self.bytes_on_disk();
        self.collect_garbage(lock, &self.index_lock()?, true);
        Ok(before.saturating_sub(self.bytes_on_disk()))
    }

    /// What builds have downloaded, which nobody uses while the lock is held.
    pub(super) fn downloads(&self, _lock: &Lock) -> Vec<PathBuf> {
        fs::read_dir(self.cache_dir()).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    fn bytes_on_disk(&self) -> u64 {
        fn below(dir: &Path) -> u64 {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|entry| match entry.metadata() {
                    Ok(found) if found.is_dir() => below(&entry.path()),
                    Ok(found) => on_disk(&found),
                    Err(_) => 0,
                })
                .sum()
        }
        ["blobs", "layers", "pulls"].iter().map(|part| below(&self.dir.join(part))).sum()
    }

    /// Every image, by name.
    pub(super) fn list(&self) -> Result<Vec<Image>, Fault> {
        let mut images = Vec::new();
        for entry in self.index()?.manifests {
            if let Some(name) = entry.annotations.get(REF_NAME) {
                images.push(self.load(name, &entry)?);
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The image called `name`.
    pub(super) fn get(&self, name: &str) -> Result<Option<Image>, Fault> {
        let index = self.index()?;
        let entry = index.manifests.iter().find(|entry| is_called(entry, name));
        entry.map(|entry| self.load(name, entry)).transpose()
    }

    fn load(&self, name: &str, entry: &Entry) -> Result<Image, Fault> {
        let path = self.blob_path(&entry.digest)?;
        let manifest: Manifest = read_json(&path)?;
        let of_parts: u64 = manifest
            .parts()
            .filter_map(|part| fs::metadata(self.blob_path(&part.digest).ok()?).ok())
            .map(|found| on_disk(&found))
            .sum();
        let layers = self.layers();
        let of_layers: u64 = manifest.layers().map(|layer| layers.bytes_on_disk(layer)).sum();
        let size_bytes = of_parts.saturating_add(of_layers);
        Ok(Image {
            name: name.to_string(),
            digest: entry.digest.trim_start_matches("sha256:").to_string(),
            created_at: manifest.created_at(),
            summary: manifest.summary.clone(),
            size_bytes,
            manifest,
        })
    }

    /// The blob of `part`, which must be there in full.
    pub(super) fn part(&self, image: &Image, part: &Part) -> Result<PathBuf, Fault> {
        let path = self.blob_path(&part.digest)?;
        match fs::metadata(&path) {
            Ok(found) if found.len() == part.size => Ok(path),
            _ => Err(Fault::new(
                Kind::Error,
                format!("the image {:?} is damaged: {} is not there in full", image.name, path.display()),
                format!("build it again: viv build --force {}", image.name),
            )),
        }
    }

    fn index(&self) -> Result<Index, Fault> {
        let path = self.dir.join("index.json");
        // What cannot be looked at may be there: it is not written anew.
        if is_gone(&path) { Ok(Index::default()) } else { read_json(&path) }
    }

    fn write_index(&self, index: &Index) -> Result<(), Fault> {
        let text = serde_json::to_vec_pretty(index).map_err(|error| broken("the index", error))?;
        write_beside(&self.dir.join("index.json"), &text)
    }

    /// Deletes those of these layers that no image has.
    pub(super) fn drop_layers(&self, digests: &[String], _lock: &IndexLock) {
        let Ok(images) = self.list() else { return };
        let is_wanted =
            |digest: &String| images.iter().any(|image| image.manifest.layers().any(|layer| layer == digest));
        digests.iter().filter(|digest| !is_wanted(digest)).for_each(|digest| self.layers().remove(digest));
    }

    /// Deletes blobs that no image has. VMs have their own links and copies.
    fn collect_garbage(&self, _lock: &Lock, _index: &IndexLock, all: bool) {
        let Ok(images) = self.list() else { return };
        let (mut wanted, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for image in &images {
            wanted.insert(image.digest.clone());
            wanted.extend(
                image.manifest.parts().map(|part| part.digest.trim_start_matches("sha256:").to_string()),
            );
            layers.extend(image.manifest.layers().cloned());
        }
        self.layers().collect_garbage(&layers, all);
        for entry in fs::read_dir(self.dir.join("blobs/sha256")).into_iter().flatten().flatten() {
            if !wanted.contains(entry.file_name().to_string_lossy().as_ref()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Fault> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(JSON_LEN_MAX).read_to_end(&mut text))
        .map_err(io_fault("read", path))?;
    serde_json::from_slice(&text).map_err(|error| {
        Fault::new(
            Kind::Error,
            format!("the image store's {} is damaged: {error}", path.display()),
            "delete that file and build the images again: viv build",
        )
    })
}

fn is_called(entry: &Entry, name: &str) -> bool {
    entry.annotations.get(REF_NAME).is_some_and(|known| known == name)
}

/// Writes beside, syncs and renames.
pub(super) fn write_beside(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let beside = path.with_extension(format!("new{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&beside);
        io_fault("write", path)(error)
    })?;
    sync_dir(path)
}

/// Makes sure that what was renamed to `path` stays so.
pub(super) fn sync_dir(path: &Path) -> Result<(), Fault> {
    let Some(dir) = path.parent() else { return Ok(()) };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_fault("sync", dir))
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of `bytes`, hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file in hexadecimal, and its length.
pub(super) fn sha256_file(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut sum = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        sum.update(piece.get(..read).unwrap_or_default());
    }
    Ok((hex(&sum.finalize()), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Unwatched;

    fn store() -> (PathBuf, Store) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("viv-store-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        (dir.clone(), Store::open(dir).unwrap())
    }

    fn publish(store: &Store, name: &str, content: &str) -> Image {
        let lock = store.lock(&Unwatched).unwrap();
        let scratch = store.scratch(&lock).unwrap();
        let file = scratch.path().join("kernel");
        fs::write(&file, content).unwrap();
        let kernel = store.add_blob(&file, "application/vnd.vivarium.kernel", &lock).unwrap();
        let manifest = Manifest {
            schema_version: 2,
            media_type: Manifest::MEDIA_TYPE.into(),
            key: "k".into(),
            created: 1,
            summary: "a test".into(),
            kernel: Some(kernel),
            initrd: None,
            disks: vec![],
            container: None,
            program: None,
            usual: Default::default(),
            append: String::new(),
            packages: vec![],
            labels: BTreeMap::new(),
        };
        store.publish(name, &manifest, &lock).unwrap()
    }

    fn blobs(dir: &Path) -> usize {
        fs::read_dir(dir.join("blobs/sha256")).unwrap().count()
    }

    #[test]
    fn images_are_found_by_name_and_replaced_whole() {
        let (dir, store) = store();
        publish(&store, "b", "one");
        let first = publish(&store, "a", "two");
        let names: Vec<String> = store.list().unwrap().into_iter().map(|image| image.name).collect();
        assert_eq!(names, ["a", "b"]);
        let second = publish(&store, "a", "three");
        assert_ne!(first.digest, second.digest);
        assert_eq!(store.get("a").unwrap().unwrap().digest, second.digest);
        assert_eq!(blobs(&dir), 4, "what nobody names any more is gone");
        let lock = store.lock(&Unwatched).unwrap();
        assert!(store.remove("a", &lock).unwrap());
        assert!(!store.remove("a", &lock).unwrap());
        assert_eq!(blobs(&dir), 2);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_an_interrupted_build_left_is_cleared_but_not_under_a_running_one() {
        let (dir, store) = store();
        let left = dir.join("work/1-1/half");
        fs::create_dir_all(&left).unwrap();
        let lock = store.lock(&Unwatched).unwrap();
        assert!(!left.exists());
        let scratch = store.scratch(&lock).unwrap();
        Store::open(dir.clone()).unwrap();
        assert!(scratch.path().exists());
        drop(lock);
        let path = scratch.path().to_path_buf();
        drop(scratch);
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn only_one_builds() {
        struct Impatient;
        impl Watcher for Impatient {
            fn progress(&self, _: Progress) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let (dir, store) = store();
        let _lock = store.lock(&Unwatched).unwrap();
        assert_eq!(store.lock(&Impatient).unwrap_err(), cancelled());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_damaged_store_says_so() {
        let (dir, store) = store();
        let image = publish(&store, "a", "content");
        let kernel = image.manifest.kernel.clone().unwrap();
        let path = store.part(&image, &kernel).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "cut").unwrap();
        assert!(store.part(&image, &kernel).unwrap_err().fix.contains("viv build --force a"));
        fs::write(dir.join("index.json"), "{").unwrap();
        assert!(store.list().unwrap_err().message.contains("index.json"));
        assert!(store.blob_path("sha256:../../etc/passwd").is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
