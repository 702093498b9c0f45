//! Texts that name the layers of a disk, used like a disk.
#![no_main]
use viv_block::trial::{Place, hostile};
use viv_model::DiskFormat;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(place) = Place::new("fuzz-layers") else { return };
    let _ = std::fs::write(place.file("flat"), vec![1; 1 << 20]);
    hostile(DiskFormat::Layers, &place.file("image"), data);
});
