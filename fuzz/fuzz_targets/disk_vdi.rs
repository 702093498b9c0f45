//! VDI images with changed headers and tables, used like a disk.
#![no_main]
use viv_block::trial::{Place, hostile};
use viv_model::DiskFormat;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(place) = Place::new("fuzz-vdi") else { return };
    hostile(DiskFormat::Vdi, &place.file("image"), data);
});
