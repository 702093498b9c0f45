//! Layers on their way to an image of containers: what is below, what is added, and how it is run.
use super::commit::{Told, open};
use super::fault::{broken, cancelled, io_fault};
use super::layers::Unpacked;
use super::manifest::Container;
use super::store::{Scratch, Store, hex};
use super::{Image, Manifest, Part, Watcher, pull, step};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use viv_api::timestamp::Timestamp;
use viv_model::{DiskSpec, Fault};

/// Media type of a layer that we make.
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Where the agent puts what the guest changes, on its own disk.
const UPPER: &str = "root";

/// An image of containers that is being made. Its layers stay in the store while it lives.
pub(super) struct Stack {
    pub(super) layers: Vec<Unpacked>,
    descriptors: Vec<viv_oci::Descriptor>,
    /// Its configuration, as OCI has it.
    pub(super) config: Value,
}

impl Stack {
    /// Without layers, for our guests.
    pub(super) fn new() -> Stack {
        let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "history": [] });
        Stack { layers: Vec::new(), descriptors: Vec::new(), config }
    }

    /// An image of the store, whose layers these are.
    pub(super) fn of(store: &Store, image: &Image, layers: Vec<Unpacked>) -> Result<Stack, Fault> {
        let Some(container) = &image.manifest.container else {
            return Err(broken(&image.name, "it is no image of containers"));
        };
        let read = |part: &Part| -> Result<Vec<u8>, Fault> {
            let path = store.part(image, part)?;
            fs::read(&path).map_err(io_fault("read", &path))
        };
        let config = serde_json::from_slice(&read(&container.config)?)
            .map_err(|error| broken("the image's configuration", error))?;
        let old: viv_oci::Manifest = serde_json::from_slice(&read(&container.manifest)?)
            .map_err(|error| broken("the image's manifest", error))?;
        Ok(Stack { layers, descriptors: old.layers.into_iter().map(as_oci).collect(), config })
    }

    /// Puts a layer on it, whose files' contents are in the file `data` of the store's own.
    pub(super) fn add(
        &mut self,
        store: &Store,
        layer: &viv_rootfs::Layer,
        data: &Path,
        watcher: &dyn Watcher,
    ) -> Result<(), Fault> {
        let mut content = File::open(data).map_err(io_fault("read", data))?;
        let mut told = Told::new(watcher, "compressing it".to_string());
        let (mut archive, mut gzip) = (Summed::new(io::sink()), Summed::new(io::sink()));
        viv_rootfs::pack_gzip(layer, &mut content, &mut archive, &mut gzip, &mut |bytes| told.bytes(bytes))?;
        let (diff_id, _) = archive.finish();
        let (digest, size) = gzip.finish();
        self.layers.push(store.layers().adopt(&digest, data, layer, &diff_id)?);
        self.descriptors.push(viv_oci::Descriptor {
            media_type: LAYER.to_string(),
            digest: format!("sha256:{digest}"),
            size,
            ..viv_oci::Descriptor::default()
        });
        Ok(())
    }

    /// Notes how what is uppermost was made, and when the image was.
    pub(super) fn note(&mut self, history: Value, created: Timestamp) {
        self.config["created"] = json!(created.to_string());
        match self.config.get_mut("history").and_then(Value::as_array_mut) {
            Some(all) => all.push(history),
            None => self.config["history"] = json!([history]),
        }
    }

    /// Makes it the image `name` of the store, with what else `manifest` says. It has a key of its own if that has none.
    pub(super) fn publish(
        mut self,
        store: &Store,
        name: &str,
        scratch: &Scratch,
        manifest: Manifest,
        watcher: &dyn Watcher,
    ) -> Result<Image, Fault> {
        let ids = self.layers.iter().map(|layer| format!("sha256:{}", layer.facts.diff_id));
        self.config["rootfs"] = json!({ "type": "layers", "diff_ids": ids.collect::<Vec<_>>() });
        step(watcher, "making one file system of its layers");
        let documents = Documents::new(&self.config, self.descriptors)?;
        let parsed: viv_oci::Config = serde_json::from_slice(&documents.config)
            .map_err(|error| broken("the image's configuration", error))?;
        let process = pull::process_of(&parsed.config)?;
        let tree = scratch.path().join("tree");
        pull::make_tree(&self.layers, &tree)?;
        for (file, bytes) in [("manifest", &documents.manifest), ("config", &documents.config)] {
            let path = scratch.path().join(file);
            fs::write(&path, bytes).map_err(io_fault("write", &path))?;
        }
        if watcher.cancelled() {
            return Err(cancelled());
        }
        let index = store.index_lock()?;
        let add = |file: &str, kind| store.add_file(&scratch.path().join(file), kind, &index);
        let container = Container {
            tree: add("tree", pull::TREE)?,
            manifest: add("manifest", pull::MANIFEST)?,
            config: add("config", pull::CONFIG)?,
            layers: self.layers.iter().map(|layer| layer.hex()).collect(),
            process,
        };
        let key = format!("{} {}", container.manifest.digest, pull::REVISION);
        let summary = pull::summary(self.layers.len(), &container.process);
        let or = |text: String, other: String| if text.is_empty() { other } else { text };
        let manifest = Manifest {
            key: or(manifest.key, key),
            summary: or(manifest.summary, summary),
            container: Some(container),
            ..manifest
        };
        store.publish_in(name, &manifest, &index)
    }
}

/// What a guest has changed in its image, read off its own disk; its files' contents go to the new file `data`. Nothing if it has never
/// run.
pub(super) fn read_upper(
    own: &DiskSpec,
    data: &Path,
    says: &str,
    watcher: &dyn Watcher,
) -> Result<Option<viv_rootfs::Layer>, Fault> {
    let disk = open(own)?;
    let mut out = File::options().write(true).create_new(true).open(data).map_err(io_fault("write", data))?;
    let mut told = Told::new(watcher, says.to_string());
    let read = |at: u64, bytes: &mut [u8]| disk.read(at, bytes);
    let limits = viv_rootfs::Limits::default();
    viv_rootfs::upper(&read, disk.size(), UPPER, &mut out, &limits, &mut |bytes| told.bytes(bytes))
}

/// A layer as OCI names it, where docker does otherwise.
pub(super) fn as_oci(mut layer: viv_oci::Descriptor) -> viv_oci::Descriptor {
    layer.media_type = match layer.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => LAYER.to_string(),
        // What docker save wrote has no types, and is not compressed.
        "" | "application/vnd.docker.image.rootfs.diff.tar" => {
            "application/vnd.oci.image.layer.v1.tar".to_string()
        }
        _ => return layer,
    };
    layer
}

/// Configuration and manifest, as they are stored.
pub(super) struct Documents {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
}

impl Documents {
    pub(super) fn new(config: &Value, layers: Vec<viv_oci::Descriptor>) -> Result<Documents, Fault> {
        let told = |error| broken("the image's configuration", error);
        let config = serde_json::to_vec(config).map_err(told)?;
        let manifest = viv_oci::Manifest {
            schema_version: 2,
            media_type: pull::MANIFEST.to_string(),
            config: viv_oci::Descriptor {
                media_type: pull::CONFIG.to_string(),
                digest: viv_oci::Digest::of(&config).to_string(),
                size: config.len() as u64,
                ..viv_oci::Descriptor::default()
            },
            layers,
        };
        let manifest = serde_json::to_vec(&manifest).map_err(told)?;
        Ok(Documents { config, manifest })
    }
}

/// Sums and counts what passes.
pub(super) struct Summed<W> {
    inner: W,
    sum: Sha256,
    bytes: u64,
}

impl<W: Write> Summed<W> {
    pub(super) fn new(inner: W) -> Summed<W> {
        Summed { inner, sum: Sha256::new(), bytes: 0 }
    }

    /// SHA-256 in hexadecimal, and the length.
    pub(super) fn finish(self) -> (String, u64) {
        (hex(&self.sum.finalize()), self.bytes)
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(bytes.get(..written).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
