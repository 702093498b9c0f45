//! What is in an image, and whether it is still what it was.
use super::layers::blake3_file;
use super::store::{Store, sha256_file};
use super::{Image, fault};
use std::path::Path;
use viv_api::image::{ImageDetails, ImageHistory, ImageLayer, ImageVerified};
use viv_model::Fault;

/// What `viv image show` and `history` say. `shown` is the image as lists have it.
pub(super) fn details(
    store: &Store,
    image: &Image,
    shown: viv_api::image::Image,
) -> Result<ImageDetails, Fault> {
    let manifest = &image.manifest;
    let packages = manifest.packages.iter().map(|package| (package.name.clone(), package.version.clone()));
    let mut details = ImageDetails {
        image: shown,
        source_digest: None,
        made: None,
        layers: Vec::new(),
        history: Vec::new(),
        packages: packages.collect(),
        labels: manifest.labels.clone(),
    };
    let Some(container) = &manifest.container else { return Ok(details) };
    let others: Vec<Image> = store.list()?.into_iter().filter(|other| other.name != image.name).collect();
    let layer = |digest: &String| ImageLayer {
        digest: digest.clone(),
        size_bytes: store.layers().bytes_on_disk(digest),
        shared_with: others
            .iter()
            .filter(|other| other.manifest.layers().any(|layer| layer == digest))
            .count(),
    };
    details.layers = container.layers.iter().map(layer).collect();
    let path = store.part(image, &container.config)?;
    let text = std::fs::read(&path).map_err(fault::io_fault("read", &path))?;
    let config: viv_oci::Config =
        serde_json::from_slice(&text).map_err(|error| fault::broken("the image's configuration", error))?;
    let mut sizes = details.layers.iter().map(|layer| layer.size_bytes);
    let history = config.history.into_iter().map(|step| ImageHistory {
        created: step.created,
        created_by: step.created_by,
        size_bytes: if step.empty_layer { None } else { sizes.next() },
        comment: step.comment,
    });
    details.history = history.collect();
    details.source_digest = Some(container.manifest.digest.clone());
    details.made = config.created;
    details.labels.extend(config.config.labels);
    Ok(details)
}

/// Reads every byte of an image and compares it with its digests.
pub(super) fn verify(store: &Store, image: &Image) -> Result<ImageVerified, Fault> {
    let mut verified = ImageVerified { name: image.name.clone(), bytes: 0, damage: Vec::new() };
    let mut check = |path: &Path, wanted: &str| match sha256_file(path) {
        Ok((found, bytes)) => {
            verified.bytes = verified.bytes.saturating_add(bytes);
            if found != wanted.trim_start_matches("sha256:") {
                verified.damage.push(format!("{} is sha256:{found}, and was {wanted}", path.display()));
            }
        }
        Err(error) => verified.damage.push(format!("{}: {error}", path.display())),
    };
    check(&store.blob_path(&image.digest)?, &image.digest);
    for part in image.manifest.parts() {
        check(&store.blob_path(&part.digest)?, &part.digest);
    }
    let (mut damage, mut read_of_layers) = (Vec::new(), 0u64);
    for digest in image.manifest.layers() {
        match store.layers().get(digest) {
            Ok(Some(layer)) => {
                match blake3_file(&layer.data()) {
                    Ok((found, bytes)) => {
                        read_of_layers = read_of_layers.saturating_add(bytes);
                        if found != layer.facts.data_blake3 {
                            damage.push(format!("{} is not what was unpacked", layer.data().display()));
                        }
                    }
                    Err(error) => damage.push(format!("{}: {error}", layer.data().display())),
                }
                // It has a checksum of its own.
                damage.extend(layer.index().err().map(|fault| format!("layer {digest}: {}", fault.message)));
            }
            Ok(None) => damage.push(format!("layer {digest} is not there")),
            Err(fault) => damage.push(fault.message),
        }
    }
    verified.bytes = verified.bytes.saturating_add(read_of_layers);
    verified.damage.extend(damage);
    Ok(verified)
}
