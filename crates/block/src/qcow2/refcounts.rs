//! How often each cluster of a qcow2 image is referred to ("Host cluster management" in the specification), and
//! the search for free ones. Counts are read in slices when they are needed and written back by [`Refcounts::write`].
//!
//! A count that is too high on disk costs space; one too low costs data. So counts rise on disk before the table
//! entry that refers to the cluster is written, and fall after the entry is gone; the owner keeps that order.

use super::corrupt;
use super::header::{AT_REFTABLE, Header, OFFSET_MASK, REFTABLE_MAX};
use crate::fields::be64s;
use crate::host_file::HostFile;
use std::collections::{HashMap, HashSet};
use std::io;

/// Bytes of counts that are read and written at once, unless a cluster is smaller.
const SLICE: u64 = 4096;
/// Slices that are kept.
const SLICES_MAX: usize = 256;

struct Slice {
    data: Vec<u8>,
    dirty: bool,
}

pub(crate) struct Refcounts {
    cluster_bits: u32,
    order: u32,
    /// Offsets of the blocks of counts; 0: none of its clusters is used.
    table: Vec<u64>,
    table_offset: u64,
    slices: HashMap<u64, Slice>,
    /// No cluster below is free.
    hint: u64,
}

impl Refcounts {
    pub(crate) fn read(file: &HostFile, header: &Header) -> io::Result<Refcounts> {
        let len = u64::from(header.reftable_clusters) << header.cluster_bits;
        let data = file.read_vec(header.reftable_offset, len as usize)?;
        Ok(Refcounts {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table: be64s(&data).map(|entry| entry & OFFSET_MASK).collect(),
            table_offset: header.reftable_offset,
            slices: HashMap::new(),
            hint: 1,
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Counts in a block.
    fn block_entries(&self) -> u64 {
        (self.cluster() * 8) >> self.order
    }

    fn slice_len(&self) -> u64 {
        SLICE.min(self.cluster())
    }

    fn slice_entries(&self) -> u64 {
        (self.slice_len() * 8) >> self.order
    }

    /// Clusters of the table and of its blocks.
    pub(crate) fn own_clusters(&self) -> impl Iterator<Item = u64> {
        let bits = self.cluster_bits;
        let table = self.table_offset >> bits;
        let blocks = self.table.iter().filter(|offset| **offset != 0).map(move |offset| offset >> bits);
        (table..table + ((self.table.len() as u64 * 8) >> bits)).chain(blocks)
    }

    /// Whether a block lies where it cannot be.
    pub(crate) fn misplaced_block(&self, file_end: u64) -> Option<u64> {
        let wrong = |offset: u64| !offset.is_multiple_of(self.cluster()) || offset >= file_end;
        self.table.iter().copied().find(|offset| *offset != 0 && wrong(*offset))
    }

    /// One past the last cluster that has a block.
    pub(crate) fn covered(&self) -> u64 {
        let blocks = self.table.iter().rposition(|offset| *offset != 0).map_or(0, |last| last as u64 + 1);
        blocks * self.block_entries()
    }

    fn block_of(&self, cluster: u64) -> u64 {
        let index = usize::try_from(cluster / self.block_entries()).unwrap_or(usize::MAX);
        self.table.get(index).copied().unwrap_or(0)
    }

    /// The slice that has the count of `cluster`; none where no block is.
    fn slice(&mut self, file: &HostFile, cluster: u64) -> io::Result<Option<&mut Slice>> {
        let block = self.block_of(cluster);
        if block == 0 {
            return Ok(None);
        }
        let key = cluster / self.slice_entries();
        if !self.slices.contains_key(&key) {
            if self.slices.len() >= SLICES_MAX {
                self.write(file)?;
                self.slices.clear();
            }
            let data = file.read_vec(self.slice_offset(key), self.slice_len() as usize)?;
            self.slices.insert(key, Slice { data, dirty: false });
        }
        Ok(self.slices.get_mut(&key))
    }

    fn slice_offset(&self, key: u64) -> u64 {
        let first = key * self.slice_entries();
        let within = ((first % self.block_entries()) << self.order) / 8;
        self.block_of(first) + within
    }

    /// The count of a cluster.
    pub(crate) fn get(&mut self, file: &HostFile, cluster: u64) -> io::Result<u64> {
        let (order, index) = (self.order, (cluster % self.slice_entries()) as usize);
        Ok(self.slice(file, cluster)?.map_or(0, |slice| count(&slice.data, order, index)))
    }

    /// Sets the count of a cluster whose block is there.
    pub(crate) fn set(&mut self, file: &HostFile, cluster: u64, value: u64) -> io::Result<()> {
        let (order, index) = (self.order, (cluster % self.slice_entries()) as usize);
        if order < 6 && value >> (1 << order) != 0 {
            return Err(io::Error::other("a cluster of the image has too many references"));
        }
        let slice =
            self.slice(file, cluster)?.ok_or_else(|| corrupt("a cluster that is used is not counted"))?;
        set_count(&mut slice.data, order, index, value);
        slice.dirty = true;
        if value == 0 {
            self.hint = self.hint.min(cluster);
        }
        Ok(())
    }

    /// Takes one reference away; gives what is left.
    pub(crate) fn release(&mut self, file: &HostFile, cluster: u64) -> io::Result<u64> {
        let left =
            self.get(file, cluster)?.checked_sub(1).ok_or_else(|| corrupt("a used cluster is free"))?;
        self.set(file, cluster, left)?;
        Ok(left)
    }

    /// Finds up to `wanted` free clusters in a row, at least one, and counts one reference to each. None of them is
    /// in `taken`, or the image is corrupt. New blocks of counts are added to `taken`.
    pub(crate) fn allocate(
        &mut self,
        file: &HostFile,
        wanted: u64,
        taken: &mut HashSet<u64>,
    ) -> io::Result<(u64, u64)> {
        let mut first = self.hint;
        loop {
            if first >= OFFSET_MASK >> self.cluster_bits {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the image cannot grow any more"));
            }
            if self.block_of(first) == 0 {
                self.add_block(file, first, taken)?;
                continue;
            }
            if self.get(file, first)? == 0 {
                break;
            }
            first += 1;
        }
        self.hint = first;
        let mut found = 0;
        while found < wanted.max(1)
            && self.block_of(first + found) != 0
            && self.get(file, first + found)? == 0
        {
            found += 1;
        }
        let range = first..first + found;
        if range.clone().any(|cluster| taken.contains(&cluster)) {
            return Err(corrupt("a cluster with tables is counted as free"));
        }
        for cluster in range {
            self.set(file, cluster, 1)?;
        }
        self.hint = first + found;
        Ok((first, found))
    }

    /// Makes the block that counts `cluster`, in the first cluster that it counts itself.
    fn add_block(&mut self, file: &HostFile, cluster: u64, taken: &mut HashSet<u64>) -> io::Result<()> {
        let index = cluster / self.block_entries();
        if index >= self.table.len() as u64 {
            return self.grow_table(file, taken);
        }
        let place = index * self.block_entries();
        if taken.contains(&place) || place == 0 {
            return Err(corrupt("a cluster with tables is not counted"));
        }
        let mut data = vec![0; self.cluster() as usize];
        set_count(&mut data, self.order, 0, 1);
        let offset = place << self.cluster_bits;
        file.write(offset, &data)?;
        file.sync()?; // garbage for counts would be worse than none
        file.write(self.table_offset + index * 8, &offset.to_be_bytes())?;
        if let Some(entry) = self.table.get_mut(index as usize) {
            *entry = offset;
        }
        taken.insert(place);
        Ok(())
    }

    /// Moves the table to a place behind all that it counts, with room for half as much again.
    fn grow_table(&mut self, file: &HostFile, taken: &mut HashSet<u64>) -> io::Result<()> {
        let old_table = (self.table_offset, self.table.len() as u64 * 8);
        let first_block = self.table.len() as u64;
        let start = first_block * self.block_entries();
        let per_cluster = self.cluster() / 8;
        let mut table_clusters = (first_block * 3 / 2 + 1).div_ceil(per_cluster);
        let mut blocks = 1;
        loop {
            let needed = (blocks + table_clusters).div_ceil(self.block_entries());
            let entries = (first_block + needed).div_ceil(per_cluster);
            if needed <= blocks && entries <= table_clusters {
                break;
            }
            (blocks, table_clusters) = (needed.max(blocks), entries.max(table_clusters));
        }
        if table_clusters << self.cluster_bits > REFTABLE_MAX.max(self.cluster()) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the image cannot grow any more"));
        }
        let used = blocks + table_clusters;
        if (start..start + used).any(|cluster| taken.contains(&cluster)) {
            return Err(corrupt("a cluster with tables is not counted"));
        }
        let mut table = self.table.clone();
        table.resize((table_clusters * per_cluster) as usize, 0);
        for block in 0..blocks {
            let mut data = vec![0; self.cluster() as usize];
            let counted = used.saturating_sub(block * self.block_entries()).min(self.block_entries());
            (0..counted as usize).for_each(|index| set_count(&mut data, self.order, index, 1));
            let offset = (start + block) << self.cluster_bits;
            file.write(offset, &data)?;
            if let Some(entry) = table.get_mut((first_block + block) as usize) {
                *entry = offset;
            }
        }
        let offset = (start + blocks) << self.cluster_bits;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        file.write(offset, &bytes)?;
        file.sync()?;
        write_pointer(file, offset, table_clusters as u32)?;
        file.sync()?;
        (self.table, self.table_offset) = (table, offset);
        taken.extend(start..start + used);
        let old = old_table.0 >> self.cluster_bits;
        for cluster in old..old + (old_table.1 >> self.cluster_bits) {
            taken.remove(&cluster);
            self.release(file, cluster)?;
        }
        Ok(())
    }

    /// Writes what has changed.
    pub(crate) fn write(&mut self, file: &HostFile) -> io::Result<()> {
        let mut keys: Vec<u64> =
            self.slices.iter().filter(|(_, slice)| slice.dirty).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        for key in keys {
            let offset = self.slice_offset(key);
            if let Some(slice) = self.slices.get_mut(&key) {
                file.write(offset, &slice.data)?;
                slice.dirty = false;
            }
        }
        Ok(())
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.slices.values().any(|slice| slice.dirty)
    }
}

/// Points the header to another table of counts, in one write.
pub(crate) fn write_pointer(file: &HostFile, offset: u64, clusters: u32) -> io::Result<()> {
    let mut field = [0; 12];
    let (at, count) = field.split_at_mut(8);
    at.copy_from_slice(&offset.to_be_bytes());
    count.copy_from_slice(&clusters.to_be_bytes());
    file.write(AT_REFTABLE, &field)
}

/// The count at `index`: 2^order bits, big-endian; smaller than a byte, the first in the lowest bits.
fn count(data: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = data.get(index / per_byte).copied().unwrap_or(0);
        let shift = (index % per_byte) << order;
        return u64::from(byte >> shift) & ((1 << (1 << order)) - 1);
    }
    let len = 1usize << (order - 3);
    let bytes = data.get(index * len..(index + 1) * len).unwrap_or_default();
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets the count at `index`; `value` fits.
pub(crate) fn set_count(data: &mut [u8], order: u32, index: usize, value: u64) {
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        let mask = ((1u16 << (1 << order)) - 1) as u8;
        if let Some(byte) = data.get_mut(index / per_byte) {
            *byte = *byte & !(mask << shift) | (value as u8 & mask) << shift;
        }
        return;
    }
    let len = 1usize << (order - 3);
    let bytes = value.to_be_bytes();
    if let (Some(place), Some(value)) =
        (data.get_mut(index * len..(index + 1) * len), bytes.get(bytes.len() - len..))
    {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_of_any_width_are_kept(order in 0u32..=6, values in proptest::collection::vec(any::<u64>(), 64)) {
            let mut data = vec![0xff; 64 * 8];
            let mask = u64::MAX >> (64 - (1u32 << order));
            for (index, value) in values.iter().enumerate() {
                set_count(&mut data, order, index, value & mask);
            }
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(count(&data, order, index), value & mask);
            }
        }
    }
}
