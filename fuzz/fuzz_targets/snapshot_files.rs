//! A snapshot's memory in layers whose sizes, maps and contents are made up, with right checksums: opened and verified. And any
//! bytes as a manifest, with its right checksum.
#![no_main]
use std::fs::{self, File};
use std::path::Path;
use viv_block::trial::Place;
use viv_model::{Content, Layer, Manifest};
use viv_snapshot::{content_files, layer_file, map_file, open_memory, read_manifest, sums_file};

fn number(data: &mut &[u8]) -> u64 {
    let (first, rest) = data.split_at(data.len().min(8));
    *data = rest;
    let mut bytes = [0; 8];
    bytes[..first.len()].copy_from_slice(first);
    // Mostly small ones: files are made of them.
    let number = u64::from_le_bytes(bytes);
    if number % 4 == 0 { number } else { number % (1 << 20) }
}

fn sum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Makes the files of one layer, and says what its map is.
fn layer(dir: &Path, name: &str, bytes: u64, data: &mut &[u8]) -> Option<String> {
    let file = File::create(dir.join(name)).ok()?;
    let _ = file.set_len(bytes.min(4 << 20) / 512 * 512);
    let has_map = number(data) % 3 != 0;
    let map: Vec<u8> =
        (0..number(data) % 300).map(|at| data.get(at as usize).copied().unwrap_or(0)).collect();
    let _ = fs::write(dir.join(map_file(name)), &map);
    has_map.then(|| sum(&map))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(place) = Place::new("fuzz-snapshot") else { return };
    let Some(dir) = place.file("manifest").parent().map(ToOwned::to_owned) else { return };
    let text = String::from_utf8_lossy(data).replace('\n', " ");
    let _ = fs::write(place.file("manifest"), format!("{text}\nblake3 {}\n", sum(text.as_bytes())));
    let _ = read_manifest(&dir);

    let mut data = data;
    let bytes = number(&mut data);
    let sums: Vec<u8> =
        (0..number(&mut data) % 600).map(|at| data.get(at as usize).copied().unwrap_or(0)).collect();
    let _ = fs::write(dir.join(sums_file("memory")), &sums);
    let map = layer(&dir, "memory", bytes, &mut data);
    let mut below = Vec::new();
    for depth in 1..=number(&mut data) as usize % 4 {
        let bytes = number(&mut data);
        let map = layer(&dir, &layer_file("memory", depth), bytes, &mut data);
        below.push(Layer { bytes, map });
    }
    let memory = Content { bytes, data_bytes: number(&mut data), checksum: sum(&sums), map, below };
    let _ = content_files("memory", &memory);
    let machine = r#"{"kernel":"/k","cpus":1,"memory_mib":64}"#;
    let rest = r#""format":2,"release":"0","id":"0","name":"n","created_unix_s":0,"vm":["0","v"],"paused_ns":0,"sections":[],"disks":[],"files":[]"#;
    let memory = serde_json::to_string(&memory).unwrap_or_default();
    let manifest: Manifest =
        serde_json::from_str(&format!("{{{rest},\"machine\":{machine},\"memory\":{memory}}}"))
            .expect("a manifest");
    let _ = manifest.data_bytes();
    if let Ok(memory) = open_memory(&manifest, &dir) {
        let _ = (
            memory.verify(&mut |_| true),
            memory.read(0, &mut [0; 5000]),
            memory.read(bytes / 2, &mut [0; 9]),
        );
    }
});
