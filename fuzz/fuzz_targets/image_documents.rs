//! What a registry or an archive says of an image: any bytes in the place of its index, of its manifest or of its configuration,
//! each with the digest that it has; and who a request says to be to registries.
#![no_main]
use viv_model::Fault;
use viv_oci::{Blob, Descriptor, Digest, Logins, Source, Watch, resolve};

struct Told {
    top: Vec<u8>,
    below: Vec<u8>,
}

impl Source for Told {
    fn name(&self) -> String {
        "image".to_string()
    }
    fn top(&self, _: &dyn Watch) -> Result<Vec<u8>, Fault> {
        Ok(self.top.clone())
    }
    fn document(&self, _: &Descriptor, _: &dyn Watch) -> Result<Vec<u8>, Fault> {
        Ok(self.below.clone())
    }
    fn blob(&self, _: &Descriptor, from: u64, _: &dyn Watch) -> Result<Blob, Fault> {
        Ok(Blob { from, reader: Box::new(std::io::empty()) })
    }
    fn is_remote(&self) -> bool {
        false
    }
}

struct Nobody;

impl Watch for Nobody {
    fn bytes(&self, _: i64) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((place, data)) = data.split_first() else { return };
    if let Some(logins) = std::str::from_utf8(data).ok().and_then(|text| Logins::decode(text).ok()) {
        assert_eq!(Logins::decode(&logins.encode()), Ok(logins));
    }
    let (digest, size) = (Digest::of(data), data.len());
    let descriptor = |kind: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}.v1+json","digest":"{digest}","size":{size}}}"#
        )
    };
    let top = match place % 3 {
        0 => data.to_vec(),
        1 => format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor("manifest")).into_bytes(),
        _ => format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, descriptor("config")).into_bytes(),
    };
    if let Ok(image) = resolve(&Told { top, below: data.to_vec() }, &Nobody) {
        assert_eq!(Digest::of(&image.manifest), image.digest);
    }
});
