//! An OCI image layout in a directory (OCI image specification, image-layout.md).
use crate::Digest;
use crate::source::{Blob, DOCUMENT_MAX, Source, Watch, damaged_at};
use crate::types::{Descriptor, Index, Platform};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// The annotation that has a tag.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// That in which containerd has the full name.
const FULL_NAME: &str = "io.containerd.image.name";

/// The layout.
pub(crate) struct Layout {
    dir: PathBuf,
    top: Descriptor,
}

impl Layout {
    pub(crate) fn open(dir: &Path, tag: Option<&str>) -> Result<Layout, Fault> {
        let path = dir.join("index.json");
        let text = File::open(&path).and_then(read_document).map_err(|error| {
            Fault::new(
                match error.kind() {
                    std::io::ErrorKind::NotFound => Kind::NotFound,
                    _ => Kind::Error,
                },
                format!("{} has no image layout: {}: {error}", dir.display(), path.display()),
                "name a directory that e.g. skopeo copy … oci:DIR:TAG has made",
            )
        })?;
        let name = dir.display().to_string();
        let index: Index = serde_json::from_slice(&text)
            .map_err(|error| damaged_at(&name, &format!("its index.json cannot be read: {error}")))?;
        Ok(Layout { dir: dir.to_path_buf(), top: choose(&index, tag, &name)? })
    }
}

/// The image of an `index.json` that `tag` means; without one, the only one.
pub(crate) fn choose(index: &Index, tag: Option<&str>, name: &str) -> Result<Descriptor, Fault> {
    let tags_of = |entry: &Descriptor| -> Vec<String> {
        [REF_NAME, FULL_NAME].iter().filter_map(|key| entry.annotations.get(*key).cloned()).collect()
    };
    let named = |is_it: &dyn Fn(&str) -> bool| -> Vec<&Descriptor> {
        let mut all: Vec<&Descriptor> =
            index.manifests.iter().filter(|entry| tags_of(entry).iter().any(|known| is_it(known))).collect();
        all.dedup_by(|one, other| one.digest == other.digest);
        all
    };
    let found = match tag {
        Some(tag) => {
            let mut found = named(&|known| known == tag);
            if found.is_empty() {
                found = named(&|known| known.rsplit_once(':').is_some_and(|(_, end)| end == tag));
            }
            // Some tools list each platform of an image by itself.
            if found.len() > 1
                && found.iter().any(|entry| entry.platform.as_ref().is_some_and(Platform::is_ours))
            {
                found.retain(|entry| entry.platform.as_ref().is_some_and(Platform::is_ours));
            }
            if found.len() > 1 {
                return Err(Fault::new(
                    Kind::Usage,
                    format!("{name} has {} images that are called {tag:?}", found.len()),
                    "say which by its whole name, behind a colon; or pack it with a name for each",
                ));
            }
            found.first().copied()
        }
        None if index.manifests.len() == 1 => index.manifests.first(),
        None => None,
    };
    found.cloned().ok_or_else(|| {
        let mut tags: Vec<String> = index.manifests.iter().flat_map(tags_of).collect();
        tags.truncate(20);
        let there = if tags.is_empty() {
            "it has no tags".to_string()
        } else {
            format!("it has: {}", tags.join(", "))
        };
        match tag {
            Some(tag) => Fault::new(
                Kind::NotFound,
                format!("{name} has no image {tag:?}; {there}"),
                "name one of those behind a colon",
            ),
            None => Fault::new(
                Kind::Usage,
                format!("{name} has {} images; {there}", index.manifests.len()),
                "say which, behind a colon",
            ),
        }
    })
}

/// Reads a small file.
pub(crate) fn read_document(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(DOCUMENT_MAX).read_to_end(&mut text)?;
    Ok(text)
}

impl Source for Layout {
    fn name(&self) -> String {
        self.dir.display().to_string()
    }

    fn top(&self, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
        self.document(&self.top, watch)
    }

    fn document(&self, wanted: &Descriptor, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
        let blob = self.blob(wanted, 0, watch)?;
        read_document(blob.reader).map_err(|error| damaged_at(&self.name(), &error.to_string()))
    }

    fn blob(&self, wanted: &Descriptor, from: u64, _: &dyn Watch) -> Result<Blob, Fault> {
        let digest: Digest = wanted.digest.parse()?;
        let path = self.dir.join("blobs/sha256").join(digest.hex());
        let open = || -> std::io::Result<File> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(from))?;
            Ok(file)
        };
        let file =
            open().map_err(|error| damaged_at(&self.name(), &format!("{}: {error}", path.display())))?;
        Ok(Blob { from, reader: Box::new(file) })
    }

    fn is_remote(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_or_the_only_one_is_meant() {
        let entry = |tag: &str| Descriptor {
            digest: tag.into(),
            annotations: [(REF_NAME.to_string(), tag.to_string())].into(),
            ..Descriptor::default()
        };
        let two = Index { manifests: vec![entry("a"), entry("docker.io/library/x:b")], ..Index::default() };
        assert_eq!(choose(&two, Some("a"), "it").unwrap().digest, "a");
        assert_eq!(choose(&two, Some("b"), "it").unwrap().digest, "docker.io/library/x:b");
        assert!(choose(&two, Some("c"), "it").unwrap_err().message.contains("it has: a, docker.io"));
        assert_eq!(choose(&two, None, "it").unwrap_err().kind, Kind::Usage);
        let again = |tag: &str| Descriptor { digest: "other".into(), ..entry(tag) };
        let same = Index { manifests: vec![entry("a"), again("a"), again("x:a")], ..Index::default() };
        assert!(choose(&same, Some("a"), "it").unwrap_err().message.contains("2 images that are called"));
        assert_eq!(choose(&same, Some("x:a"), "it").unwrap().digest, "other");
        let of = |architecture: &str, entry: Descriptor| {
            let platform = serde_json::json!({ "os": "linux", "architecture": architecture });
            Descriptor { platform: serde_json::from_value(platform).ok(), ..entry }
        };
        let manifests = vec![of("arm64", entry("a")), of("amd64", again("a"))];
        let each = Index { manifests, ..Index::default() };
        assert_eq!(choose(&each, Some("a"), "it").unwrap().digest, "other");
        let one = Index { manifests: vec![entry("a")], ..Index::default() };
        assert_eq!(choose(&one, None, "it").unwrap().digest, "a");
        assert_eq!(Layout::open(Path::new("/nowhere"), None).err().unwrap().kind, Kind::NotFound);
    }
}
