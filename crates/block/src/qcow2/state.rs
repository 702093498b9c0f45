//! The tables of an open image: where each cluster of the disk is.

use super::corrupt;
use super::header::{AT_INCOMPATIBLE, CORRUPT, Header, OFFSET_MASK};
use super::refcounts::Refcounts;
use crate::fields::{be32, be64s};
use crate::host_file::HostFile;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exactly one reference: may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
const PACKED: u64 = 1 << 62;
/// Reads as zeroes (version 3).
pub(crate) const ZERO: u64 = 1;
/// Bytes of an L2 table that are read and written at once, unless a cluster is smaller.
const SLICE: u64 = 4096;
/// Slices that are kept: 4 MiB, which map 32 GiB at 64 KiB a cluster.
const SLICES_MAX: usize = 1024;
/// The file grows by at least this much, so that not each new cluster costs a call.
const GROW: u64 = 1 << 20;
/// Clusters that wait for a commit to become free.
const RELEASED_MAX: usize = 1 << 16;

/// What an L2 entry says ("Standard Cluster Descriptor", "Compressed Clusters Descriptor").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// The backing disk has it.
    Absent,
    /// Zeroes; a cluster may be kept for it.
    Zero { host: Option<u64>, copied: bool },
    /// In this cluster of the file, alone if `copied`.
    Data { host: u64, copied: bool },
    /// Compressed, in at most these bytes of the file.
    Packed { host: u64, len: u64 },
}

impl Mapping {
    /// Reads an entry.
    pub(crate) fn decode(entry: u64, version: u32, cluster_bits: u32) -> io::Result<Mapping> {
        if entry & PACKED != 0 {
            let offset_bits = 62 - (cluster_bits - 8);
            let host = entry & ((1 << offset_bits) - 1);
            let sectors = (entry >> offset_bits & ((1 << (cluster_bits - 8)) - 1)) + 1;
            return Ok(Mapping::Packed { host, len: sectors * 512 - (host & 511) });
        }
        let (host, copied) = (entry & OFFSET_MASK, entry & COPIED != 0);
        if !host.is_multiple_of(1 << cluster_bits) {
            return Err(corrupt("a cluster is not where clusters begin"));
        }
        if version >= 3 && entry & ZERO != 0 {
            return Ok(Mapping::Zero { host: (host != 0).then_some(host), copied });
        }
        Ok(if host == 0 { Mapping::Absent } else { Mapping::Data { host, copied } })
    }

    /// Whether `next`, a cluster further, goes on with this one.
    fn goes_on(self, next: Mapping, distance: u64) -> bool {
        match (self, next) {
            (Mapping::Absent, Mapping::Absent) | (Mapping::Zero { .. }, Mapping::Zero { .. }) => true,
            (Mapping::Data { host, copied }, Mapping::Data { host: next, copied: also }) => {
                copied == also && next == host + distance
            }
            _ => false,
        }
    }
}

/// A part of an L2 table.
struct Slice {
    entries: Vec<u64>,
    dirty: bool,
    /// Used since the last look for one to drop.
    used: AtomicBool,
}

pub(crate) struct State {
    pub(crate) header: Header,
    l1: Vec<u64>,
    l1_dirty: BTreeSet<usize>,
    /// Tables that no L1 entry on disk refers to yet.
    unpublished: HashSet<usize>,
    slices: HashMap<u64, Slice>,
    dirty_slices: BTreeSet<u64>,
    pub(crate) refs: Refcounts,
    /// Clusters with the header and tables: nobody's data may be there.
    tables: HashSet<u64>,
    /// References to give up once no entry on disk has them.
    released: Vec<u64>,
    file_size: u64,
    /// From here on the file has never been written: it reads as zero.
    fresh_from: u64,
    is_device: bool,
}

impl State {
    pub(crate) fn open(file: &HostFile, header: Header) -> io::Result<State> {
        let l1: Vec<u64> = be64s(&file.read_vec(header.l1_offset, header.l1_entries as usize * 8)?).collect();
        let refs = Refcounts::read(file, &header)?;
        let file_size = file.size()?;
        let mut state = State {
            l1,
            l1_dirty: BTreeSet::new(),
            unpublished: HashSet::new(),
            slices: HashMap::new(),
            dirty_slices: BTreeSet::new(),
            refs,
            tables: HashSet::new(),
            released: Vec::new(),
            file_size,
            fresh_from: if file.is_device() {
                u64::MAX
            } else {
                file_size.next_multiple_of(header.cluster())
            },
            is_device: file.is_device(),
            header,
        };
        state.check_l1(&state.l1)?;
        if !file.read_only() {
            state.find_tables(file)?;
        }
        Ok(state)
    }

    fn check_l1(&self, l1: &[u64]) -> io::Result<()> {
        let wrong = |entry: &u64| {
            let offset = entry & OFFSET_MASK;
            !offset.is_multiple_of(self.cluster()) || offset >= self.file_size && offset != 0
        };
        if l1.iter().any(wrong) { Err(corrupt("an L2 table is not in the file")) } else { Ok(()) }
    }

    /// Learns which clusters hold tables. Two tables in one place would overwrite each other.
    fn find_tables(&mut self, file: &HostFile) -> io::Result<()> {
        let bits = self.header.cluster_bits;
        if let Some(offset) = self.refs.misplaced_block(self.file_size) {
            return Err(corrupt(&format!("a block of reference counts at {offset:#x} is not in the file")));
        }
        let clusters = |offset: u64, len: u64| offset >> bits..(offset + len).div_ceil(1 << bits);
        let l1 = clusters(self.header.l1_offset, u64::from(self.header.l1_entries) * 8);
        let l2 = self.l1.iter().map(|entry| entry & OFFSET_MASK).filter(|offset| *offset != 0);
        let all = std::iter::once(0).chain(l1).chain(l2.map(|offset| offset >> bits));
        for cluster in all.chain(self.refs.own_clusters()).collect::<Vec<_>>() {
            if !self.tables.insert(cluster) {
                return Err(corrupt(&format!("two tables lie at {:#x}", cluster << bits)));
            }
        }
        // Snapshots share tables with each other and with the disk.
        let snapshots = snapshots(file, &self.header)?;
        self.tables.extend(snapshots.clusters);
        for (offset, entries) in snapshots.l1_tables {
            self.tables.extend(clusters(offset, entries * 8));
            let l1: Vec<u64> = be64s(&file.read_vec(offset, entries as usize * 8)?).collect();
            self.check_l1(&l1)?;
            let used = l1.iter().map(|entry| entry & OFFSET_MASK).filter(|offset| *offset != 0);
            self.tables.extend(used.map(|offset| offset >> bits));
        }
        Ok(())
    }

    pub(crate) fn cluster(&self) -> u64 {
        self.header.cluster()
    }

    /// Bytes of the disk that a slice maps.
    fn slice_span(&self) -> u64 {
        SLICE.min(self.cluster()) / 8 * self.cluster()
    }

    pub(crate) fn l1_index(&self, offset: u64) -> usize {
        (offset / self.header.table_span()) as usize
    }

    pub(crate) fn l1_entry(&self, index: usize) -> u64 {
        self.l1.get(index).copied().unwrap_or(0)
    }

    pub(crate) fn l1_len(&self) -> usize {
        self.l1.len()
    }

    /// Where in the file the slice for `offset` is, if there is a table.
    fn slice_place(&self, offset: u64) -> Option<u64> {
        let table = self.l1_entry(self.l1_index(offset)) & OFFSET_MASK;
        let first = offset - offset % self.slice_span();
        (table != 0).then(|| table + first % self.header.table_span() / self.cluster() * 8)
    }

    /// Whether the entry for `offset` is in memory.
    pub(crate) fn has(&self, offset: u64) -> bool {
        self.slice_place(offset).is_none() || self.slices.contains_key(&(offset / self.slice_span()))
    }

    /// Reads the slice for `offset`, if there is a table.
    pub(crate) fn load(&mut self, file: &HostFile, offset: u64) -> io::Result<()> {
        let Some(place) = self.slice_place(offset) else { return Ok(()) };
        let key = offset / self.slice_span();
        if self.slices.contains_key(&key) {
            return Ok(());
        }
        if self.slices.len() >= SLICES_MAX {
            self.drop_slices(file)?;
        }
        let data = file.read_vec(place, SLICE.min(self.cluster()) as usize)?;
        let slice = Slice { entries: be64s(&data).collect(), dirty: false, used: AtomicBool::new(true) };
        self.slices.insert(key, slice);
        Ok(())
    }

    /// Drops what was not used lately; at least a part of all.
    fn drop_slices(&mut self, file: &HostFile) -> io::Result<()> {
        if self.dirty_slices.len() > SLICES_MAX / 2 {
            self.commit(file)?;
        }
        self.slices.retain(|_, slice| slice.dirty || slice.used.swap(false, Ordering::Relaxed));
        let mut more = self.slices.len().saturating_sub(SLICES_MAX * 3 / 4);
        self.slices.retain(|_, slice| {
            let keep = slice.dirty || more == 0;
            more = more.saturating_sub(usize::from(!keep));
            keep
        });
        Ok(())
    }

    fn decode(&self, entry: u64) -> io::Result<Mapping> {
        Mapping::decode(entry, self.header.version, self.header.cluster_bits)
    }

    /// The mapping at `offset`, and for how many of `len` bytes it goes on. The entry is in memory.
    pub(crate) fn run(&self, offset: u64, len: u64) -> io::Result<(Mapping, u64)> {
        let cluster = self.cluster();
        let Some(slice) = self.slices.get(&(offset / self.slice_span())) else {
            let table_left = self.header.table_span() - offset % self.header.table_span();
            return Ok((Mapping::Absent, len.min(table_left)));
        };
        if !slice.used.load(Ordering::Relaxed) {
            slice.used.store(true, Ordering::Relaxed);
        }
        let first = (offset % self.slice_span() / cluster) as usize;
        let mut entries = slice.entries.get(first..).unwrap_or_default().iter();
        let mapping = self.decode(entries.next().copied().unwrap_or(0))?;
        let mut covered = cluster - offset % cluster;
        let mut distance = cluster;
        for entry in entries {
            if covered >= len || !mapping.goes_on(self.decode(*entry)?, distance) {
                break;
            }
            covered += cluster;
            distance += cluster;
        }
        Ok((mapping, covered.min(len)))
    }

    /// Refuses to write data where tables are or beyond what the file has.
    pub(crate) fn check_place(&self, host: u64, len: u64) -> io::Result<()> {
        let bits = self.header.cluster_bits;
        let end = host.checked_add(len).ok_or_else(|| corrupt("a cluster is beyond the end of the file"))?;
        if end > self.file_size.max(self.fresh_from_now()).next_multiple_of(self.cluster()) {
            return Err(corrupt("a cluster is beyond the end of the file"));
        }
        if (host >> bits..end.div_ceil(1 << bits)).any(|cluster| self.tables.contains(&cluster)) {
            return Err(corrupt("a cluster of the disk lies on a table"));
        }
        Ok(())
    }

    fn fresh_from_now(&self) -> u64 {
        if self.is_device { 0 } else { self.fresh_from }
    }

    /// Finds up to `wanted` clusters in a row; gives where they are, how many, and whether they read as zero.
    pub(crate) fn allocate(&mut self, file: &HostFile, wanted: u64) -> io::Result<(u64, u64, bool)> {
        let bits = self.header.cluster_bits;
        let (first, count) = self.refs.allocate(file, wanted, &mut self.tables)?;
        let (host, end) = (first << bits, (first + count) << bits);
        if self.is_device && end > self.file_size {
            self.take_back(file, host, count)?;
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the block device is full"));
        }
        let fresh = host >= self.fresh_from;
        self.fresh_from = self.fresh_from.max(end);
        if end > self.file_size {
            // Blocks of counts may lie further on.
            let grown = end.next_multiple_of(GROW.max(self.cluster()));
            match file.size().and_then(|now| if now < grown { file.set_size(grown) } else { Ok(()) }) {
                Ok(()) => self.file_size = grown,
                Err(error) => {
                    self.take_back(file, host, count)?;
                    return Err(error);
                }
            }
        }
        Ok((host, count, fresh))
    }

    /// Gives clusters back that were allocated for nothing.
    pub(crate) fn take_back(&mut self, file: &HostFile, host: u64, count: u64) -> io::Result<()> {
        let first = host >> self.header.cluster_bits;
        (first..first + count).try_for_each(|cluster| self.refs.set(file, cluster, 0))
    }

    /// Makes sure that there is a table for `offset` that is ours alone, with the entry in memory.
    pub(crate) fn own_table(&mut self, file: &HostFile, offset: u64) -> io::Result<()> {
        let index = self.l1_index(offset);
        let entry = self.l1_entry(index);
        if entry & COPIED == 0 {
            let (host, _, fresh) = self.allocate(file, 1)?;
            let old = entry & OFFSET_MASK;
            let moved = match old {
                0 if fresh => Ok(()),
                0 => file.zero(host, self.cluster(), false),
                _ => file.read_vec(old, self.cluster() as usize).and_then(|table| file.write(host, &table)),
            };
            if let Err(error) = moved {
                self.take_back(file, host, 1)?;
                return Err(error);
            }
            let place = self.l1.get_mut(index).ok_or_else(|| corrupt("the L1 table is too small"))?;
            *place = host | COPIED;
            self.l1_dirty.insert(index);
            self.unpublished.insert(index);
            self.tables.insert(host >> self.header.cluster_bits);
            if old != 0 {
                self.released.push(old >> self.header.cluster_bits);
            }
        }
        self.load(file, offset)
    }

    /// Sets the entry for `offset`, whose table is ours and in memory.
    pub(crate) fn set_entry(&mut self, offset: u64, entry: u64) -> io::Result<()> {
        let (key, index) =
            (offset / self.slice_span(), (offset % self.slice_span() / self.cluster()) as usize);
        let slice = self.slices.get_mut(&key).and_then(|slice| {
            slice.dirty = true;
            slice.entries.get_mut(index)
        });
        *slice.ok_or_else(|| corrupt("a table is too small"))? = entry;
        self.dirty_slices.insert(key);
        Ok(())
    }

    /// Gives up the references of what `mapping` refers to, once that is on disk.
    pub(crate) fn release(&mut self, mapping: Mapping) {
        let bits = self.header.cluster_bits;
        match mapping {
            Mapping::Absent | Mapping::Zero { host: None, .. } => {}
            Mapping::Zero { host: Some(host), .. } | Mapping::Data { host, .. } => {
                self.released.push(host >> bits);
            }
            Mapping::Packed { host, len } => self.released.extend(host >> bits..=(host + len - 1) >> bits),
        }
    }

    /// Forgets the table at an index of the L1 table, whose entries have been released.
    pub(crate) fn drop_table(&mut self, index: usize) {
        let table = self.l1_entry(index) & OFFSET_MASK;
        if table == 0 {
            return;
        }
        let keys_each = self.header.table_span() / self.slice_span();
        let first = index as u64 * keys_each;
        for key in first..first + keys_each {
            self.slices.remove(&key);
            self.dirty_slices.remove(&key);
        }
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = 0;
        }
        self.l1_dirty.insert(index);
        self.unpublished.remove(&index);
        self.released.push(table >> self.header.cluster_bits);
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty_slices.is_empty()
            || !self.l1_dirty.is_empty()
            || !self.released.is_empty()
            || self.refs.is_dirty()
    }

    /// Commits when a lot waits for it.
    pub(crate) fn commit_if_full(&mut self, file: &HostFile) -> io::Result<()> {
        if self.released.len() > RELEASED_MAX { self.commit(file) } else { Ok(()) }
    }

    fn write_slices(&mut self, file: &HostFile, unpublished: bool) -> io::Result<()> {
        let keys: Vec<u64> = self.dirty_slices.iter().copied().collect();
        for key in keys {
            let offset = key * self.slice_span();
            if self.unpublished.contains(&self.l1_index(offset)) != unpublished {
                continue;
            }
            if let (Some(place), Some(slice)) = (self.slice_place(offset), self.slices.get_mut(&key)) {
                let bytes: Vec<u8> = slice.entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
                file.write(place, &bytes)?;
                slice.dirty = false;
            }
            self.dirty_slices.remove(&key);
        }
        Ok(())
    }

    /// Makes data and tables durable. In this order: data, counts and tables that nobody refers to yet; entries that
    /// refer to them; then the counts of what no entry refers to any more may fall.
    pub(crate) fn commit(&mut self, file: &HostFile) -> io::Result<()> {
        self.refs.write(file)?;
        self.write_slices(file, true)?;
        file.sync()?;
        if self.dirty_slices.is_empty() && self.l1_dirty.is_empty() && self.released.is_empty() {
            return Ok(());
        }
        self.write_slices(file, false)?;
        for index in self.l1_dirty.clone() {
            let place = self.header.l1_offset + index as u64 * 8;
            file.write(place, &self.l1_entry(index).to_be_bytes())?;
        }
        file.sync()?;
        self.l1_dirty.clear();
        self.unpublished.clear();
        let mut released = std::mem::take(&mut self.released);
        released.sort_unstable();
        let mut free: Option<std::ops::Range<u64>> = None;
        for cluster in released {
            if self.refs.release(file, cluster)? > 0 {
                continue;
            }
            self.tables.remove(&cluster);
            match &mut free {
                Some(range) if range.end == cluster => range.end += 1,
                _ => {
                    self.punch(file, free.take())?;
                    free = Some(cluster..cluster + 1);
                }
            }
        }
        self.punch(file, free)
    }

    fn punch(&self, file: &HostFile, clusters: Option<std::ops::Range<u64>>) -> io::Result<()> {
        let Some(range) = clusters else { return Ok(()) };
        let bits = self.header.cluster_bits;
        file.punch(range.start << bits, (range.end - range.start) << bits)
    }

    /// Cuts off what the file was grown by in advance.
    pub(crate) fn trim(&mut self, file: &HostFile) {
        let own = self.refs.own_clusters().max().map_or(0, |last| (last + 1) << self.header.cluster_bits);
        let end = self.fresh_from.max(own);
        if !self.is_device && end < self.file_size && file.set_size(end).is_ok() {
            self.file_size = end;
        }
    }

    /// Marks the image, so that nobody writes to it until it was checked.
    pub(crate) fn mark_corrupt(&mut self, file: &HostFile) {
        if self.header.version == 3 && self.header.incompatible & CORRUPT == 0 {
            self.header.incompatible |= CORRUPT;
            let _ = file.write(AT_INCOMPATIBLE, &self.header.incompatible.to_be_bytes());
        }
    }

    /// A larger L1 table, at another place.
    pub(crate) fn grow_l1(&mut self, file: &HostFile, entries: u32) -> io::Result<()> {
        let bits = self.header.cluster_bits;
        let clusters = (u64::from(entries) * 8).div_ceil(self.cluster());
        if clusters * 2 > (self.cluster() * 8) >> self.header.refcount_order {
            let text = format!("a qcow2 image with clusters of {} bytes cannot be so large", self.cluster());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // In a row: what is found in pieces is given back.
        let mut kept = Vec::new();
        let host = loop {
            let (host, count, _) = self.allocate(file, clusters)?;
            if count >= clusters {
                break host;
            }
            kept.push((host, count));
        };
        for (host, count) in kept {
            self.take_back(file, host, count)?;
        }
        self.commit(file)?;
        let old = (self.header.l1_offset >> bits, (self.l1.len() as u64 * 8).div_ceil(self.cluster()));
        self.l1.resize(entries as usize, 0);
        let mut bytes: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize((clusters * self.cluster()) as usize, 0);
        file.write(host, &bytes)?;
        file.sync()?;
        let pointer = [&entries.to_be_bytes()[..], &host.to_be_bytes()].concat();
        file.write(super::header::AT_L1, &pointer)?;
        file.sync()?;
        (self.header.l1_offset, self.header.l1_entries) = (host, entries);
        let first = host >> bits;
        self.tables.extend(first..first + clusters);
        self.released.extend(old.0..old.0 + old.1);
        Ok(())
    }
}

/// Where the internal snapshots have their tables ("Snapshots" in the specification).
#[derive(Default)]
pub(crate) struct Snapshots {
    /// Clusters of the snapshot table.
    pub(crate) clusters: std::ops::Range<u64>,
    /// Offset and entries of each L1 table.
    pub(crate) l1_tables: Vec<(u64, u64)>,
}

pub(crate) fn snapshots(file: &HostFile, header: &Header) -> io::Result<Snapshots> {
    const HEAD: u64 = 40;
    let mut found = Snapshots::default();
    if header.snapshots == 0 {
        return Ok(found);
    }
    let end = file.size()?;
    let mut at = header.snapshots_offset;
    for _ in 0..header.snapshots {
        let head = file.read_vec(at, HEAD as usize)?;
        let (offset, entries) = (be64s(&head).next().unwrap_or(0), u64::from(be32(&head, 8)));
        let names = u64::from(be32(&head, 12) >> 16) + u64::from(be32(&head, 12) & 0xffff);
        let extra = u64::from(be32(&head, 36));
        let inside = offset.checked_add(entries * 8).is_some_and(|last| last <= end);
        if !inside
            || offset == 0
            || !offset.is_multiple_of(header.cluster())
            || entries * 8 > super::header::L1_MAX
        {
            return Err(corrupt("the L1 table of a snapshot is not in the file"));
        }
        found.l1_tables.push((offset, entries));
        at = (at + HEAD + extra + names).next_multiple_of(8);
        if at > end.next_multiple_of(8) {
            return Err(corrupt("the table of snapshots is not in the file"));
        }
    }
    found.clusters = header.snapshots_offset >> header.cluster_bits..at.div_ceil(header.cluster());
    Ok(found)
}
