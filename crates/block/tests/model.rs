//! Disks against an array of bytes: random requests of several threads, other sizes, reopening; after each round
//! `qemu-img check` must find nothing, and what QEMU reads must be what was written. Some 13,000 operations,
//! or seven times what VIV_DISK_OPERATIONS says.

mod scratch;

use scratch::{Directory, alone, qemu_img, qemu_img_is_there};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use viv_block::{Disk, Source, open};
use viv_model::DiskFormat;

const THREADS: u64 = 16;
/// Each thread has stripes of its own, no multiple of a cluster.
const STRIPE: u64 = 24 * 1024 + 512;
const SIZE: u64 = 3 * 1024 * 1024 + 512 * 7;
const ROUND: u64 = 400;

/// A small generator of numbers (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A range within `first..end`, of whole sectors mostly.
    fn range(&mut self, first: u64, end: u64) -> (u64, u64) {
        let mut at = first + self.below(end - first);
        let mut len = match self.below(4) {
            0 => self.below(512) + 1,
            1 => 4096,
            2 => self.below(64 * 1024) + 1,
            _ => self.below(end - first) + 1,
        };
        if self.below(4) > 0 {
            at -= (at - first) % 512;
            len = len.next_multiple_of(512);
        }
        (at, len.min(end - at))
    }
}

/// What is known of a byte: nothing after a discard.
type Known = Vec<Option<u8>>;
/// A part of a disk: its offset, and what is known of it.
type Stripe<'a> = (u64, &'a mut [Option<u8>]);

/// One request within `first..end`, on the disk and the model of that part.
fn request(dice: &mut Dice, disk: &dyn Disk, model: &mut [Option<u8>], first: u64, end: u64) {
    let (at, len) = dice.range(first, end);
    let part = &mut model[(at - first) as usize..(at - first + len) as usize];
    match dice.below(10) {
        0..4 => {
            let data: Vec<u8> = if dice.below(8) == 0 {
                vec![0; len as usize]
            } else {
                let seed = dice.next();
                (0..len).map(|index| (seed.rotate_left(index as u32 % 61) ^ index) as u8).collect()
            };
            disk.write(at, &data).unwrap();
            part.iter_mut().zip(data).for_each(|(known, byte)| *known = Some(byte));
        }
        4..7 => {
            let mut data = vec![0x5a; len as usize];
            disk.read(at, &mut data).unwrap();
            for (index, (known, byte)) in part.iter().zip(&data).enumerate() {
                assert!(known.is_none_or(|known| known == *byte), "byte {} of {at}+{len}", index);
            }
        }
        7 => {
            disk.discard(at, len).unwrap();
            part.fill(None);
        }
        8 => {
            disk.write_zeroes(at, len, dice.below(2) == 0).unwrap();
            part.fill(Some(0));
        }
        _ => match dice.below(4) {
            0 => disk.flush().unwrap(),
            _ => {
                let extent = disk.extent(at, len).unwrap();
                assert!(extent.len > 0 && extent.len <= len);
                if extent.zero {
                    let zero =
                        part[..extent.len as usize].iter().all(|known| known.is_none_or(|byte| byte == 0));
                    assert!(zero, "{extent:?} at {at}");
                }
            }
        },
    }
}

/// Requests of several threads, each to its own stripes; clusters are shared.
fn threads(disk: &dyn Disk, model: &mut Known, seed: u64, operations: u64) {
    let mut stripes: Vec<Vec<Stripe<'_>>> = (0..THREADS).map(|_| Vec::new()).collect();
    for (index, part) in (0u64..).zip(model.chunks_mut(STRIPE as usize)) {
        stripes[(index % THREADS) as usize].push((index * STRIPE, part));
    }
    std::thread::scope(|scope| {
        for (thread, mut stripes) in (0u64..).zip(stripes) {
            scope.spawn(move || {
                let mut dice = Dice(seed ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                for _ in 0..operations / THREADS {
                    let index = dice.below(stripes.len() as u64) as usize;
                    let (first, part) = &mut stripes[index];
                    let end = *first + part.len() as u64;
                    request(&mut dice, disk, part, *first, end);
                }
            });
        }
    });
}

fn resize(dice: &mut Dice, disk: &dyn Disk, model: &mut Known) {
    let size = (SIZE / 2 + dice.below(SIZE)) / 512 * 512;
    disk.resize(size).unwrap();
    assert_eq!(disk.size(), size);
    model.resize(size as usize, Some(0));
}

fn compare(disk: &dyn Disk, model: &Known) {
    assert_eq!(disk.size(), model.len() as u64);
    let mut data = vec![0; model.len()];
    disk.read(0, &mut data).unwrap();
    let wrong = model.iter().zip(&data).position(|(known, byte)| known.is_some_and(|known| known != *byte));
    assert_eq!(wrong, None, "the first byte that is wrong");
}

fn operations() -> u64 {
    let text = std::env::var("VIV_DISK_OPERATIONS");
    text.ok().map_or(2000, |text| text.parse().expect("VIV_DISK_OPERATIONS is a number"))
}

/// Plays with the image at `path`, whose content is `model`.
fn play(path: &Path, format: DiskFormat, mut model: Known, operations: u64, can_shrink: bool) {
    static SEED: AtomicU64 = AtomicU64::new(0x1234_5678_9abc_def1);
    let mut dice = Dice(SEED.fetch_add(0x0101_0101, Ordering::Relaxed));
    let source = Source { format: Some(format), ..Source::new(path, false) };
    let mut disk = open(&source).unwrap();
    compare(&*disk, &model);
    for round in 0..operations.div_ceil(2 * ROUND) {
        threads(&*disk, &mut model, dice.next(), ROUND);
        if can_shrink {
            resize(&mut dice, &*disk, &mut model);
        }
        let end = model.len() as u64;
        for _ in 0..ROUND {
            request(&mut dice, &*disk, &mut model, 0, end);
        }
        disk.flush().unwrap();
        compare(&*disk, &model);
        if round % 2 == 0 {
            drop(disk);
            check(path, format);
            disk = open(&source).unwrap();
            compare(&*disk, &model);
        }
    }
    drop(disk);
    check(path, format);
    // What QEMU reads.
    if qemu_img_is_there() {
        let raw = path.with_extension("as-raw");
        qemu_img(&["convert", "-f", format.name(), "-O", "raw"], &[path, &raw]);
        let seen = std::fs::read(&raw).unwrap();
        assert_eq!(seen.len(), model.len());
        assert!(model.iter().zip(seen).all(|(known, byte)| known.is_none_or(|known| known == byte)));
    }
}

fn check(path: &Path, format: DiskFormat) {
    if format == DiskFormat::Qcow2 {
        let report = viv_block::Qcow2::check(path, false).unwrap();
        assert!(report.leaks == 0 && report.corruptions == 0, "{report:?}");
        if qemu_img_is_there() {
            qemu_img(&["check", "-q", "-f", "qcow2"], &[path]);
        }
    }
}

/// Bytes for a disk, with gaps.
fn content(size: u64) -> Vec<u8> {
    let gap = |index: u64| (index / 50_000).is_multiple_of(3);
    (0..size).map(|index| if gap(index) { 0 } else { (index * 7 / 5) as u8 }).collect()
}

fn known(content: &[u8], size: u64) -> Known {
    let mut model: Known = content.iter().copied().map(Some).collect();
    model.resize(size as usize, Some(0));
    model
}

#[test]
fn a_raw_disk() {
    let _alone = alone();
    let dir = Directory::new("raw");
    let path = dir.file("disk.raw");
    viv_block::RawDisk::create(&path, SIZE).unwrap();
    play(&path, DiskFormat::Raw, known(&[], SIZE), operations(), true);
}

#[test]
fn images_of_our_own() {
    let _alone = alone();
    let dir = Directory::new("own");
    for cluster in [4096, 65536, 2 << 20] {
        let path = dir.file(&format!("{cluster}.qcow2"));
        let options = viv_block::CreateOptions { cluster, ..viv_block::CreateOptions::new(SIZE) };
        drop(viv_block::Qcow2::create(&path, &options).unwrap());
        check(&path, DiskFormat::Qcow2);
        play(&path, DiskFormat::Qcow2, known(&[], SIZE), operations() / 2, true);
    }
}

/// An image that QEMU makes from `content`.
fn made_by_qemu(dir: &Directory, name: &str, content: &[u8], options: &str, packed: bool) -> PathBuf {
    let (raw, path) = (dir.file("content.raw"), dir.file(name));
    std::fs::write(&raw, content).unwrap();
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
    arguments.extend(packed.then_some("-c"));
    qemu_img(&arguments, &[&raw, &path]);
    path
}

#[test]
fn images_of_qemu() {
    let _alone = alone();
    if !qemu_img_is_there() {
        return;
    }
    let dir = Directory::new("qemu");
    let content = content(SIZE);
    let kinds = [
        ("compat=0.10", false),
        ("compat=0.10,cluster_size=4096", true),
        ("compat=1.1,cluster_size=512,refcount_bits=64", false),
        ("compat=1.1,cluster_size=1024,refcount_bits=1", false),
        ("compat=1.1,refcount_bits=8,lazy_refcounts=on", true),
        ("compat=1.1,compression_type=zstd", true),
        ("compat=1.1,compression_type=zstd,cluster_size=2M", true),
    ];
    for (index, (options, packed)) in kinds.into_iter().enumerate() {
        let path = made_by_qemu(&dir, &format!("{index}.qcow2"), &content, options, packed);
        play(&path, DiskFormat::Qcow2, known(&content, SIZE), operations() / 4, true);
    }
}

#[test]
fn images_with_snapshots_of_their_own() {
    let _alone = alone();
    if !qemu_img_is_there() {
        return;
    }
    let dir = Directory::new("snapshots");
    let content = content(SIZE);
    for (index, packed) in [false, true].into_iter().enumerate() {
        let path = made_by_qemu(&dir, &format!("{index}.qcow2"), &content, "cluster_size=4096", packed);
        qemu_img(&["snapshot", "-c", "before"], &[&path]);
        play(&path, DiskFormat::Qcow2, known(&content, SIZE), operations() / 4, false);
        let size = open(&Source::new(&path, true)).unwrap().size();
        assert_eq!(size, SIZE);
        qemu_img(&["snapshot", "-a", "before"], &[&path]);
        compare(&*open(&Source::new(&path, true)).unwrap(), &known(&content, SIZE));
    }
}

#[test]
fn images_over_others() {
    let _alone = alone();
    let dir = Directory::new("chain");
    for (index, below_size) in [SIZE / 2 / 512 * 512, SIZE, SIZE * 2].into_iter().enumerate() {
        let content = content(below_size);
        let raw = dir.file(&format!("{index}.raw"));
        std::fs::write(&raw, &content).unwrap();
        let mut below = (format!("{index}.raw"), "raw".to_string());
        for level in 0..2 {
            let path = dir.file(&format!("{index}-{level}.qcow2"));
            let cluster = [65536, 4096][level];
            let options = viv_block::CreateOptions { size: SIZE, cluster, backing: Some(below) };
            drop(viv_block::Qcow2::create(&path, &options).unwrap());
            below = (format!("{index}-{level}.qcow2"), "qcow2".to_string());
        }
        let path = dir.file(&below.0);
        let seen = known(&content[..content.len().min(SIZE as usize)], SIZE);
        play(&path, DiskFormat::Qcow2, seen, operations() / 2, true);
        assert!(std::fs::read(&raw).unwrap() == content, "the disk below has changed");
    }
}

#[test]
fn version_2_over_another() {
    let _alone = alone();
    if !qemu_img_is_there() {
        return;
    }
    let dir = Directory::new("v2");
    let content = content(SIZE);
    let (raw, path) = (dir.file("below.raw"), dir.file("v2.qcow2"));
    std::fs::write(&raw, &content).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "below.raw", "-F", "raw"], &[&path]);
    play(&path, DiskFormat::Qcow2, known(&content, SIZE), operations() / 2, true);
}
