//! Hostile images for tests and fuzz targets: a small sound image of each format, changed at will, then used like a disk.

use crate::{CreateOptions, Disk, Qcow2, Source, layers_text, open, vhd, vhdx};
use std::io;
use std::path::{Path, PathBuf};
use viv_model::{DiskFormat, Fault};

/// Sound images of a format that there are.
pub const TEMPLATES: usize = 2;
/// Bytes of the disk in each image, but for the first's of qcow2.
const SIZE: u64 = 3 << 20;
/// Files that have grown beyond this are not checked: it takes too long for a trial.
const CHECKED_MAX: u64 = 64 << 20;
/// Bytes read and written at once.
const PIECE: usize = 5000;

/// A change to an image: a number put over what is there.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    /// Where.
    pub at: u64,
    /// How many bytes: 1, 2, 4 or 8.
    pub len: usize,
    /// What; big-endian, as the last bytes of it.
    pub value: u64,
}

/// A place for files of trials.
pub struct Place(PathBuf);

impl Place {
    /// A directory for this process alone, in memory where that is possible.
    pub fn new(name: &str) -> io::Result<Place> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("viv-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Place(path))
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The bytes of a sound image. For qcow2 they are made in a file at `scratch`.
pub fn template(format: DiskFormat, which: usize, scratch: &Path) -> io::Result<Vec<u8>> {
    Ok(match format {
        DiskFormat::Raw => vec![0x5a; SIZE as usize],
        DiskFormat::Qcow2 => return qcow2(which, scratch),
        DiskFormat::Vmdk => vmdk(which),
        DiskFormat::Vdi => vdi(),
        DiskFormat::Vhd => vhd(),
        DiskFormat::Vhdx => vhdx(),
        DiskFormat::Layers => layers_text(SIZE, &[], "flat").into_bytes(),
    })
}

/// Where the numbers of a sound image are that decide how it is read.
pub fn fields(format: DiskFormat, which: usize) -> Vec<(u64, usize)> {
    let each = |start: u64, end: u64, len: usize| (start..end).step_by(len).map(move |at| (at, len));
    match format {
        DiskFormat::Raw => Vec::new(),
        DiskFormat::Qcow2 => {
            let cluster = if which == 0 { 4096 } else { 65536 };
            let tables = (1..8).flat_map(|index| each(index * cluster, index * cluster + 32, 8));
            each(0, 120, 4)
                .chain(each(8, 16, 8))
                .chain(each(24, 32, 8))
                .chain(each(40, 56, 8))
                .chain(tables)
                .collect()
        }
        DiskFormat::Vmdk if which == 1 => each(0, 120, 1).collect(),
        DiskFormat::Vmdk => {
            each(4, 12, 4).chain(each(12, 44, 8)).chain(each(44, 80, 4)).chain(each(512, 1100, 4)).collect()
        }
        DiskFormat::Layers => each(0, 40, 1).collect(),
        DiskFormat::Vdi => each(64, 80, 4).chain(each(336, 400, 4)).chain(each(512, 528, 4)).collect(),
        DiskFormat::Vhd => each(0, 84, 4).chain(each(512, 560, 4)).chain(each(1536, 1544, 4)).collect(),
        DiskFormat::Vhdx => {
            let region = 192 << 10;
            let metadata = 1 << 20;
            let header = each(64 << 10, (64 << 10) + 80, 4).chain(each(region, region + 80, 4));
            let items = each(metadata, metadata + 128, 4).chain(each(
                metadata + (64 << 10),
                metadata + (64 << 10) + 24,
                4,
            ));
            header.chain(items).chain(each(2 << 20, (2 << 20) + 24, 8)).collect()
        }
    }
}

/// Values at which readers break.
pub fn values(file_len: u64) -> [u64; 16] {
    let big = u64::MAX;
    [
        0,
        1,
        7,
        255,
        511,
        512,
        4096,
        65536,
        file_len - 1,
        file_len,
        file_len + 1,
        i32::MAX as u64,
        u64::from(u32::MAX),
        i64::MAX as u64,
        big - 511,
        big,
    ]
}

/// Changes an image; with `sums`, its checksums are right again.
pub fn patch(image: &mut [u8], format: DiskFormat, patches: &[Patch], sums: bool) {
    for Patch { at, len, value } in patches {
        let bytes = value.to_be_bytes();
        let bytes = bytes.get(8usize.saturating_sub(*len)..).unwrap_or_default();
        let at = usize::try_from(*at).unwrap_or(usize::MAX);
        if let Some(place) = at.checked_add(bytes.len()).and_then(|end| image.get_mut(at..end)) {
            place.copy_from_slice(bytes);
        }
    }
    if sums {
        match format {
            DiskFormat::Vhd => vhd_sums(image),
            DiskFormat::Vhdx => vhdx_sums(image),
            _ => {}
        }
    }
}

/// Uses a file as a disk of this format, whatever is in it: reads, and writes where that is possible, at places that
/// `moves` say. Gives the fault if it is refused.
pub fn play(path: &Path, format: DiskFormat, moves: &[u8]) -> Result<(), Fault> {
    let writes = matches!(format, DiskFormat::Raw | DiskFormat::Qcow2);
    let source = Source { format: Some(format), ..Source::new(path, !writes) };
    let before = viv_backing(path, format);
    let disk = open(&source).map_err(Fault::from)?;
    let size = disk.size();
    let mut data = vec![0; PIECE];
    let scale = size / 256 + 1;
    for (index, step) in moves.iter().chain(&[0, 255]).enumerate() {
        let at = (u64::from(*step) * scale + index as u64 * 700).min(size.saturating_sub(1));
        let len = (size - at).min(PIECE as u64);
        let piece = data.get_mut(..len as usize).unwrap_or_default();
        // A disk that contradicts itself answers with errors.
        match (writes, index % 6) {
            (true, 1 | 2) => drop(disk.write(at, piece)),
            (true, 3) => drop(disk.discard(at, len)),
            (true, 4) => drop(disk.write_zeroes(at, len, step % 2 == 0)),
            (true, 5) if step % 4 == 0 => drop(disk.flush()),
            _ => drop(disk.read(at, piece)),
        }
        let extent = disk.extent(at, len);
        assert!(
            extent.is_err() || len == 0 || extent.is_ok_and(|extent| extent.len > 0 && extent.len <= len)
        );
    }
    drop(disk.flush());
    drop(disk);
    // A guest's data must never have become the image's own.
    assert_eq!(before, viv_backing(path, format), "the disk below an image has changed");
    if format == DiskFormat::Qcow2 && std::fs::metadata(path).is_ok_and(|file| file.len() <= CHECKED_MAX) {
        let _ = Qcow2::check(path, false);
        if let Ok(report) = Qcow2::check(path, true)
            && report.is_clean()
        {
            let again = Qcow2::check(path, false);
            assert!(again.as_ref().is_ok_and(|again| again.is_clean()), "repaired, but {again:?}");
        }
    }
    Ok(())
}

/// What an image says is below it.
fn viv_backing(path: &Path, format: DiskFormat) -> Option<String> {
    let info = crate::info(&Source { format: Some(format), ..Source::new(path, true) });
    info.ok()?.qcow2?.backing
}

/// What a fuzz target does with its input: which template, whether sums are right, changes, moves.
pub fn hostile(format: DiskFormat, path: &Path, input: &[u8]) {
    let Some(([first, count], mut rest)) = input.split_first_chunk::<2>() else { return };
    let Ok(mut image) = template(format, usize::from(first % 2), path) else { return };
    let fields = fields(format, usize::from(first % 2));
    let mut patches = Vec::new();
    for _ in 0..count % 16 {
        let Some(([field, kind, value @ ..], later)) = rest.split_first_chunk::<10>() else { break };
        rest = later;
        let (at, len) = match fields.get(usize::from(*field) | usize::from(kind & 1) << 8) {
            Some(field) => *field,
            None => (u64::from(*field) << 8 | u64::from(*kind), 8),
        };
        let value = u64::from_be_bytes(*value);
        let known = values(image.len() as u64);
        let value = known.get(usize::from(kind >> 2)).copied().unwrap_or(value);
        patches.push(Patch { at, len, value });
    }
    patch(&mut image, format, &patches, first & 2 == 0);
    if std::fs::write(path, image).is_ok() {
        if let Err(fault) = play(path, format, rest) {
            assert!(!fault.fix.is_empty(), "{fault}");
        }
        let _ = std::fs::remove_file(path);
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = image.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn le32s(image: &mut [u8], at: usize, numbers: &[u32]) {
    numbers.iter().enumerate().for_each(|(index, number)| put(image, at + index * 4, &number.to_le_bytes()));
}

fn le64s(image: &mut [u8], at: usize, numbers: &[u64]) {
    numbers.iter().enumerate().for_each(|(index, number)| put(image, at + index * 8, &number.to_le_bytes()));
}

fn be32s(image: &mut [u8], at: usize, numbers: &[u32]) {
    numbers.iter().enumerate().for_each(|(index, number)| put(image, at + index * 4, &number.to_be_bytes()));
}

fn be64s(image: &mut [u8], at: usize, numbers: &[u64]) {
    numbers.iter().enumerate().for_each(|(index, number)| put(image, at + index * 8, &number.to_be_bytes()));
}

/// Ours, with data in a few clusters.
fn qcow2(which: usize, path: &Path) -> io::Result<Vec<u8>> {
    let _ = std::fs::remove_file(path);
    let (cluster, size) = if which == 0 { (4096, 8 << 20) } else { (65536, SIZE) };
    let options = CreateOptions { cluster, ..CreateOptions::new(size) };
    let disk = Qcow2::create(path, &options).map_err(io::Error::other)?;
    for at in [0, 70_000, SIZE - 5000] {
        disk.write(at, &[0x77; 5000])?;
    }
    disk.write_zeroes(0, 4096, false)?;
    disk.flush()?;
    drop(disk);
    let image = std::fs::read(path);
    std::fs::remove_file(path)?;
    image
}

/// A sparse extent, or a descriptor.
fn vmdk(which: usize) -> Vec<u8> {
    if which == 1 {
        let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 4096 ZERO\nRW 2048 FLAT \"flat\" 0\n";
        return text.as_bytes().to_vec();
    }
    let mut image = vec![0; 256 << 10];
    put(&mut image, 0, b"KDMV");
    le32s(&mut image, 4, &[1, 3]);
    le64s(&mut image, 12, &[SIZE / 512, 128, 0, 0]);
    le32s(&mut image, 44, &[512]);
    le64s(&mut image, 48, &[0, 1, 128]);
    le32s(&mut image, 512, &[2]);
    le32s(&mut image, 1024, &[128, 0, 256]);
    image
}

fn vdi() -> Vec<u8> {
    let mut image = vec![0; 1024 + (2 << 20)];
    put(&mut image, 0, b"<<< a disk image >>>");
    le32s(&mut image, 64, &[0xbeda_107f, 0x1_0001, 400, 1]);
    le32s(&mut image, 340, &[512, 1024]);
    le64s(&mut image, 368, &[SIZE]);
    le32s(&mut image, 376, &[1 << 20, 0, 3, 2]);
    le32s(&mut image, 512, &[1, u32::MAX, 0]);
    image
}

fn vhd() -> Vec<u8> {
    let mut image = vec![0; 2048 + 512 + (2 << 20) + 512];
    put(&mut image, 0, b"conectix");
    be32s(&mut image, 8, &[2, 0x1_0000]);
    be64s(&mut image, 16, &[512]);
    be64s(&mut image, 40, &[SIZE, SIZE]);
    be32s(&mut image, 60, &[3]);
    put(&mut image, 512, b"cxsparse");
    be64s(&mut image, 520, &[u64::MAX, 1536]);
    be32s(&mut image, 536, &[0x1_0000, 2, 2 << 20]);
    be32s(&mut image, 1536, &[4, u32::MAX]);
    vhd_sums(&mut image);
    image
}

fn vhd_sums(image: &mut [u8]) {
    let sum = |image: &[u8], from: usize, len: usize, at: usize| {
        vhd::checksum(image.get(from..from + len).unwrap_or_default(), at)
    };
    let footer = sum(image, 0, 512, 64);
    be32s(image, 64, &[footer]);
    let header = sum(image, 512, 1024, 36);
    be32s(image, 548, &[header]);
    let copy = image.get(..512).unwrap_or_default().to_vec();
    put(image, image.len() - 512, &copy);
}

fn vhdx() -> Vec<u8> {
    const KIB: usize = 1024;
    let mut image = vec![0; 5 << 20];
    put(&mut image, 0, b"vhdxfile");
    for (index, at) in [64 * KIB, 128 * KIB].into_iter().enumerate() {
        put(&mut image, at, b"head");
        le64s(&mut image, at + 8, &[index as u64 + 1]);
    }
    let (metadata, bat) = (1 << 20, 2 << 20);
    for at in [192 * KIB, 256 * KIB] {
        put(&mut image, at, b"regi");
        le32s(&mut image, at + 8, &[2]);
        put(&mut image, at + 16, &vhdx::BAT);
        le64s(&mut image, at + 32, &[bat]);
        le32s(&mut image, at + 40, &[1 << 20, 1]);
        put(&mut image, at + 48, &vhdx::METADATA);
        le64s(&mut image, at + 64, &[metadata]);
        le32s(&mut image, at + 72, &[1 << 20, 1]);
    }
    let metadata = metadata as usize;
    put(&mut image, metadata, b"metadata");
    put(&mut image, metadata + 10, &[3, 0]);
    let items = 64 * KIB;
    for (index, (id, at)) in
        [(vhdx::FILE_PARAMETERS, 0), (vhdx::DISK_SIZE, 8), (vhdx::LOGICAL_SECTOR, 16)].into_iter().enumerate()
    {
        let entry = metadata + 32 + index * 32;
        put(&mut image, entry, &id);
        le32s(&mut image, entry + 16, &[(items + at) as u32, 8]);
    }
    le32s(&mut image, metadata + items, &[1 << 20, 0]);
    le64s(&mut image, metadata + items + 8, &[SIZE, 512]);
    le64s(&mut image, bat as usize, &[3 << 20 | 6, 0, 4 << 20 | 6]);
    vhdx_sums(&mut image);
    image
}

fn vhdx_sums(image: &mut [u8]) {
    for (at, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)] {
        let sum = vhdx::crc32c(image.get(at..at + len).unwrap_or_default());
        le32s(image, at + 4, &[sum]);
    }
}
