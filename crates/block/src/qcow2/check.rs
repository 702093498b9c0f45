//! Counts what refers to each cluster, compares, and makes it right again: the counts are built anew behind
//! everything else, then the header points to them; a power cut leaves the old ones or the new.

use super::corrupt;
use super::header::{Header, L1_MAX, OFFSET_MASK};
use super::refcounts::{Refcounts, set_count, write_pointer};
use super::state::{COPIED, Mapping, snapshots};
use crate::fields::be64s;
use crate::host_file::HostFile;
use std::collections::BTreeSet;
use std::io;

/// Most clusters whose references are counted: 16 TiB at 64 KiB a cluster.
const CLUSTERS_MAX: u64 = 1 << 28;

/// What a check has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Clusters that take space and that nobody uses.
    pub leaks: u64,
    /// Errors that can lose data when the image is written to.
    pub corruptions: u64,
    /// How many of each were repaired.
    pub leaks_fixed: u64,
    /// Corruptions repaired.
    pub corruptions_fixed: u64,
    /// Clusters of the disk that have a place in the file.
    pub allocated: u64,
    /// Of these, compressed ones.
    pub compressed: u64,
    /// Clusters of the disk.
    pub total: u64,
}

impl Report {
    /// Whether nothing is wrong, or nothing any more.
    pub fn is_clean(&self) -> bool {
        self.leaks == self.leaks_fixed && self.corruptions == self.corruptions_fixed
    }
}

struct Count<'a> {
    file: &'a HostFile,
    header: &'a Header,
    /// References of each cluster of the file.
    found: Vec<u32>,
    file_clusters: u64,
    report: Report,
    /// Entries that refer to where nothing can be.
    beyond_repair: u64,
}

/// Checks the image in `file`, whose header has been read once.
pub(crate) fn check(file: &HostFile, repair: bool) -> io::Result<Report> {
    let mut header = Header::read(file).map_err(|error| corrupt(&error.to_string()))?;
    let mut count = count(file, &header, true)?;
    let mut refs = Refcounts::read(file, &header)?;
    let flags = copied_flags(&mut count, None)?;
    if !count.counts_are_sound(&refs) {
        count.report.corruptions += 1;
    } else {
        let clusters = count.file_clusters.max(refs.covered().min(CLUSTERS_MAX));
        for cluster in 0..clusters {
            let found = count.references(cluster);
            match refs.get(file, cluster)? {
                counted if counted > found => count.report.leaks += 1,
                counted if counted < found => count.report.corruptions += 1,
                _ => {}
            }
        }
    }
    count.report.corruptions += flags + count.beyond_repair;
    let mut report = count.report;
    if repair {
        let beyond = count.beyond_repair;
        if report.corruptions > beyond || report.leaks > 0 {
            rebuild(file, &mut header)?;
            // Against the references without the old counts' own.
            let mut count = self::count(file, &header, true)?;
            copied_flags(&mut count, Some(()))?;
            file.sync()?;
        }
        (report.leaks_fixed, report.corruptions_fixed) = (report.leaks, report.corruptions - beyond);
        if beyond == 0 && header.incompatible != 0 {
            let kept = header.incompatible & !(super::header::DIRTY | super::header::CORRUPT);
            header.write_incompatible(file, kept)?;
            file.sync()?;
        }
    }
    Ok(report)
}

/// Counts all references; without `counts`, those of the counts' own tables are left out.
fn count<'a>(file: &'a HostFile, header: &'a Header, counts: bool) -> io::Result<Count<'a>> {
    let file_clusters = file.size()?.div_ceil(header.cluster());
    if file_clusters > CLUSTERS_MAX {
        let text = format!("it has {file_clusters} clusters, too many to count");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let total = header.size.div_ceil(header.cluster());
    let mut count = Count {
        file,
        header,
        found: vec![0; file_clusters as usize],
        file_clusters,
        report: Report { total, ..Report::default() },
        beyond_repair: 0,
    };
    count.refer(0, header.cluster());
    count.table(header.l1_offset, u64::from(header.l1_entries), true)?;
    let snapshots = snapshots(file, header)?;
    let bits = header.cluster_bits;
    count
        .refer(snapshots.clusters.start << bits, (snapshots.clusters.end - snapshots.clusters.start) << bits);
    for (offset, entries) in snapshots.l1_tables {
        count.table(offset, entries, false)?;
    }
    if counts {
        let refs = Refcounts::read(file, header)?;
        for cluster in refs.own_clusters().collect::<Vec<_>>() {
            count.refer(cluster << bits, header.cluster());
        }
    }
    Ok(count)
}

impl Count<'_> {
    fn references(&self, cluster: u64) -> u64 {
        self.found.get(cluster as usize).copied().map_or(0, u64::from)
    }

    /// One more reference to each cluster of a range; false if it is not in the file.
    fn refer(&mut self, offset: u64, len: u64) -> bool {
        let bits = self.header.cluster_bits;
        if len == 0 {
            return true;
        }
        let clusters = offset >> bits..offset.saturating_add(len).div_ceil(1 << bits);
        if clusters.end > self.file_clusters {
            return false;
        }
        for cluster in clusters {
            if let Some(found) = self.found.get_mut(cluster as usize) {
                *found = found.saturating_add(1);
            }
        }
        true
    }

    /// Goes through an L1 table and the L2 tables that it refers to.
    fn table(&mut self, offset: u64, entries: u64, active: bool) -> io::Result<()> {
        if entries * 8 > L1_MAX {
            return Err(corrupt("an L1 table is too large"));
        }
        self.refer(offset, entries * 8);
        let l1: Vec<u64> = be64s(&self.file.read_vec(offset, entries as usize * 8)?).collect();
        let cluster = self.header.cluster();
        for entry in l1 {
            let place = entry & OFFSET_MASK;
            if place == 0 {
                continue;
            }
            if !place.is_multiple_of(cluster) || !self.refer(place, cluster) {
                self.beyond_repair += 1;
                continue;
            }
            let l2: Vec<u64> = be64s(&self.file.read_vec(place, cluster as usize)?).collect();
            for entry in l2 {
                self.entry(entry, active);
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: u64, active: bool) {
        let Ok(mapping) = Mapping::decode(entry, self.header.version, self.header.cluster_bits) else {
            self.beyond_repair += 1;
            return;
        };
        let (host, len) = match mapping {
            Mapping::Absent | Mapping::Zero { host: None, .. } => return,
            Mapping::Zero { host: Some(host), .. } | Mapping::Data { host, .. } => {
                (host, self.header.cluster())
            }
            Mapping::Packed { host, len } => {
                self.report.compressed += u64::from(active);
                (host, len)
            }
        };
        self.report.allocated += u64::from(active);
        // The last sector of what is compressed may be cut off.
        let end = self.file_clusters << self.header.cluster_bits;
        let len =
            if matches!(mapping, Mapping::Packed { .. }) { len.min(end.saturating_sub(host)) } else { len };
        if len == 0 || host < self.header.cluster() || !self.refer(host, len) {
            self.beyond_repair += 1;
        }
    }

    /// Whether the tables of counts can be read at all: in the file, and each alone in its place.
    fn counts_are_sound(&self, refs: &Refcounts) -> bool {
        let alone = |cluster: u64| self.references(cluster) == 1;
        refs.misplaced_block(self.file_clusters << self.header.cluster_bits).is_none()
            && refs.own_clusters().all(alone)
    }
}

/// Compares the flag "one reference only" of every active entry with the references found; with `repair`, sets it
/// right. Gives how many are wrong and matter: a flag that is missing only costs time.
fn copied_flags(count: &mut Count<'_>, repair: Option<()>) -> io::Result<u64> {
    let (file, header) = (count.file, count.header);
    let cluster = header.cluster();
    let mut wrong = 0;
    let mut judge = |entry: u64, host: u64| {
        let alone = count.references(host >> header.cluster_bits) == 1;
        wrong += u64::from(!alone && entry & COPIED != 0);
        if alone { entry | COPIED } else { entry & !COPIED }
    };
    let l1: Vec<u64> = be64s(&file.read_vec(header.l1_offset, header.l1_entries as usize * 8)?).collect();
    for (index, entry) in l1.into_iter().enumerate() {
        let place = entry & OFFSET_MASK;
        if place == 0 || !place.is_multiple_of(cluster) || place >> header.cluster_bits >= count.file_clusters
        {
            continue;
        }
        let right = judge(entry, place);
        if repair.is_some() && right != entry {
            file.write(header.l1_offset + index as u64 * 8, &right.to_be_bytes())?;
        }
        let l2: Vec<u64> = be64s(&file.read_vec(place, cluster as usize)?).collect();
        for (index, entry) in l2.into_iter().enumerate() {
            let host = match Mapping::decode(entry, header.version, header.cluster_bits) {
                Ok(Mapping::Data { host, .. } | Mapping::Zero { host: Some(host), .. }) => host,
                _ => continue,
            };
            let right = judge(entry, host);
            if repair.is_some() && right != entry {
                file.write(place + index as u64 * 8, &right.to_be_bytes())?;
            }
        }
    }
    Ok(wrong)
}

/// Builds the table and blocks of counts anew, behind all that is used, and points the header to them.
pub(crate) fn rebuild(file: &HostFile, header: &mut Header) -> io::Result<()> {
    let count = count(file, header, false)?;
    let (bits, cluster) = (header.cluster_bits, header.cluster());
    let block_entries = (cluster * 8) >> header.refcount_order;
    let per_cluster = cluster / 8;
    // Behind the old ones too, which stand until the header has changed.
    let start = file.size()?.div_ceil(cluster);
    // Only blocks that count something.
    let counted = (0u64..).zip(&count.found).filter(|(_, references)| **references > 0);
    let mut blocks: BTreeSet<u64> = counted.map(|(cluster, _)| cluster / block_entries).collect();
    let mut table = 1;
    let new = loop {
        let new = start..start + table + blocks.len() as u64;
        let (before, entries) = (blocks.len(), (new.end.div_ceil(block_entries)).div_ceil(per_cluster));
        blocks.extend(new.start / block_entries..=(new.end - 1) / block_entries);
        if blocks.len() == before && entries <= table {
            break new;
        }
        table = entries.max(table);
    };
    let max = if header.refcount_order == 6 { u64::MAX } else { (1 << (1u64 << header.refcount_order)) - 1 };
    let mut entries = vec![0; (table << bits) as usize];
    for (number, block) in (0u64..).zip(&blocks) {
        let mut data = vec![0; cluster as usize];
        for index in 0..block_entries {
            let at = block * block_entries + index;
            let references = count.references(at) + u64::from(new.contains(&at));
            if references > max {
                return Err(corrupt("a cluster has more references than can be counted"));
            }
            set_count(&mut data, header.refcount_order, index as usize, references);
        }
        let place = (start + table + number) << bits;
        file.write(place, &data)?;
        if let Some(entry) = entries.get_mut(*block as usize * 8..*block as usize * 8 + 8) {
            entry.copy_from_slice(&place.to_be_bytes());
        }
    }
    file.write(start << bits, &entries)?;
    file.sync()?;
    write_pointer(file, start << bits, table as u32)?;
    file.sync()?;
    (header.reftable_offset, header.reftable_clusters) = (start << bits, table as u32);
    Ok(())
}
