//! A disk of which is counted what passes, and how long that takes: for whoever wants to know what a guest waits for.

use crate::{Disk, Extent};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use viv_model::DISK_TIMES_NS;

/// One kind of request so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Requests.
    pub count: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time that they took together, nanoseconds.
    pub ns: u64,
    /// Requests by the time that they took: those that took no longer than each of [`DISK_TIMES_NS`] and longer than the one
    /// before, and those that took longer than all of them.
    pub times: [u64; DISK_TIMES_NS.len() + 1],
}

/// What has passed a disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Reads.
    pub reads: Passed,
    /// Writes.
    pub writes: Passed,
    /// Flushes.
    pub flushes: Passed,
    /// Ranges that were given up or zeroed.
    pub discards: Passed,
    /// Time that requests were held up by the disk's limits, nanoseconds.
    pub held_ns: u64,
}

#[derive(Default)]
struct Counters {
    count: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    ns: AtomicU64,
    times: [AtomicU64; DISK_TIMES_NS.len() + 1],
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Counters {
    fn measure(&self, bytes: u64, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let begin = Instant::now();
        let done = act();
        self.add(bytes, ns(begin.elapsed()), done.is_ok());
        done
    }

    fn add(&self, bytes: u64, took: u64, well: bool) {
        let bucket = DISK_TIMES_NS.partition_point(|bound| *bound < took);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.ns.fetch_add(took, Ordering::Relaxed);
        if let Some(times) = self.times.get(bucket) {
            times.fetch_add(1, Ordering::Relaxed);
        }
        match well {
            true => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            false => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    fn passed(&self) -> Passed {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Passed {
            count: get(&self.count),
            bytes: get(&self.bytes),
            errors: get(&self.errors),
            ns: get(&self.ns),
            times: std::array::from_fn(|index| self.times.get(index).map_or(0, get)),
        }
    }
}

/// A disk with its counts.
pub struct Measured {
    disk: Arc<dyn Disk>,
    reads: Counters,
    writes: Counters,
    flushes: Counters,
    discards: Counters,
    held_ns: AtomicU64,
}

impl Measured {
    /// The disk, of which nothing was counted yet.
    pub fn new(disk: Arc<dyn Disk>) -> Measured {
        Measured {
            disk,
            reads: Counters::default(),
            writes: Counters::default(),
            flushes: Counters::default(),
            discards: Counters::default(),
            held_ns: AtomicU64::new(0),
        }
    }

    /// What has passed so far.
    pub fn counts(&self) -> DiskCounts {
        DiskCounts {
            reads: self.reads.passed(),
            writes: self.writes.passed(),
            flushes: self.flushes.passed(),
            discards: self.discards.passed(),
            held_ns: self.held_ns.load(Ordering::Relaxed),
        }
    }
}

impl Disk for Measured {
    fn admit(&self, bytes: u64) {
        let begin = Instant::now();
        self.disk.admit(bytes);
        self.held_ns.fetch_add(ns(begin.elapsed()), Ordering::Relaxed);
    }
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_only(&self) -> bool {
        self.disk.read_only()
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.reads.measure(data.len() as u64, || self.disk.read(offset, data))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writes.measure(data.len() as u64, || self.disk.write(offset, data))
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.measure(0, || self.disk.flush())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.discards.measure(len, || self.disk.discard(offset, len))
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.discards.measure(len, || self.disk.write_zeroes(offset, len, unmap))
    }
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.disk.extent(offset, len)
    }
    fn resize(&self, size: u64) -> io::Result<()> {
        self.disk.resize(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gate, MemoryDisk, Throttled};
    use viv_model::DiskLimits;

    #[test]
    fn what_passes_is_counted_by_its_kind() {
        let disk = Measured::new(Arc::new(MemoryDisk::new(vec![0; 1 << 20])));
        disk.write(0, &[1; 4096]).unwrap();
        disk.read(0, &mut [0; 512]).unwrap();
        disk.read(512, &mut [0; 512]).unwrap();
        disk.flush().unwrap();
        disk.write_zeroes(0, 1024, true).unwrap();
        assert!(disk.read(1 << 20, &mut [0; 512]).is_err());
        let DiskCounts { reads, writes, flushes, discards, .. } = disk.counts();
        assert_eq!((reads.count, reads.bytes, reads.errors), (3, 1024, 1));
        assert_eq!((writes.count, writes.bytes), (1, 4096));
        assert_eq!((flushes.count, flushes.bytes, discards.bytes), (1, 0, 1024));
        assert_eq!(reads.times.iter().sum::<u64>(), 3);
        assert!(reads.ns > 0);
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_holds_it() {
        let counters = Counters::default();
        for took in [0, DISK_TIMES_NS[0], DISK_TIMES_NS[0] + 1, u64::MAX / 2] {
            counters.add(1, took, true);
        }
        let times = counters.passed().times;
        assert_eq!((times[0], times[1], times[DISK_TIMES_NS.len()]), (2, 1, 1));
    }

    #[test]
    fn what_limits_hold_up_is_another_thing() {
        let limits = DiskLimits { iops: Some(100), iops_burst: Some(1), ..DiskLimits::default() };
        let slow = Throttled::new(Arc::new(MemoryDisk::new(vec![0; 4096])), Arc::new(Gate::new(&limits)));
        let disk = Measured::new(Arc::new(slow));
        for _ in 0..5 {
            disk.admit(512);
            disk.read(0, &mut [0; 512]).unwrap();
        }
        let counts = disk.counts();
        assert!(counts.held_ns > 20_000_000, "{counts:?}");
        assert!(counts.reads.ns < counts.held_ns, "{counts:?}");
    }
}
