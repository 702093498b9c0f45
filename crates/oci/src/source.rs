//! From a reference to an image's parts, wherever they are.
use crate::archive::Archive;
use crate::layout::Layout;
use crate::registry::{Client, Registry};
use crate::types::{
    Config, DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Index, MACHINE, Manifest, OCI_CONFIG,
    OCI_INDEX, OCI_MANIFEST, Platform, WASM, WASM_BEFORE,
};
use crate::{Checked, Digest, Reference};
use serde::de::DeserializeOwned;
use std::io::Read;
use viv_model::{Fault, Kind};

/// Most bytes of a manifest, an index or a configuration that we read (OCI distribution specification: at least 4 MiB).
pub(crate) const DOCUMENT_MAX: u64 = 8 << 20;
/// Most layers of an image; overlayfs and docker end at 127 or so.
const LAYERS_MAX: usize = 512;
/// How deep indexes may be in each other.
const DEPTH_MAX: usize = 4;

/// Who is told how a long work goes on, and may have it given up. Called from several threads.
pub trait Watch: Sync {
    /// So many more bytes have come; negative if some have to come again.
    fn bytes(&self, more: i64);
    /// Says what is being waited for.
    fn note(&self, what: &str);
    /// Whether to give up; asked often.
    fn cancelled(&self) -> bool;
}

/// A stream of content.
pub struct Blob {
    /// Where in the content it begins: a server that cannot begin elsewhere begins at 0.
    pub from: u64,
    /// Its bytes, unchecked.
    pub reader: Box<dyn Read + Send>,
}

/// A place that has images.
pub trait Source: Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> String;
    /// The document that the reference names: a manifest or an index.
    fn top(&self, watch: &dyn Watch) -> Result<Vec<u8>, Fault>;
    /// A manifest or an index by its digest, unchecked.
    fn document(&self, wanted: &Descriptor, watch: &dyn Watch) -> Result<Vec<u8>, Fault>;
    /// Content from `from` on.
    fn blob(&self, wanted: &Descriptor, from: u64, watch: &dyn Watch) -> Result<Blob, Fault>;
    /// Whether it can break off and go on: content is then better kept in a file as it comes.
    fn is_remote(&self) -> bool;
}

/// An image, found.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest as it is written.
    pub manifest: Vec<u8>,
    /// Its configuration as it is written.
    pub config_text: Vec<u8>,
    /// Its configuration.
    pub config: Config,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
    /// What it is.
    pub form: Form,
}

/// What is in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The files of a container.
    Container,
    /// Its only layer is a WebAssembly program, and its configuration says nothing that we need.
    Program,
    /// A whole computer: its configuration is of [`MACHINE`].
    Machine,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its content as it is stored, compressed or not.
    pub digest: Digest,
    /// Bytes of that.
    pub size: u64,
    /// Its content without compression, where the configuration says so.
    pub diff_id: Option<Digest>,
    /// How the source knows it.
    pub descriptor: Descriptor,
}

/// Opens the place that `reference` names.
pub fn open(reference: &Reference, client: &Client) -> Result<Box<dyn Source>, Fault> {
    Ok(match reference {
        Reference::Registry(name) => Box::new(Registry::new(client, name.clone())),
        Reference::Layout(path, tag) => Box::new(Layout::open(path, tag.as_deref())?),
        Reference::Archive(path, tag) => Box::new(Archive::open(path, tag.as_deref())?),
    })
}

/// Finds the image for our platform and reads its documents.
pub fn resolve(source: &dyn Source, watch: &dyn Watch) -> Result<Image, Fault> {
    let mut text = source.top(watch)?;
    for _ in 0..DEPTH_MAX {
        match kind_of(&text, source)? {
            Document::Manifest => return manifest(source, text, watch),
            Document::Index => {
                let index: Index = parse(&text, "index", source)?;
                let ours = choose(&index, source)?;
                text = document(source, ours, watch)?;
            }
        }
    }
    Err(damaged(source, "its indexes are in each other without end"))
}

enum Document {
    Manifest,
    Index,
}

/// What a document is, by its media type, else by what it has.
fn kind_of(text: &[u8], source: &dyn Source) -> Result<Document, Fault> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        #[serde(default)]
        schema_version: u32,
        #[serde(default)]
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
    }
    let head: Head = parse(text, "manifest", source)?;
    if head.schema_version == 1 {
        return Err(Fault::new(
            Kind::Error,
            format!("{} is of a form from before 2016 (schema 1)", source.name()),
            "push it again with a tool of today, e.g. skopeo copy",
        ));
    }
    match (head.media_type.as_deref(), head.manifests, head.config) {
        (Some(OCI_INDEX | DOCKER_LIST), Some(_), None) | (None, Some(_), None) => Ok(Document::Index),
        (Some(OCI_MANIFEST | DOCKER_MANIFEST), None, Some(_)) | (None, None, Some(_)) => {
            Ok(Document::Manifest)
        }
        (Some(kind), ..) => {
            let kind: String = kind.chars().take(100).collect();
            Err(damaged(
                source,
                &format!("its manifest says that it is {kind:?}, and is not or is nothing that we know"),
            ))
        }
        _ => Err(damaged(source, "its manifest is neither an image's nor an index")),
    }
}

/// The image for our platform. One without a platform is taken if there is nothing else, then a WebAssembly program.
fn choose<'a>(index: &'a Index, source: &dyn Source) -> Result<&'a Descriptor, Fault> {
    let platform = |descriptor: &'a Descriptor| descriptor.platform.as_ref();
    let ours = index.manifests.iter().find(|descriptor| platform(descriptor).is_some_and(Platform::is_ours));
    let only = || {
        (index.manifests.len() == 1)
            .then(|| index.manifests.first())
            .flatten()
            .filter(|one| one.platform.is_none())
    };
    let program =
        || index.manifests.iter().find(|descriptor| platform(descriptor).is_some_and(Platform::is_wasm));
    ours.or_else(only).or_else(program).ok_or_else(|| {
        let mut there: Vec<String> =
            index.manifests.iter().filter_map(platform).map(Platform::to_string).collect();
        there.retain(|name| name != "unknown/unknown");
        there.truncate(20);
        Fault::new(
            Kind::NotFound,
            format!("{} is not there for linux/amd64, only for: {}", source.name(), there.join(", ")),
            "take another tag of it, or another image",
        )
    })
}

fn manifest(source: &dyn Source, text: Vec<u8>, watch: &dyn Watch) -> Result<Image, Fault> {
    let manifest: Manifest = parse(&text, "manifest", source)?;
    let is_program = matches!(manifest.layers.as_slice(), [only] if matches!(only.media_type.as_str(), WASM | WASM_BEFORE));
    let kind = &manifest.config.media_type;
    let form = match kind.as_str() {
        _ if is_program => Form::Program,
        "" | OCI_CONFIG | DOCKER_CONFIG => Form::Container,
        MACHINE => Form::Machine,
        other => {
            let kind: String = other.chars().take(100).collect();
            return Err(Fault::new(
                Kind::Usage,
                format!("{} is no image that runs: its configuration is {kind:?}", source.name()),
                "name an image of a container or of a machine, or a WebAssembly program",
            ));
        }
    };
    if manifest.layers.len() > LAYERS_MAX {
        return Err(damaged(
            source,
            &format!("it has {} layers; {LAYERS_MAX} are the most", manifest.layers.len()),
        ));
    }
    let (config_text, config) = match is_program {
        true => (Vec::new(), Config::default()),
        false => {
            let text = small(source, &manifest.config, watch)?;
            let config = parse(&text, "configuration", source)?;
            (text, config)
        }
    };
    if !config.platform.is_ours() && !config.platform.os.is_empty() {
        return Err(Fault::new(
            Kind::NotFound,
            format!("{} is for {}, and our guests are linux/amd64", source.name(), config.platform),
            "take another tag of it, or another image",
        ));
    }
    let ids = &config.rootfs.diff_ids;
    if !ids.is_empty() && ids.len() != manifest.layers.len() {
        return Err(damaged(
            source,
            &format!("its manifest has {} layers, its configuration {}", manifest.layers.len(), ids.len()),
        ));
    }
    let layers = manifest.layers.iter().enumerate().map(|(at, descriptor)| {
        Ok(Layer {
            digest: descriptor.digest.parse()?,
            size: descriptor.size,
            diff_id: ids.get(at).map(|id| id.parse()).transpose()?,
            descriptor: descriptor.clone(),
        })
    });
    let layers =
        layers.collect::<Result<Vec<_>, Fault>>().map_err(|fault| damaged(source, &fault.message))?;
    Ok(Image { digest: Digest::of(&text), manifest: text, config_text, config, layers, form })
}

/// A manifest or an index, checked.
fn document(source: &dyn Source, wanted: &Descriptor, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
    let digest: Digest = wanted.digest.parse()?;
    let text = source.document(wanted, watch)?;
    match Digest::of(&text) == digest {
        true => Ok(text),
        false => Err(damaged(source, &format!("what it calls {digest} is {}", Digest::of(&text)))),
    }
}

/// Content that is read whole, checked.
fn small(source: &dyn Source, wanted: &Descriptor, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
    let digest: Digest = wanted.digest.parse()?;
    if wanted.size > DOCUMENT_MAX {
        return Err(damaged(source, &format!("its configuration is to have {} bytes", wanted.size)));
    }
    let blob = source.blob(wanted, 0, watch)?;
    let mut text = Vec::new();
    let read = Checked::new(blob.reader.take(DOCUMENT_MAX), digest, wanted.size).read_to_end(&mut text);
    read.map_err(|error| damaged(source, &format!("its configuration: {error}")))?;
    Ok(text)
}

fn parse<T: DeserializeOwned>(text: &[u8], what: &str, source: &dyn Source) -> Result<T, Fault> {
    serde_json::from_slice(text)
        .map_err(|error| damaged(source, &format!("its {what} cannot be read: {error}")))
}

/// What the source has is not what it should be.
pub(crate) fn damaged(source: &dyn Source, why: &str) -> Fault {
    damaged_at(&source.name(), why)
}

pub(crate) fn damaged_at(name: &str, why: &str) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the image {name} is damaged: {why}"),
        "get or push it again; if it stays so, tell whoever made it",
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Nobody watches.
    pub(crate) struct Quiet;

    impl Watch for Quiet {
        fn bytes(&self, _: i64) {}
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            false
        }
    }

    /// An image in memory.
    #[derive(Default)]
    struct Memory {
        top: Vec<u8>,
        blobs: BTreeMap<String, Vec<u8>>,
    }

    impl Memory {
        fn add(&mut self, bytes: &[u8], media_type: &str) -> serde_json::Value {
            let digest = Digest::of(bytes).to_string();
            self.blobs.insert(digest.clone(), bytes.to_vec());
            serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        }
    }

    impl Source for Memory {
        fn name(&self) -> String {
            "memory".into()
        }
        fn top(&self, _: &dyn Watch) -> Result<Vec<u8>, Fault> {
            Ok(self.top.clone())
        }
        fn document(&self, wanted: &Descriptor, _: &dyn Watch) -> Result<Vec<u8>, Fault> {
            Ok(self.blobs.get(&wanted.digest).cloned().unwrap_or_default())
        }
        fn blob(&self, wanted: &Descriptor, _: u64, _: &dyn Watch) -> Result<Blob, Fault> {
            let bytes = self.blobs.get(&wanted.digest).cloned().unwrap_or_default();
            Ok(Blob { from: 0, reader: Box::new(std::io::Cursor::new(bytes)) })
        }
        fn is_remote(&self) -> bool {
            false
        }
    }

    fn image(memory: &mut Memory, config: &str, kind: &str) -> Vec<u8> {
        let config = memory.add(config.as_bytes(), kind);
        let layer = memory.add(b"layer", "application/vnd.oci.image.layer.v1.tar");
        serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string().into_bytes()
    }

    const OURS: &str = r#"{"os":"linux","architecture":"amd64"}"#;

    #[test]
    fn the_image_for_our_platform_is_found_through_indexes() {
        let mut memory = Memory::default();
        let manifest = image(&mut memory, OURS, OCI_CONFIG);
        let mut ours = memory.add(&manifest, OCI_MANIFEST);
        ours["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
        let mut other = ours.clone();
        other["platform"]["architecture"] = "arm64".into();
        other["digest"] = "sha256:no".into();
        let inner =
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other, ours]})
                .to_string();
        let inner = memory.add(inner.as_bytes(), OCI_INDEX);
        memory.top = serde_json::json!({"schemaVersion": 2, "manifests": [inner]}).to_string().into_bytes();
        let found = resolve(&memory, &Quiet).unwrap();
        assert_eq!(found.digest, Digest::of(&manifest));
        assert_eq!(found.layers[0].digest, Digest::of(b"layer"));
    }

    #[test]
    fn a_webassembly_program_is_found_by_its_only_layer() {
        let mut memory = Memory::default();
        // As the layout has it; as `oras push` writes it; as it was before.
        for (config, layer) in [
            ("application/vnd.wasm.config.v0+json", WASM),
            ("application/vnd.oci.empty.v1+json", WASM),
            ("application/vnd.wasm.config.v1+json", WASM_BEFORE),
        ] {
            let config = memory.add(br#"{"os":"wasip2","architecture":"wasm"}"#, config);
            let layer = memory.add(b"\0asm", layer);
            let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
            let manifest = manifest.to_string().into_bytes();
            let mut program = memory.add(&manifest, OCI_MANIFEST);
            program["platform"] = serde_json::json!({"os": "wasip2", "architecture": "wasm"});
            let index = serde_json::json!({"schemaVersion": 2, "manifests": [program]});
            for top in [manifest, index.to_string().into_bytes()] {
                memory.top = top;
                let found = resolve(&memory, &Quiet).unwrap();
                assert!(found.form == Form::Program && found.layers[0].digest == Digest::of(b"\0asm"));
            }
        }
        // One beside an image of containers is not asked for.
        let ours = image(&mut memory, OURS, OCI_CONFIG);
        let mut ours = memory.add(&ours, OCI_MANIFEST);
        let mut program = ours.clone();
        program["platform"] = serde_json::json!({"os": "wasip2", "architecture": "wasm"});
        ours["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
        let both = serde_json::json!({"schemaVersion": 2, "manifests": [program, ours]});
        memory.top = both.to_string().into_bytes();
        assert_eq!(resolve(&memory, &Quiet).unwrap().form, Form::Container);
        // Two programs, or one among others, are nothing that runs.
        let config = memory.add(b"{}", "application/vnd.wasm.config.v0+json");
        let layer = memory.add(b"\0asm", WASM);
        let two = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer, layer]});
        memory.top = two.to_string().into_bytes();
        assert!(resolve(&memory, &Quiet).unwrap_err().message.contains("no image that runs"));
    }

    #[test]
    fn what_is_no_image_for_us_is_refused_with_the_reason() {
        let mut memory = Memory::default();
        let refused = |memory: &Memory| resolve(memory, &Quiet).unwrap_err().message;
        memory.top = image(&mut memory, r#"{"os":"linux","architecture":"riscv64"}"#, OCI_CONFIG);
        assert!(refused(&memory).contains("linux/riscv64"));
        memory.top = image(&mut memory, OURS, "application/vnd.cncf.helm.config.v1+json");
        assert!(refused(&memory).contains("helm"));
        memory.top = br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec();
        assert!(refused(&memory).contains("schema 1"));
        memory.top = br#"{"schemaVersion":2,"manifests":[{"digest":"x","size":1,"platform":{"os":"windows","architecture":"amd64"}}]}"#.to_vec();
        assert!(refused(&memory).contains("windows/amd64"));
        for wrong in [&b"{"[..], b"", b"[]", br#"{"schemaVersion":2}"#] {
            memory.top = wrong.to_vec();
            assert!(refused(&memory).contains("manifest"));
        }
        memory.top = image(&mut memory, OURS, OCI_CONFIG);
        for blob in memory.blobs.values_mut() {
            blob.push(b' ');
        }
        assert!(refused(&memory).contains("longer"));
    }

    #[test]
    fn an_index_in_itself_ends() {
        let mut memory = Memory::default();
        // Nobody can write its own digest into it; a chain that is too long stands for it.
        let mut inner = memory.add(&[], OCI_INDEX);
        for _ in 0..10 {
            let text = serde_json::json!({"schemaVersion": 2, "manifests": [inner]}).to_string();
            inner = memory.add(text.as_bytes(), OCI_INDEX);
            memory.top = text.into_bytes();
        }
        assert!(resolve(&memory, &Quiet).unwrap_err().message.contains("without end"));
    }
}
