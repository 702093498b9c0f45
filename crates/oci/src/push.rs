//! Images to a registry (OCI distribution specification 1.1, "Push").
use crate::Digest;
use crate::reference::RegistryName;
use crate::registry::{Client, Content, Registry};
use crate::source::Watch;
use crate::types::OCI_MANIFEST;
use serde::Deserialize;
use std::path::Path;
use ureq::http::{StatusCode, header};
use viv_model::{Fault, Kind};

/// A repository of a registry, to be written to. Never a mirror.
pub struct Pusher {
    registry: Registry,
    name: RegistryName,
}

impl Pusher {
    /// The repository of `name`; nobody is asked yet.
    pub fn new(client: &Client, name: RegistryName) -> Result<Pusher, Fault> {
        Ok(Pusher { registry: Registry::writable(client, name.clone())?, name })
    }

    /// Whether the repository has this content ("Checking if content exists in the registry").
    pub fn has(&self, digest: &Digest, watch: &dyn Watch) -> Result<bool, Fault> {
        match self.registry.ask(&format!("blobs/{digest}"), &Content::Head, watch) {
            Ok(_) => Ok(true),
            Err(fault) if fault.kind == Kind::NotFound => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Sends a file of this digest ("Pushing a blob monolithically": POST then PUT).
    pub fn blob(&self, digest: &Digest, file: &Path, watch: &dyn Watch) -> Result<(), Fault> {
        let answer = self.registry.ask("blobs/uploads/", &Content::Begin, watch)?;
        let location = answer.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
        let location = location.ok_or_else(|| self.strange("it says nowhere where to send"))?.to_string();
        let joint = if location.contains('?') { '&' } else { '?' };
        let put = Content::File { to: format!("{location}{joint}digest={digest}"), file: file.to_path_buf() };
        let answer = self.registry.ask("", &put, watch)?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            status => Err(self.strange(&format!("it answers {status} to a blob"))),
        }
    }

    /// Makes a manifest what the name's tag means ("Pushing Manifests"): all that it names must be there.
    pub fn manifest(&self, manifest: &[u8], watch: &dyn Watch) -> Result<Digest, Fault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Typed {
            #[serde(default)]
            media_type: String,
        }
        let kind =
            serde_json::from_slice::<Typed>(manifest).map(|typed| typed.media_type).unwrap_or_default();
        let kind = if kind.is_empty() { OCI_MANIFEST.to_string() } else { kind };
        let put = Content::Manifest { kind, text: manifest.to_vec() };
        self.registry.ask(&format!("manifests/{}", self.name.wanted()), &put, watch)?;
        Ok(Digest::of(manifest))
    }

    fn strange(&self, what: &str) -> Fault {
        Fault::new(
            Kind::Error,
            format!("cannot send {}: the registry does not do what is agreed: {what}", self.name),
            "try again; if it stays so, ask whoever runs the registry",
        )
    }
}
