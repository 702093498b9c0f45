//! Images of containers leave the store: to a registry, or as an archive. Layers are kept unpacked, and are written again: as archives whose
//! bytes depend on what is in them alone.
use super::commit::{Told, flat};
use super::fault::{broken, cancelled, io_fault};
use super::layers::Unpacked;
use super::manifest::Container;
use super::stack::{Documents, LAYER, Summed, as_oci};
use super::store::Store;
use super::{Image, Watcher, artifact, machine, pull, step};
use crate::new_file::NewFile;
use crate::prune::on_disk;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use viv_api::image::{Exported, ImagePush, Pushed};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind};
use viv_oci::{Client, Descriptor, Digest, Logins, Options, Pusher, Reference, RegistryName, Watch};

/// What an image of containers is, as its registry had it.
struct Original<'a> {
    image: &'a Image,
    container: &'a Container,
    config: Vec<u8>,
    manifest: Vec<u8>,
    /// What its manifest says of its layers.
    layers: Vec<Descriptor>,
}

/// A layer, written again.
pub(super) struct Written {
    pub(super) descriptor: Descriptor,
    pub(super) diff_id: String,
    pub(super) file: PathBuf,
}

impl<'a> Original<'a> {
    fn read(store: &Store, image: &'a Image) -> Result<Original<'a>, Fault> {
        let Some(container) = &image.manifest.container else {
            return Err(broken(&image.name, "it is no image of containers"));
        };
        let part = |part| -> Result<Vec<u8>, Fault> {
            let path = store.part(image, part)?;
            fs::read(&path).map_err(io_fault("read", &path))
        };
        let (config, manifest) = (part(&container.config)?, part(&container.manifest)?);
        let parsed: viv_oci::Manifest =
            serde_json::from_slice(&manifest).map_err(|error| broken("the image's manifest", error))?;
        if parsed.layers.len() != container.layers.len() {
            return Err(broken("the image's manifest", "it has other layers than the image"));
        }
        Ok(Original { image, container, config, manifest, layers: parsed.layers })
    }

    fn layer(&self, store: &Store, hex: &str) -> Result<Unpacked, Fault> {
        store.layers().get(hex)?.ok_or_else(|| {
            Fault::new(
                Kind::Error,
                format!("the image {} is damaged: layer {hex} is not there", self.image.name),
                format!("get it again: viv pull {}", self.image.name),
            )
        })
    }

    /// Writes its layers into `scratch`, each of which `each` takes away, as [`machine::leave`] does; gives the documents over them. A layer of
    /// which `is_there` says that it is where the image goes stays the very one that was once pulled, or pushed, and the image what it was.
    fn leave(
        &self,
        store: &Store,
        scratch: &Path,
        (doing, watcher): (&str, &dyn Watcher),
        is_there: &dyn Fn(&str) -> Result<bool, Fault>,
        each: &mut dyn FnMut(&Written, &str) -> Result<(), Fault>,
    ) -> Result<Documents, Fault> {
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        let count = self.layers.len();
        for (at, (hex, old)) in self.container.layers.iter().zip(&self.layers).enumerate() {
            let layer = self.layer(store, hex)?;
            if is_there(&old.digest)? {
                layers.push(old.clone());
                diff_ids.push(format!("sha256:{}", layer.facts.diff_id));
                continue;
            }
            let what = format!("layer {} of {count}", at + 1);
            let file = scratch.join(format!("layer{at}"));
            let content = layer.facts.data_bytes;
            let written = write_layer(
                (&layer.index()?, &layer.data(), content),
                file,
                format!("{doing} {what}"),
                watcher,
            )?;
            each(&written, &what)?;
            let _ = fs::remove_file(&written.file);
            layers.push(written.descriptor);
            diff_ids.push(written.diff_id);
        }
        self.documents(layers, &diff_ids)
    }

    /// Its documents, for layers that are called so now: as they were if nothing has changed.
    fn documents(&self, layers: Vec<Descriptor>, diff_ids: &[String]) -> Result<Documents, Fault> {
        let same = self.layers.iter().zip(&layers).all(|(old, new)| old.digest == new.digest);
        if same && self.container.manifest.digest == format!("sha256:{}", Digest::of(&self.manifest).hex()) {
            return Ok(Documents { config: self.config.clone(), manifest: self.manifest.clone() });
        }
        let mut config: Value = serde_json::from_slice(&self.config)
            .map_err(|error| broken("the image's configuration", error))?;
        if !config.is_object() {
            return Err(broken("the image's configuration", "it is no object"));
        }
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        Documents::new(&config, layers.into_iter().map(as_oci).collect())
    }
}

/// Writes a layer, whose files' contents are in a file with so many bytes, as a compressed archive to `file`.
pub(super) fn write_layer(
    (index, data, bytes): (&viv_rootfs::Layer, &Path, u64),
    file: PathBuf,
    step: String,
    watcher: &dyn Watcher,
) -> Result<Written, Fault> {
    let mut data = File::open(data).map_err(io_fault("read", data))?;
    let out =
        OpenOptions::new().write(true).create_new(true).open(&file).map_err(io_fault("write", &file))?;
    let mut told = Told::new(watcher, step);
    told.total = Some(bytes);
    let mut archive = Summed::new(io::sink());
    let mut gzip = Summed::new(BufWriter::with_capacity(1 << 20, out));
    viv_rootfs::pack_gzip(index, &mut data, &mut archive, &mut gzip, &mut |bytes| told.bytes(bytes))?;
    gzip.flush().map_err(io_fault("write", &file))?;
    let ((diff_id, _), (digest, size)) = (archive.finish(), gzip.finish());
    let descriptor = Descriptor {
        media_type: LAYER.to_string(),
        digest: format!("sha256:{digest}"),
        size,
        ..Descriptor::default()
    };
    Ok(Written { descriptor, diff_id: format!("sha256:{diff_id}"), file })
}

/// Sends the image to a registry. What is there already is not sent.
pub(super) fn push(
    store: &Store,
    image: &Image,
    ask: &ImagePush,
    logins: &Logins,
    watcher: &dyn Watcher,
) -> Result<Pushed, Fault> {
    if let Some(program) = &image.manifest.program {
        return artifact::push(store, (&store.part(image, program)?, &image.name), ask, logins, watcher);
    }
    let name = target(ask)?;
    let sending = Sending { watcher, step: format!("sending {} to {name}", image.name) };
    let client = Client::new(Options { insecure: ask.insecure, logins: logins.clone() })?;
    let pusher = Pusher::new(&client, name.clone())?;
    let scratch = store.pull_scratch()?;
    let (mut sent, known) = (0u64, Cell::new(0));
    let is_there = |digest: &str| {
        let there = pusher.has(&digest.parse()?, &sending)?;
        known.set(known.get() + usize::from(there));
        Ok(there)
    };
    let mut send = |written: &Written, what: &str| {
        let digest = &written.descriptor.digest;
        if is_there(digest)? {
            return Ok(());
        }
        step(watcher, &format!("sending {what} to {name}"));
        pusher.blob(&digest.parse()?, &written.file, &sending)?;
        sent = sent.saturating_add(written.descriptor.size);
        Ok(())
    };
    let documents = match image.manifest.container {
        None => machine::leave(store, image, scratch.path(), watcher, &mut send)?,
        Some(_) => {
            let original = Original::read(store, image)?;
            original.leave(store, scratch.path(), ("compressing", watcher), &is_there, &mut send)?
        }
    };
    let config = scratch.path().join("config");
    fs::write(&config, &documents.config).map_err(io_fault("write", &config))?;
    let digest = Digest::of(&documents.config);
    if !pusher.has(&digest, &sending)? {
        pusher.blob(&digest, &config, &sending)?;
        sent = sent.saturating_add(documents.config.len() as u64);
    }
    // The last step: before it, nobody sees anything.
    let digest = pusher.manifest(&documents.manifest, &sending)?;
    Ok(Pushed {
        reference: name.to_string(),
        digest: digest.to_string(),
        sent_bytes: sent,
        known_layers: known.get(),
    })
}

/// The registry's name for what is sent.
pub(super) fn target(ask: &ImagePush) -> Result<RegistryName, Fault> {
    let target = match Reference::is_one(&ask.reference) {
        true => Reference::parse(&ask.reference, Path::new("/"))?,
        false => return Err(no_registry(&ask.reference)),
    };
    let Reference::Registry(name) = target else { return Err(no_registry(&ask.reference)) };
    if name.digest.is_some() {
        return Err(Fault::new(
            Kind::Usage,
            format!("{name} has a digest, which an image gets by what it is"),
            "name a tag: REGISTRY/REPOSITORY:TAG",
        ));
    }
    Ok(name)
}

fn no_registry(reference: &str) -> Fault {
    Fault::new(
        Kind::Usage,
        format!("{reference:?} names no registry"),
        "name it with its host: viv push IMAGE registry.example.org/me/app:1; into a file: viv export IMAGE FILE",
    )
}

/// A push, as the registry's client sees it.
pub(super) struct Sending<'a> {
    pub(super) watcher: &'a dyn Watcher,
    pub(super) step: String,
}

impl Watch for Sending<'_> {
    fn bytes(&self, _: i64) {}

    fn note(&self, what: &str) {
        step(self.watcher, &format!("{}: {what}", self.step));
    }

    fn cancelled(&self) -> bool {
        self.watcher.cancelled()
    }
}

/// Writes the image to a new file: an OCI layout in a tar (OCI image specification, "Image Layout").
pub(super) fn export(
    store: &Store,
    image: &Image,
    to: &Path,
    watcher: &dyn Watcher,
) -> Result<Exported, Fault> {
    let new = NewFile::begin(to)?;
    let fault = |error| new.fault(error);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(new.path()).map_err(fault)?;
    let write_all = || -> Result<Digest, Fault> {
        let scratch = store.pull_scratch()?;
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, &file));
        add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(fault)?;
        // Whoever unpacks it without root (skopeo) makes those that are not named root's, and fails.
        for dir in ["blobs/", "blobs/sha256/"] {
            let mut header = head(0);
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            tar.append_data(&mut header, dir, io::empty()).map_err(fault)?;
        }
        let mut there = BTreeSet::new();
        let mut put = |written: &Written, _: &str| {
            if there.insert(written.descriptor.digest.clone()) {
                let name = blob(&written.descriptor.digest);
                let content = File::open(&written.file).map_err(io_fault("read", &written.file))?;
                let mut header = head(written.descriptor.size);
                tar.append_data(&mut header, name, io::BufReader::new(content)).map_err(fault)?;
            }
            Ok(())
        };
        let documents = match image.manifest.container {
            None => machine::leave(store, image, scratch.path(), watcher, &mut put)?,
            Some(_) => {
                let original = Original::read(store, image)?;
                original.leave(store, scratch.path(), ("writing", watcher), &|_| Ok(false), &mut put)?
            }
        };
        let config = Digest::of(&documents.config);
        let manifest = Digest::of(&documents.manifest);
        for (digest, bytes) in [(&config, &documents.config), (&manifest, &documents.manifest)] {
            add(&mut tar, &blob(&digest.to_string()), bytes).map_err(fault)?;
        }
        let parsed: viv_oci::Manifest = serde_json::from_slice(&documents.manifest)
            .map_err(|error| broken("the image's manifest", error))?;
        let kind = if parsed.media_type.is_empty() { pull::MANIFEST } else { &parsed.media_type };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": kind,
                "digest": manifest.to_string(),
                "size": documents.manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": tag(&image.name) },
            }],
        });
        add(&mut tar, "index.json", index.to_string().as_bytes()).map_err(fault)?;
        if watcher.cancelled() {
            return Err(cancelled());
        }
        let out = tar.into_inner().map_err(fault)?;
        out.into_inner().map_err(io::IntoInnerError::into_error).and_then(File::sync_all).map_err(fault)?;
        Ok(manifest)
    };
    let digest = write_all()?;
    let size_bytes = file.metadata().map_err(fault)?.len();
    Ok(Exported { path: new.finish()?, size_bytes, digest: Some(digest.to_string()), left: Vec::new() })
}

/// Writes all that a disk is to a new file.
pub(crate) fn export_disk(
    disk: &DiskSpec,
    to: &Path,
    format: DiskFormat,
    watcher: &dyn Watcher,
) -> Result<Exported, Fault> {
    let new = NewFile::begin(to)?;
    let mut told = Told::new(watcher, format!("writing {}", to.display()));
    flat(disk, new.path(), format, &mut told)?;
    let found = fs::metadata(new.path()).map_err(|error| new.fault(error))?;
    let size_bytes = on_disk(&found);
    Ok(Exported { path: new.finish()?, size_bytes, digest: None, left: Vec::new() })
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

/// The tag under which an archive has the image: that of its name, else its name.
fn tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let last = last.split('@').next().unwrap_or(last);
    last.rsplit(':').next().unwrap_or(last).to_string()
}

pub(super) fn head(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

pub(super) fn add<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    tar.append_data(&mut head(bytes.len() as u64), name, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_have_the_tag_of_the_images_name() {
        for (name, expected) in [
            ("docker.io/library/debian:12", "12"),
            ("localhost:5000/a/b:c", "c"),
            ("mine", "mine"),
            ("oci:/tmp/layout:app", "app"),
            ("localhost:5000/a", "a"),
        ] {
            assert_eq!(tag(name), expected, "{name}");
        }
    }
}
