//! A disk in memory for tests: it counts, fails when told, and knows what a power cut would leave.

use crate::{Disk, SECTOR, check_range, check_writable};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a discarded byte reads as: anything is allowed, so not the zero that a guest may hope for.
const DISCARDED: u8 = 0xdd;

/// What a [`MemoryDisk`] has been asked so far, failed calls included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes, zero writes and discards.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
}

/// A call that is to fail: counts down to it.
#[derive(Clone, Copy, Debug, Default)]
struct Countdown(Option<u64>);

impl Countdown {
    /// Whether this call is the one.
    fn strikes(&mut self) -> bool {
        match self.0 {
            Some(0 | 1) => {
                self.0 = None;
                true
            }
            Some(left) => {
                self.0 = Some(left - 1);
                false
            }
            None => false,
        }
    }
}

#[derive(Debug)]
struct Inside {
    /// What a read sees.
    current: Vec<u8>,
    /// What the last successful flush has saved.
    durable: Vec<u8>,
    counts: Counts,
    read_fault: Countdown,
    write_fault: Countdown,
    flush_fault: Countdown,
    full: bool,
}

/// A disk in memory. Unflushed writes are lost in a [`MemoryDisk::power_cut`].
#[derive(Debug)]
pub struct MemoryDisk {
    inside: Mutex<Inside>,
    size: u64,
    read_only: bool,
}

impl MemoryDisk {
    /// A disk with this content, all of it durable.
    pub fn new(content: Vec<u8>) -> MemoryDisk {
        let size = content.len() as u64;
        let inside = Inside {
            durable: content.clone(),
            current: content,
            counts: Counts::default(),
            read_fault: Countdown::default(),
            write_fault: Countdown::default(),
            flush_fault: Countdown::default(),
            full: false,
        };
        MemoryDisk { inside: Mutex::new(inside), size, read_only: false }
    }

    /// A disk of zeroes.
    pub fn zeroed(sectors: u64) -> MemoryDisk {
        MemoryDisk::new(vec![0; (sectors * SECTOR) as usize])
    }

    /// The same disk, refusing writes.
    pub fn into_read_only(self) -> MemoryDisk {
        MemoryDisk { read_only: true, ..self }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // A panic in another test thread leaves plain bytes: nothing to protect.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has been asked so far.
    pub fn counts(&self) -> Counts {
        self.inside().counts
    }

    /// Lets the `n`-th read from now fail (1 is the next).
    pub fn fail_read(&self, n: u64) {
        self.inside().read_fault = Countdown(Some(n));
    }

    /// Lets the `n`-th write from now fail after half of its bytes (1 is the next).
    pub fn fail_write(&self, n: u64) {
        self.inside().write_fault = Countdown(Some(n));
    }

    /// Lets the `n`-th flush from now fail without saving anything (1 is the next).
    pub fn fail_flush(&self, n: u64) {
        self.inside().flush_fault = Countdown(Some(n));
    }

    /// Lets every change fail for lack of room after half of its bytes, until there is room again.
    pub fn set_full(&self, full: bool) {
        self.inside().full = full;
    }

    /// What a read sees now.
    pub fn content(&self) -> Vec<u8> {
        self.inside().current.clone()
    }

    /// The disk after a power cut: all that was flushed, and of the sectors written since then those for
    /// which `survived` says so, for a disk writes them back in any order.
    pub fn power_cut(&self, mut survived: impl FnMut(u64) -> bool) -> MemoryDisk {
        let inside = self.inside();
        let mut content = inside.durable.clone();
        let sectors = content.chunks_mut(SECTOR as usize).zip(inside.current.chunks(SECTOR as usize));
        for (sector, (old, new)) in (0..).zip(sectors) {
            if old != new && survived(sector) {
                old.copy_from_slice(new);
            }
        }
        MemoryDisk { read_only: self.read_only, ..MemoryDisk::new(content) }
    }

    /// One write of any kind: `fill` changes the range, or its first half when the write is to fail.
    fn change(&self, offset: u64, len: u64, fill: impl FnOnce(&mut [u8])) -> io::Result<()> {
        check_writable(self.read_only)?;
        let mut inside = self.inside();
        inside.counts.writes += 1;
        check_range(self.size, offset, len)?;
        let full = inside.full;
        let fails = inside.write_fault.strikes() || full;
        let done = if fails { len / 2 } else { len };
        if let Some(range) = inside.current.get_mut(offset as usize..(offset + done) as usize) {
            fill(range);
        }
        match fails {
            true if full => Err(io::Error::new(io::ErrorKind::StorageFull, "the disk was told to be full")),
            true => Err(io::Error::other("the write was told to fail")),
            false => Ok(()),
        }
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut inside = self.inside();
        inside.counts.reads += 1;
        check_range(self.size, offset, data.len() as u64)?;
        if inside.read_fault.strikes() {
            return Err(io::Error::other("the read was told to fail"));
        }
        if let Some(range) = inside.current.get(offset as usize..offset as usize + data.len()) {
            data.copy_from_slice(range);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(offset, data.len() as u64, |range| {
            let len = range.len();
            range.copy_from_slice(&data[..len]);
        })
    }

    fn flush(&self) -> io::Result<()> {
        let mut inside = self.inside();
        inside.counts.flushes += 1;
        if inside.flush_fault.strikes() {
            return Err(io::Error::other("the flush was told to fail"));
        }
        let Inside { current, durable, .. } = &mut *inside;
        durable.copy_from_slice(current);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(offset, len, |range| range.fill(DISCARDED))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.change(offset, len, |range| range.fill(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_keeps_what_was_flushed() {
        let disk = MemoryDisk::zeroed(4);
        disk.write(0, &[1; 512]).unwrap();
        disk.flush().unwrap();
        disk.write(512, &[2; 1024]).unwrap();
        let after = disk.power_cut(|sector| sector == 2).content();
        assert_eq!([after[0], after[512], after[1024], after[1536]], [1, 0, 2, 0]);
    }

    #[test]
    fn the_nth_call_fails_once() {
        let disk = MemoryDisk::zeroed(2);
        disk.fail_write(2);
        assert!(disk.write(0, &[1; 8]).is_ok());
        assert!(disk.write(0, &[2; 8]).is_err());
        assert_eq!(&disk.content()[..8], &[2, 2, 2, 2, 1, 1, 1, 1], "half of it arrived");
        assert!(disk.write(0, &[3; 8]).is_ok());
        disk.fail_flush(1);
        assert!(disk.flush().is_err());
        assert_eq!(disk.power_cut(|_| false).content()[0], 0);
        assert!(disk.flush().is_ok());
        disk.fail_read(1);
        assert!(disk.read(0, &mut [0; 8]).is_err());
        assert_eq!(disk.counts(), Counts { reads: 1, writes: 3, flushes: 2 });
    }
}
