//! Changes to an image: writes in place and into new clusters, zeroes, discards, another size.

use super::Qcow2;
use super::header::{AT_SIZE, L1_MAX};
use super::state::{COPIED, Mapping, State, ZERO};
use crate::Disk;
use crate::raw::check_size;
use std::io;
use std::sync::atomic::Ordering;

/// Most bytes that are moved into new clusters at once.
const PIECE: u64 = 2 << 20;
/// Zeroes written at a time.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// What becomes of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clear {
    /// Their content is no longer needed.
    Discard,
    /// They read as zeroes; their space is given back.
    Unmap,
    /// They read as zeroes; their space is kept.
    Zero,
}

impl Qcow2 {
    /// Writes to what is ours already; gives the bytes done, 0 if the first needs a new cluster.
    pub(super) fn write_in_place(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        let state = self.state_at(offset)?;
        let (mapping, len) = state.run(offset, data.len() as u64)?;
        self.write_owned(&state, mapping, offset, data.get(..len as usize).unwrap_or(data))
    }

    fn write_owned(&self, state: &State, mapping: Mapping, offset: u64, data: &[u8]) -> io::Result<usize> {
        let Mapping::Data { host, copied: true } = mapping else { return Ok(0) };
        let place = host + offset % state.cluster();
        state.check_place(place, data.len() as u64)?;
        self.file.write(place, data)?;
        Ok(data.len())
    }

    /// Writes into new clusters; gives the bytes done.
    pub(super) fn write_new(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        let mut guard = self.state_mut();
        let state = &mut *guard;
        let cluster = state.cluster();
        let start = offset - offset % cluster;
        state.own_table(&self.file, offset)?;
        let wanted = (data.len() as u64).min(PIECE);
        let (mapping, len) = state.run(offset, wanted)?;
        if let Mapping::Data { copied: true, .. } = mapping {
            // Another thread was faster.
            return self.write_owned(state, mapping, offset, data.get(..len as usize).unwrap_or(data));
        }
        let clusters = (offset % cluster + len).div_ceil(cluster);
        let kept = match mapping {
            Mapping::Zero { host: Some(host), copied: true } => Some(host),
            _ => None,
        };
        let (host, count, fresh) = match kept {
            Some(host) => {
                state.check_place(host, cluster)?;
                (host, 1, false)
            }
            None => state.allocate(&self.file, clusters)?,
        };
        let done = len.min(start + count * cluster - offset);
        let now = data.get(..done as usize).unwrap_or(data);
        let filled = self.fill_new(mapping, offset, now, host, count, fresh, cluster);
        let old: io::Result<Vec<Mapping>> =
            (0..count).map(|index| Ok(state.run(start + index * cluster, 1)?.0)).collect();
        let old = match filled.and(old) {
            Ok(old) => old,
            Err(error) => {
                if kept.is_none() {
                    state.take_back(&self.file, host, count)?;
                }
                return Err(error);
            }
        };
        for (index, old) in (0..count).zip(old) {
            state.set_entry(start + index * cluster, (host + index * cluster) | COPIED)?;
            if kept.is_none() {
                state.release(old);
            }
        }
        state.commit_if_full(&self.file)?;
        Ok(now.len())
    }

    /// Writes `data` into `count` new clusters at `host`, and around it what was there before.
    #[allow(clippy::too_many_arguments)]
    fn fill_new(
        &self,
        old: Mapping,
        offset: u64,
        data: &[u8],
        host: u64,
        count: u64,
        fresh: bool,
        cluster: u64,
    ) -> io::Result<()> {
        let start = offset - offset % cluster;
        let (head, end) = (offset - start, offset + data.len() as u64);
        let tail = start + count * cluster - end;
        let was_zero = match old {
            Mapping::Zero { .. } => true,
            Mapping::Absent => self.absent_is_zero(start),
            _ => false,
        };
        if head + tail == 0 || fresh && was_zero {
            return self.file.write(host + head, data);
        }
        let mut whole = vec![0; (count * cluster) as usize];
        let (before, rest) = whole.split_at_mut(head as usize);
        let (middle, after) = rest.split_at_mut(data.len());
        if !before.is_empty() {
            self.read_mapped(old, start, before, cluster)?;
        }
        middle.copy_from_slice(data);
        if !after.is_empty() {
            // In the run's last cluster.
            let last = match old {
                Mapping::Data { host, copied } => {
                    Mapping::Data { host: host + (count - 1) * cluster, copied }
                }
                other => other,
            };
            self.read_mapped(last, end, after, cluster)?;
        }
        self.file.write(host, &whole)
    }

    /// Clears whole clusters of the range.
    pub(super) fn clear(&self, offset: u64, len: u64, how: Clear) -> io::Result<()> {
        let mut guard = self.state_mut();
        let state = &mut *guard;
        let cluster = state.cluster();
        let end = offset + len;
        let mut at = offset.next_multiple_of(cluster);
        // The last cluster of the disk may be cut off by its end.
        let end = if end == self.size() { end.next_multiple_of(cluster) } else { end - end % cluster };
        while at < end {
            state.load(&self.file, at)?;
            let (mapping, run) = state.run(at, end - at)?;
            let clusters = run.div_ceil(cluster);
            let reads_zero = matches!(mapping, Mapping::Zero { .. })
                || mapping == Mapping::Absent && self.absent_is_zero(at);
            let nothing_to_do = match how {
                Clear::Discard => matches!(mapping, Mapping::Absent | Mapping::Zero { host: None, .. }),
                Clear::Unmap => reads_zero && !matches!(mapping, Mapping::Zero { host: Some(_), .. }),
                Clear::Zero => reads_zero,
            };
            if !nothing_to_do {
                for index in 0..clusters {
                    self.clear_cluster(state, at + index * cluster, how)?;
                }
                state.commit_if_full(&self.file)?;
            }
            at += clusters * cluster;
        }
        Ok(())
    }

    fn clear_cluster(&self, state: &mut State, at: u64, how: Clear) -> io::Result<()> {
        state.own_table(&self.file, at)?;
        let (old, _) = state.run(at, 1)?;
        let entry = match (how, old) {
            (
                Clear::Zero,
                Mapping::Data { host, copied: true } | Mapping::Zero { host: Some(host), copied: true },
            ) if state.header.version >= 3 => {
                return state.set_entry(at, host | COPIED | ZERO);
            }
            _ if self.absent_is_zero(at) => 0,
            _ if state.header.version >= 3 => ZERO,
            // Version 2 has no way to say that; what was asked is a favour here.
            _ => return Ok(()),
        };
        state.set_entry(at, entry)?;
        state.release(old);
        Ok(())
    }

    /// Makes a range read as zero, by entries where they can say so.
    pub(super) fn write_zero_range(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let (cluster, version) = {
            let state = self.state();
            (state.cluster(), state.header.version)
        };
        let end = offset + len;
        let how = if unmap { Clear::Unmap } else { Clear::Zero };
        let first = offset.next_multiple_of(cluster).min(end);
        let last = if end == self.size() { end } else { (end - end % cluster).max(first) };
        self.write_zero_bytes(offset, first - offset)?;
        if version >= 3 || self.backing.is_none() && unmap {
            if last > first {
                self.clear(first, last - first, how)?;
            }
        } else {
            self.write_zero_bytes(first, last - first)?;
        }
        self.write_zero_bytes(last, end - last)
    }

    /// Writes zeroes where there are none yet.
    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let extent = self.extent(offset, len)?;
            let mut step = extent.len;
            if !extent.zero {
                step = step.min(ZEROES.len() as u64);
                self.write(offset, ZEROES.get(..step as usize).unwrap_or(&ZEROES))?;
            }
            offset += step;
            len -= step;
        }
        Ok(())
    }

    /// Gives the disk another size.
    pub(super) fn change_size(&self, size: u64) -> io::Result<()> {
        check_size(size)?;
        let old = self.size();
        if size < old {
            return self.shrink(size, old);
        }
        let mut state = self.state_mut();
        let entries = size.div_ceil(state.header.table_span());
        if entries * 8 > L1_MAX {
            let text = format!("a qcow2 image with clusters of {} bytes cannot be so large", state.cluster());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if entries > state.l1_len() as u64 {
            state.grow_l1(&self.file, entries as u32)?;
        }
        self.write_size(&mut state, size)?;
        drop(state);
        // Neither what another program left behind the end nor a longer backing disk may shine through.
        let shines = self.backing.as_ref().map_or(0, |backing| backing.size());
        let shines = shines.max(old.next_multiple_of(self.cluster)).min(size);
        if shines > old {
            self.write_zero_range(old, shines - old, true)?;
        }
        self.flush()
    }

    fn shrink(&self, size: u64, old: u64) -> io::Result<()> {
        if self.state().header.snapshots > 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "an image with internal snapshots cannot shrink: they need its size",
            ));
        }
        // The rest of the last cluster would come back when the disk grows again.
        self.write_zero_range(size, old - size, true)?;
        let mut state = self.state_mut();
        self.write_size(&mut state, size)?;
        state.commit(&self.file)
    }

    fn write_size(&self, state: &mut State, size: u64) -> io::Result<()> {
        state.commit(&self.file)?;
        self.file.write(AT_SIZE, &size.to_be_bytes())?;
        self.file.sync()?;
        state.header.size = size;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// Gives up all that the image has itself, so that the disk below it is seen again.
    pub(super) fn empty(&self) -> io::Result<()> {
        let mut state = self.state_mut();
        let span = state.header.table_span();
        for index in 0..state.l1_len() {
            if state.l1_entry(index) == 0 {
                continue;
            }
            let (mut at, end) = (index as u64 * span, (index as u64 + 1) * span);
            while at < end {
                state.load(&self.file, at)?;
                let (mapping, _) = state.run(at, 1)?;
                state.release(mapping);
                at += state.cluster();
            }
            state.drop_table(index);
            state.commit(&self.file)?;
        }
        Ok(())
    }
}
