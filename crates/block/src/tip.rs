//! The upper end of a chain of images, which may grow while the disk is used: what was written so far stays as it is, for others to
//! stand on, and what is written from then on goes into a new image above it.

use crate::{Disk, Extent, OpenError, Qcow2, Source};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// A disk above which an image may be put.
pub struct Tip(RwLock<Arc<dyn Disk>>);

impl Tip {
    /// The disk as it is.
    pub fn new(disk: Arc<dyn Disk>) -> Tip {
        Tip(RwLock::new(disk))
    }

    /// Opens an empty qcow2 image to be put above it, which says itself that it stands there.
    pub fn above(&self, image: &Source) -> Result<Qcow2, OpenError> {
        let top = self.top();
        let above = Qcow2::over(image, top.clone())?;
        if above.size() != top.size() {
            let text = format!("it has {} bytes, and the disk below it {}", above.size(), top.size());
            return Err(OpenError::BadSize { path: image.path.clone(), text });
        }
        Ok(above)
    }

    /// Puts it there, while nobody changes the disk. Gives what nobody writes to any more: it is still to be sealed
    /// ([`Disk::seal`]) before others open it; until then what the new image makes durable makes that durable, too.
    pub fn grow(&self, above: Qcow2) -> Arc<dyn Disk> {
        let mut top = self.0.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *top, Arc::new(above))
    }

    fn top(&self) -> RwLockReadGuard<'_, Arc<dyn Disk>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for Tip {
    fn size(&self) -> u64 {
        self.top().size()
    }
    fn read_only(&self) -> bool {
        self.top().read_only()
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.top().read(offset, data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.top().write(offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        self.top().flush()
    }
    fn seal(&self) -> io::Result<()> {
        self.top().seal()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.top().discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.top().write_zeroes(offset, len, unmap)
    }
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.top().extent(offset, len)
    }
    fn resize(&self, size: u64) -> io::Result<()> {
        self.top().resize(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateOptions, MemoryDisk, RawDisk, SECTOR, open};
    use proptest::prelude::*;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};
    use viv_model::DiskFormat;

    const SECTORS: u64 = 1000;

    /// A directory that goes away with its test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Scratch {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("viv-tip-{}-{number}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn source(path: &Path, format: DiskFormat, read_only: bool) -> Source {
        Source { format: Some(format), ..Source::new(path, read_only) }
    }

    /// An empty image above another.
    fn image(dir: &Path, name: &str, below: (&str, DiskFormat)) -> Source {
        let backing = Some((below.0.to_string(), below.1.name().to_string()));
        let path = dir.join(name);
        drop(
            Qcow2::create(&path, &CreateOptions { backing, ..CreateOptions::new(SECTORS * SECTOR) }).unwrap(),
        );
        source(&path, DiskFormat::Qcow2, false)
    }

    fn content(disk: &dyn Disk) -> Vec<u8> {
        let mut all = vec![0; disk.size() as usize];
        disk.read(0, &mut all).unwrap();
        all
    }

    /// Where the chain begins: raw or not.
    fn lowest(dir: &Path, raw: bool) -> (Arc<dyn Disk>, (String, DiskFormat)) {
        let path = dir.join("lowest");
        if raw {
            return (
                Arc::new(RawDisk::create(&path, SECTORS * SECTOR).unwrap()),
                ("lowest".into(), DiskFormat::Raw),
            );
        }
        let disk = Qcow2::create(&path, &CreateOptions::new(SECTORS * SECTOR)).unwrap();
        (Arc::new(disk), ("lowest".into(), DiskFormat::Qcow2))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The disk is as if it had not grown; what lies below each image is, for whoever opens its file, as the disk was then.
        #[test]
        fn what_is_below_stays_as_it_was(
            raw in any::<bool>(),
            steps in prop::collection::vec((0u64..SECTORS - 100, 1u64..100, 0u8..8), 1..60),
        ) {
            let scratch = Scratch::new();
            let (disk, mut top) = lowest(&scratch.0, raw);
            let (tip, model) = (Tip::new(disk), MemoryDisk::zeroed(SECTORS));
            let mut moments = Vec::new();
            for (number, (at, len, kind)) in steps.into_iter().enumerate() {
                let (at, len, byte) = (at * SECTOR, len * SECTOR, number as u8 + 1);
                for disk in [&tip as &dyn Disk, &model] {
                    match kind {
                        0 | 1 => disk.write_zeroes(at, len, kind == 0).unwrap(),
                        2 => disk.flush().unwrap(),
                        3..6 => disk.write(at + 7, &vec![byte; len as usize - 7]).unwrap(),
                        _ => {}
                    }
                }
                if kind == 6 && moments.len() < 10 {
                    let name = format!("above{number}");
                    let above = tip.above(&image(&scratch.0, &name, (&top.0, top.1))).unwrap();
                    let below = tip.grow(above);
                    below.seal().unwrap();
                    prop_assert!(below.write(0, &[1]).is_err());
                    moments.push((top, model.content()));
                    top = (name, DiskFormat::Qcow2);
                }
            }
            prop_assert!(content(&tip) == model.content());
            for ((name, format), was) in moments {
                let disk = open(&source(&scratch.0.join(name), format, true)).unwrap();
                prop_assert!(content(&*disk) == was);
            }
            drop(tip);
            let again = open(&source(&scratch.0.join(&top.0), top.1, false)).unwrap();
            prop_assert!(content(&*again) == model.content());
        }
    }

    #[test]
    fn a_flush_reaches_what_is_not_sealed_yet() {
        let scratch = Scratch::new();
        let lowest = Arc::new(MemoryDisk::zeroed(SECTORS));
        let tip = Tip::new(lowest.clone());
        tip.write(0, &[1; 512]).unwrap();
        RawDisk::create(&scratch.0.join("lowest"), SECTORS * SECTOR).unwrap();
        tip.grow(tip.above(&image(&scratch.0, "above", ("lowest", DiskFormat::Raw))).unwrap());
        let before = lowest.counts().flushes;
        tip.flush().unwrap();
        assert_eq!(lowest.counts().flushes, before + 1);
    }

    #[test]
    fn an_image_of_another_size_is_none_for_it() {
        let scratch = Scratch::new();
        let (disk, below) = lowest(&scratch.0, false);
        let tip = Tip::new(disk);
        let above = image(&scratch.0, "above", (&below.0, below.1));
        tip.resize(2 * SECTORS * SECTOR).unwrap();
        assert!(matches!(tip.above(&above), Err(OpenError::BadSize { .. })));
        assert_eq!(tip.size(), 2 * SECTORS * SECTOR);
    }

    #[test]
    fn one_that_is_no_image_changes_nothing() {
        let scratch = Scratch::new();
        let tip = Tip::new(Arc::new(MemoryDisk::zeroed(SECTORS)));
        let path = scratch.0.join("none");
        fs::write(&path, [7; 4096]).unwrap();
        assert!(tip.above(&source(&path, DiskFormat::Qcow2, false)).is_err());
        tip.write(0, &[1; 512]).unwrap();
        assert_eq!(content(&tip)[..512], [1; 512]);
    }
}
