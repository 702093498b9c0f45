//! WebAssembly programs leave for a registry: as the artifact that [`super::pull`] reads (CNCF, "Wasm OCI Artifact layout").
use super::carry::Sending;
use super::fault::{broken, io_fault};
use super::pull::{MANIFEST, PROGRAM, PROGRAM_MAX};
use super::store::Store;
use super::{Watcher, step};
use serde_json::json;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use viv_api::image::{ImagePush, Pushed};
use viv_model::{Fault, Kind};
use viv_oci::{Client, Digest, Logins, Options, Pusher};

/// What a program says of itself there.
const CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// The two documents of a program.
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
}

/// Those of this program; the same each time.
fn documents(program: &[u8]) -> Result<Documents, Fault> {
    // WebAssembly Core 2.0 §5.5.16; a component has another version (Component Model, Binary.md).
    let os = match program {
        [0, b'a', b's', b'm', _, _, 1, _, ..] => "wasip2",
        [0, b'a', b's', b'm', ..] => "wasip1",
        _ => {
            return Err(Fault::new(
                Kind::Usage,
                "it is no WebAssembly program in its binary form, which is what registries keep",
                "name a .wasm file; text is translated by: wasm-tools parse FILE.wat -o FILE.wasm",
            ));
        }
    };
    let failed = |error| broken("the program's manifest", error);
    let digest = Digest::of(program).to_string();
    let config = json!({ "architecture": "wasm", "os": os, "layerDigests": [digest] });
    let config = serde_json::to_vec(&config).map_err(failed)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": CONFIG, "digest": Digest::of(&config).to_string(), "size": config.len(),
        },
        "layers": [{ "mediaType": PROGRAM, "digest": digest, "size": program.len() }],
    });
    Ok(Documents { manifest: serde_json::to_vec(&manifest).map_err(failed)?, config })
}

/// Sends the program in this file, which the user knows as `called`. What is there already is not sent.
pub(super) fn push(
    store: &Store,
    (file, called): (&Path, &str),
    ask: &ImagePush,
    logins: &Logins,
    watcher: &dyn Watcher,
) -> Result<Pushed, Fault> {
    let name = super::carry::target(ask)?;
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|file| file.take(PROGRAM_MAX + 1).read_to_end(&mut bytes));
    read.map_err(io_fault("read", file))?;
    if bytes.len() as u64 > PROGRAM_MAX {
        let text = format!("{called} has more than {PROGRAM_MAX} bytes, the most that a program has");
        return Err(Fault::new(
            Kind::Usage,
            text,
            "make it smaller: wasm-opt, or strip its debug information",
        ));
    }
    let documents = documents(&bytes).map_err(|fault| {
        Fault::new(fault.kind, format!("cannot send {called}: {}", fault.message), fault.fix)
    })?;
    let sending = Sending { watcher, step: format!("sending {called} to {name}") };
    let client = Client::new(Options { insecure: ask.insecure, logins: logins.clone() })?;
    let pusher = Pusher::new(&client, name.clone())?;
    let scratch = store.pull_scratch()?;
    let (mut sent, mut known) = (0u64, 0);
    for (what, bytes, is_layer) in [("program", &bytes, true), ("config", &documents.config, false)] {
        let digest = Digest::of(bytes);
        if pusher.has(&digest, &sending)? {
            known += usize::from(is_layer);
            continue;
        }
        step(watcher, &format!("sending the {what} of {called} to {name}"));
        // What was read is what is sent, whatever becomes of the file.
        let copy = scratch.path().join(what);
        fs::write(&copy, bytes).map_err(io_fault("write", &copy))?;
        pusher.blob(&digest, &copy, &sending)?;
        sent = sent.saturating_add(bytes.len() as u64);
    }
    // The last step: before it, nobody sees anything.
    let digest = pusher.manifest(&documents.manifest, &sending)?;
    Ok(Pushed {
        reference: name.to_string(),
        digest: digest.to_string(),
        sent_bytes: sent,
        known_layers: known,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_says_what_it_is_for_and_what_is_none_is_refused() {
        let module = b"\0asm\x01\0\0\0";
        let told = documents(module).unwrap();
        assert!(String::from_utf8_lossy(&told.config).contains("wasip1"));
        assert_eq!(told.manifest, documents(module).unwrap().manifest);
        let component = documents(b"\0asm\x0d\0\x01\0").unwrap();
        assert!(String::from_utf8_lossy(&component.config).contains("wasip2"));
        for none in [&b"(module)"[..], b"", b"\0as", b"root:x:0:0"] {
            assert_eq!(documents(none).err().map(|fault| fault.kind), Some(Kind::Usage));
        }
    }
}
