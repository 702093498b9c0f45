//! What every disk must do, run over all of them.

use proptest::collection::vec;
use proptest::prelude::*;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use viv_block::{Disk, MemoryDisk, OpenError, RawDisk, SECTOR};

/// A file that goes away with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(len: u64) -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("disk-{}-{number}.img", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs `check` over a new zeroed disk of each kind.
fn each(sectors: u64, mut check: impl FnMut(&dyn Disk)) {
    check(&MemoryDisk::zeroed(sectors));
    let scratch = Scratch::new(sectors * SECTOR);
    check(&RawDisk::open(&scratch.0, false).unwrap());
    assert_eq!(fs::metadata(&scratch.0).unwrap().len(), sectors * SECTOR, "the file has changed its size");
}

fn read(disk: &dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0xee; len];
    disk.read(offset, &mut data).unwrap();
    data
}

#[test]
fn what_was_written_is_read() {
    each(8, |disk| {
        assert_eq!(disk.size(), 8 * SECTOR);
        assert!(!disk.read_only());
        disk.write(510, &[1, 2, 3, 4]).unwrap();
        assert_eq!(read(disk, 509, 6), [0, 1, 2, 3, 4, 0]);
        disk.write_zeroes(511, 2, false).unwrap();
        assert_eq!(read(disk, 509, 6), [0, 1, 0, 0, 4, 0]);
        disk.write(0, &[7; 4096]).unwrap();
        disk.write_zeroes(0, 4096, true).unwrap();
        assert_eq!(read(disk, 0, 4096), [0; 4096]);
        disk.flush().unwrap();
    });
}

#[test]
fn nothing_reaches_beyond_the_end() {
    each(2, |disk| {
        disk.write(1020, &[1; 4]).unwrap();
        for offset in [1021, 1024, 1025, u64::MAX - 3, u64::MAX] {
            assert!(disk.write(offset, &[1; 4]).is_err(), "{offset}");
            assert!(disk.read(offset, &mut [0; 4]).is_err());
            assert!(disk.discard(offset, 4).is_err());
            assert!(disk.write_zeroes(offset, 4, false).is_err());
            assert!(disk.write_zeroes(offset, 4, true).is_err());
        }
        assert!(disk.write_zeroes(0, u64::MAX, true).is_err());
        disk.read(1024, &mut []).unwrap();
        disk.write(1024, &[]).unwrap();
        disk.discard(1024, 0).unwrap();
        disk.write_zeroes(1024, 0, true).unwrap();
        assert!(disk.read(1025, &mut []).is_err());
        assert_eq!(read(disk, 1020, 4), [1; 4]);
    });
}

#[test]
fn a_read_only_disk_changes_nothing() {
    let scratch = Scratch::new(1024);
    let raw = RawDisk::open(&scratch.0, true).unwrap();
    let memory = MemoryDisk::zeroed(2).into_read_only();
    for disk in [&raw as &dyn Disk, &memory] {
        assert!(disk.read_only());
        let refused = [
            disk.write(0, &[1]),
            disk.discard(0, 1),
            disk.write_zeroes(0, 1, false),
            disk.write_zeroes(0, 1, true),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        disk.flush().unwrap();
        assert_eq!(read(disk, 0, 1024), [0; 1024]);
    }
}

#[test]
fn threads_do_not_disturb_each_other() {
    each(64, |disk| {
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    for round in 0..50u8 {
                        let data = [round ^ thread as u8; 512];
                        for sector in (thread..64).step_by(4) {
                            disk.write(sector * SECTOR, &data).unwrap();
                            assert_eq!(read(disk, sector * SECTOR, 512), data);
                        }
                    }
                    disk.flush().unwrap();
                });
            }
        });
    });
}

#[test]
fn bad_disks_are_named() {
    let opened = |path: &Path, read_only| RawDisk::open(path, read_only).map(|_| ());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    assert!(matches!(opened(&directory.join("no-such-disk"), false), Err(OpenError::Missing { .. })));
    assert!(matches!(opened(directory, true), Err(OpenError::Directory { .. })));
    assert!(matches!(opened(Path::new("/dev/null"), false), Err(OpenError::NotADisk { .. })));
    assert!(matches!(opened(&Scratch::new(0).0, false), Err(OpenError::Empty { .. })));
    assert!(matches!(opened(&Scratch::new(1025).0, false), Err(OpenError::OddSize { size: 1025, .. })));
}

#[test]
fn a_disk_without_rights_is_denied() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new(512);
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o400)).unwrap();
    // Root may write to anything, and is not let: a snapshot may have the same file.
    let opened = RawDisk::open(&scratch.0, false).map(|_| ());
    assert!(matches!(opened, Err(OpenError::Permission { read_only: false, .. })), "{opened:?}");
    RawDisk::open(&scratch.0, true).unwrap();
}

#[test]
fn writers_are_alone_and_readers_share() {
    let scratch = Scratch::new(512);
    let open = |read_only| RawDisk::open(&scratch.0, read_only);
    let writer = open(false).unwrap();
    assert!(matches!(open(false), Err(OpenError::InUse { read_only: false, .. })));
    assert!(matches!(open(true), Err(OpenError::InUse { read_only: true, .. })));
    drop(writer);
    let readers = (open(true).unwrap(), open(true).unwrap());
    assert!(matches!(open(false), Err(OpenError::InUse { .. })));
    drop(readers);
    open(false).unwrap();
}

#[test]
fn zeroed_space_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new(1 << 20);
    let disk = RawDisk::open(&scratch.0, false).unwrap();
    disk.write(0, &vec![1; 1 << 20]).unwrap();
    disk.flush().unwrap();
    let full = fs::metadata(&scratch.0).unwrap().blocks();
    disk.write_zeroes(0, 1 << 20, true).unwrap();
    disk.flush().unwrap();
    let left = fs::metadata(&scratch.0).unwrap().blocks();
    assert!(left <= full, "{left} of {full} blocks");
    assert_eq!(read(&disk, 0, 1 << 20), vec![0; 1 << 20]);
}

/// One request of a guest.
#[derive(Clone, Debug)]
enum Op {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

const MODEL_SECTORS: u64 = 16;

fn op() -> impl Strategy<Value = Op> {
    let offset = || 0..MODEL_SECTORS * SECTOR + 600;
    prop_oneof![
        (offset(), 0usize..2000).prop_map(|(offset, len)| Op::Read(offset, len)),
        (offset(), vec(any::<u8>(), 0..2000)).prop_map(|(offset, data)| Op::Write(offset, data)),
        (offset(), 0u64..2000, any::<bool>()).prop_map(|(offset, len, unmap)| Op::Zero(offset, len, unmap)),
        (offset(), 0u64..2000).prop_map(|(offset, len)| Op::Discard(offset, len)),
        Just(Op::Flush),
    ]
}

/// The range in the model, if it is within the disk.
fn range(offset: u64, len: u64) -> Option<std::ops::Range<usize>> {
    let end = offset + len;
    (end <= MODEL_SECTORS * SECTOR).then_some(offset as usize..end as usize)
}

proptest! {
    // Each case flushes a real file to the host's disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A disk is an array of bytes; a discarded one is unknown until it is written again (virtio 1.2 5.2.6.2).
    #[test]
    fn a_disk_is_an_array_of_bytes(ops in vec(op(), 1..60)) {
        each(MODEL_SECTORS, |disk| {
            let mut model = vec![Some(0u8); (MODEL_SECTORS * SECTOR) as usize];
            let agrees = |model: &[Option<u8>], data: &[u8]| {
                model.iter().zip(data).all(|(known, byte)| known.is_none_or(|known| known == *byte))
            };
            for op in &ops {
                match op {
                    Op::Read(offset, len) => {
                        let mut data = vec![0; *len];
                        let result = disk.read(*offset, &mut data);
                        let range = range(*offset, *len as u64);
                        assert_eq!(result.is_ok(), range.is_some(), "{op:?}");
                        assert!(range.is_none_or(|range| agrees(&model[range], &data)), "{op:?}");
                    }
                    Op::Write(offset, data) => {
                        let range = range(*offset, data.len() as u64);
                        assert_eq!(disk.write(*offset, data).is_ok(), range.is_some());
                        if let Some(range) = range {
                            model[range].iter_mut().zip(data).for_each(|(slot, byte)| *slot = Some(*byte));
                        }
                    }
                    Op::Zero(offset, len, unmap) => {
                        let range = range(*offset, *len);
                        assert_eq!(disk.write_zeroes(*offset, *len, *unmap).is_ok(), range.is_some());
                        if let Some(range) = range {
                            model[range].fill(Some(0));
                        }
                    }
                    Op::Discard(offset, len) => {
                        let range = range(*offset, *len);
                        assert_eq!(disk.discard(*offset, *len).is_ok(), range.is_some());
                        if let Some(range) = range {
                            model[range].fill(None);
                        }
                    }
                    Op::Flush => disk.flush().unwrap(),
                }
            }
            assert!(agrees(&model, &read(disk, 0, model.len())));
        });
    }

    /// A power cut loses at most what was written after the last flush that succeeded.
    #[test]
    fn flushed_bytes_survive_a_power_cut(
        before in vec((0u64..15, any::<u8>()), 0..20), after in vec((0u64..15, any::<u8>()), 0..20), chosen: u16,
    ) {
        let disk = MemoryDisk::zeroed(16);
        let write = |writes: &[(u64, u8)]| {
            for (sector, byte) in writes {
                disk.write(sector * SECTOR, &[*byte; 512]).unwrap();
            }
        };
        write(&before);
        disk.flush().unwrap();
        let flushed = disk.content();
        write(&after);
        let latest = disk.content();
        let left = disk.power_cut(|sector| chosen >> sector & 1 != 0).content();
        for sector in 0..16usize {
            let range = sector * 512..(sector + 1) * 512;
            let kept = if chosen >> sector & 1 != 0 { &latest } else { &flushed };
            prop_assert_eq!(&left[range.clone()], &kept[range]);
        }
    }
}
