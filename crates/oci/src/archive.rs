//! An image in a tar: an OCI layout, or what `docker save` writes (docker, "Image JSON": `manifest.json`).
use crate::Digest;
use crate::layout::{choose, read_document};
use crate::source::{Blob, DOCUMENT_MAX, Source, Watch, damaged_at};
use crate::types::{Config, DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, Index, Manifest};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use viv_model::{Fault, Kind};

/// Most entries of an archive.
const ENTRIES_MAX: usize = 1 << 16;
/// Most links from one entry to the next.
const LINKS_MAX: usize = 8;
/// How gzip and zstd files begin.
const COMPRESSED: [&[u8]; 2] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd]];

/// The archive, with the places of its entries.
pub(crate) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    entries: BTreeMap<String, Entry>,
    top: Vec<u8>,
    /// Content by digest, where its name does not say it: of `docker save`.
    named: BTreeMap<String, String>,
}

#[derive(Clone)]
enum Entry {
    File { at: u64, len: u64 },
    Link(String),
}

/// An image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A part of the archive's file.
struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Archive {
    pub(crate) fn open(path: &Path, tag: Option<&str>) -> Result<Archive, Fault> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| {
            let kind = Kind::of_file(&error);
            Fault::new(
                kind,
                format!("cannot open {name}: {error}"),
                "name an archive of an image, and see that you may read it",
            )
        })?;
        let mut head = [0; 4];
        let _ = file.read_at(&mut head, 0);
        if COMPRESSED.iter().any(|magic| head.starts_with(magic)) {
            return Err(Fault::new(
                Kind::Usage,
                format!(
                    "{name} is a compressed archive, in which nothing can be found without unpacking it all"
                ),
                "unpack it once: gunzip or unzstd",
            ));
        }
        let entries = entries(&file).map_err(|error| damaged_at(&name, &format!("it is no tar: {error}")))?;
        let mut archive = Archive {
            path: path.to_path_buf(),
            file: Arc::new(file),
            entries,
            top: Vec::new(),
            named: BTreeMap::new(),
        };
        archive.find_top(tag)?;
        Ok(archive)
    }

    fn find_top(&mut self, tag: Option<&str>) -> Result<(), Fault> {
        let name = self.name();
        if let Some(text) = self.read("index.json")? {
            let index: Index = serde_json::from_slice(&text)
                .map_err(|error| damaged_at(&name, &format!("its index.json cannot be read: {error}")))?;
            let top = choose(&index, tag, &name)?;
            let digest: Digest = top.digest.parse()?;
            self.top = self.need(&format!("blobs/sha256/{}", digest.hex()))?;
            return Ok(());
        }
        let Some(text) = self.read("manifest.json")? else {
            return Err(Fault::new(
                Kind::Usage,
                format!("{name} has no image: neither index.json nor manifest.json is in it"),
                "name what skopeo copy … oci-archive:FILE, docker save or podman save has written",
            ));
        };
        let saved: Vec<Saved> = serde_json::from_slice(&text)
            .map_err(|error| damaged_at(&name, &format!("its manifest.json cannot be read: {error}")))?;
        let image = choose_saved(&saved, tag, &name)?;
        self.top = self.describe(image)?;
        Ok(())
    }

    /// The manifest that `docker save` does not write.
    fn describe(&mut self, image: &Saved) -> Result<Vec<u8>, Fault> {
        let name = self.name();
        let text = self.need(&image.config)?;
        let config: Config = serde_json::from_slice(&text)
            .map_err(|error| damaged_at(&name, &format!("its {} cannot be read: {error}", image.config)))?;
        let ids = &config.rootfs.diff_ids;
        if ids.len() != image.layers.len() {
            return Err(damaged_at(
                &name,
                &format!("it has {} layers and digests of {}", image.layers.len(), ids.len()),
            ));
        }
        let mut layers = Vec::new();
        for (file, id) in image.layers.iter().zip(ids) {
            let (_, size) =
                self.place(file).ok_or_else(|| damaged_at(&name, &format!("{file:?} is not in it")))?;
            layers.push(Descriptor { digest: id.clone(), size, ..Descriptor::default() });
            self.named.insert(id.clone(), file.clone());
        }
        let digest = Digest::of(&text).to_string();
        self.named.insert(digest.clone(), image.config.clone());
        let config = Descriptor {
            media_type: DOCKER_CONFIG.into(),
            digest,
            size: text.len() as u64,
            ..Descriptor::default()
        };
        let manifest = Manifest { schema_version: 2, media_type: DOCKER_MANIFEST.into(), config, layers };
        serde_json::to_vec(&manifest).map_err(|error| damaged_at(&name, &error.to_string()))
    }

    /// Where an entry's content is: offset and bytes.
    fn place(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean("", name);
        for _ in 0..LINKS_MAX {
            match self.entries.get(&name)? {
                Entry::File { at, len } => return Some((*at, *len)),
                Entry::Link(target) => {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    name = clean(dir, target);
                }
            }
        }
        None
    }

    fn part(&self, name: &str) -> Option<Part> {
        let (at, left) = self.place(name)?;
        Some(Part { file: self.file.clone(), at, left })
    }

    /// A small entry, if it is there.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let Some(part) = self.part(name) else { return Ok(None) };
        if part.left > DOCUMENT_MAX {
            return Err(damaged_at(&self.name(), &format!("its {name} is too large")));
        }
        read_document(part)
            .map(Some)
            .map_err(|error| damaged_at(&self.name(), &format!("its {name}: {error}")))
    }

    fn need(&self, name: &str) -> Result<Vec<u8>, Fault> {
        let shown: String = name.chars().take(200).collect();
        self.read(name)?.ok_or_else(|| damaged_at(&self.name(), &format!("{shown:?} is not in it")))
    }
}

/// The image that `tag` means; without one, the only one.
fn choose_saved<'a>(saved: &'a [Saved], tag: Option<&str>, name: &str) -> Result<&'a Saved, Fault> {
    let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
    let index = Index {
        manifests: saved
            .iter()
            .enumerate()
            .flat_map(|(at, image)| {
                let mut names = tags(image);
                if names.is_empty() || tag.is_none() {
                    names = vec![names.first().cloned().unwrap_or_default()];
                }
                names.into_iter().map(move |name| (at, name, image.config.clone()))
            })
            .map(|(at, tag, config)| Descriptor {
                // By that two are told apart.
                digest: config,
                size: at as u64,
                annotations: [(crate::layout::REF_NAME.to_string(), tag)].into(),
                ..Descriptor::default()
            })
            .collect(),
        ..Index::default()
    };
    let chosen = choose(&index, tag, name)?;
    let at = usize::try_from(chosen.size).unwrap_or(usize::MAX);
    saved.get(at).ok_or_else(|| damaged_at(name, "it has no image"))
}

/// A path inside the archive without `.`, `..` and doubled slashes, from `dir` on.
fn clean(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let dir = if path.starts_with('/') { "" } else { dir };
    for part in dir.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn entries(file: &File) -> io::Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    let length = file.metadata()?.len();
    let mut tar = tar::Archive::new(io::BufReader::new(file.try_clone()?));
    for entry in tar.entries_with_seek()? {
        let entry = entry?;
        if entries.len() >= ENTRIES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has too many entries"));
        }
        let name = clean("", &String::from_utf8_lossy(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        let (at, len) = (entry.raw_file_position(), entry.size());
        if kind.is_file() {
            if at.checked_add(len).is_none_or(|end| end > length) {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("it is cut off in {name:?}"),
                ));
            }
            entries.insert(name, Entry::File { at, len });
        } else if let (true, Some(target)) =
            (kind.is_symlink() || kind.is_hard_link(), entry.link_name_bytes())
        {
            let target = String::from_utf8_lossy(&target).into_owned();
            let target = if kind.is_hard_link() { format!("/{target}") } else { target };
            entries.insert(name, Entry::Link(target));
        }
    }
    Ok(entries)
}

impl Source for Archive {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn top(&self, _: &dyn Watch) -> Result<Vec<u8>, Fault> {
        Ok(self.top.clone())
    }

    fn document(&self, wanted: &Descriptor, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
        let blob = self.blob(wanted, 0, watch)?;
        read_document(blob.reader).map_err(|error| damaged_at(&self.name(), &error.to_string()))
    }

    fn blob(&self, wanted: &Descriptor, from: u64, _: &dyn Watch) -> Result<Blob, Fault> {
        let digest: Digest = wanted.digest.parse()?;
        let blob = format!("blobs/sha256/{}", digest.hex());
        let name = self.named.get(&wanted.digest).unwrap_or(&blob);
        let mut part = self
            .part(name)
            .ok_or_else(|| damaged_at(&self.name(), &format!("{} is not in it", wanted.digest)))?;
        let skipped = from.min(part.left);
        (part.at, part.left) = (part.at.saturating_add(skipped), part.left - skipped);
        Ok(Blob { from, reader: Box::new(part) })
    }

    fn is_remote(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::resolve;
    use crate::source::tests::Quiet;

    fn write(name: &str, files: &[(&str, &[u8])], links: &[(&str, &str)]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("viv-oci-{}-{name}.tar", std::process::id()));
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        for (name, target) in links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, target).unwrap();
        }
        tar.finish().unwrap();
        path
    }

    #[test]
    fn what_docker_save_wrote_is_found_also_behind_links() {
        let id = Digest::of(b"the layer");
        let config =
            format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{id}","{id}"]}}}}"#);
        let manifest =
            r#"[{"Config":"c.json","RepoTags":["a/b:1","a/b:2"],"Layers":["x/layer.tar","y/layer.tar"]}]"#;
        let files: [(&str, &[u8]); 3] = [
            ("c.json", config.as_bytes()),
            ("x/layer.tar", b"the layer"),
            ("manifest.json", manifest.as_bytes()),
        ];
        let path = write("save", &files, &[("y/layer.tar", "../x/layer.tar")]);
        for tag in [None, Some("2"), Some("a/b:1")] {
            let archive = Archive::open(&path, tag).unwrap();
            let image = resolve(&archive, &Quiet).unwrap();
            assert_eq!(image.layers.len(), 2);
            let mut text = String::new();
            archive
                .blob(&image.layers[1].descriptor, 4, &Quiet)
                .unwrap()
                .reader
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "layer");
        }
        assert!(Archive::open(&path, Some("3")).err().unwrap().message.contains("a/b:1, a/b:2"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_cut_off_or_no_archive_is_refused() {
        let path = write("cut", &[("index.json", b"{}"), ("x", &[7; 9000])], &[]);
        let whole = std::fs::read(&path).unwrap();
        for end in (0..whole.len()).step_by(512) {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert!(Archive::open(&path, None).is_err());
        }
        std::fs::write(&path, [0x1f, 0x8b, 0, 0]).unwrap();
        assert!(Archive::open(&path, None).err().unwrap().fix.contains("gunzip"));
        std::fs::write(&path, [7; 4096]).unwrap();
        assert!(Archive::open(&path, None).is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Archive::open(&path, None).err().unwrap().kind, Kind::NotFound);
        assert_eq!(clean("a/b", "../../../etc/passwd"), "etc/passwd");
        assert_eq!(clean("a", "/x/./y"), "x/y");
    }
}
