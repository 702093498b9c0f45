//! What differs between two snapshots.
use super::{Snapshots, io_fault};
use std::fs;
use std::path::Path;
use viv_api::snapshot::{ContentDiff, SnapshotDiff};
use viv_model::{Content, Fault, Manifest, ProjectName};
use viv_snapshot::{CHUNK, MEMORY, SUM_LEN, disk_file, sums_file};

impl Snapshots {
    /// Compares two of a project, by their checksums.
    pub(crate) fn diff(
        &self,
        project: &ProjectName,
        first: &str,
        second: &str,
    ) -> Result<SnapshotDiff, Fault> {
        let ((first_dir, first), (second_dir, second)) =
            (self.find(project, first)?, self.find(project, second)?);
        let content = |manifest: &Manifest, index: usize| {
            let disk = manifest.disks.iter().find(|disk| disk.index == index);
            disk.map(|disk| disk.content.clone())
        };
        let indices = first.disks.iter().chain(&second.disks).map(|disk| disk.index);
        let indices = indices.collect::<std::collections::BTreeSet<_>>();
        let each = |index| {
            let (one, other) = (content(&first, index), content(&second, index));
            compare(&disk_file(index), (&first_dir, one.as_ref()), (&second_dir, other.as_ref()))
        };
        let memory = compare(MEMORY, (&first_dir, Some(&first.memory)), (&second_dir, Some(&second.memory)))?;
        Ok(SnapshotDiff {
            machine: first.machine != second.machine,
            state: first.sections != second.sections,
            contents: std::iter::once(Ok(memory))
                .chain(indices.into_iter().map(each))
                .collect::<Result<_, Fault>>()?,
            first: first.name,
            second: second.name,
        })
    }
}

fn compare(
    name: &str,
    first: (&Path, Option<&Content>),
    second: (&Path, Option<&Content>),
) -> Result<ContentDiff, Fault> {
    let sums = |(dir, content): (&Path, Option<&Content>)| {
        let path = dir.join(sums_file(name));
        content.map_or(Ok(Vec::new()), |_| fs::read(&path).map_err(io_fault("read", &path)))
    };
    let bytes = |(_, content): (&Path, Option<&Content>)| content.map_or(0, |content| content.bytes);
    let (ours, theirs) = (sums(first)?, sums(second)?);
    let (ours, theirs) = (ours.as_chunks::<SUM_LEN>().0, theirs.as_chunks::<SUM_LEN>().0);
    let size = bytes(first).max(bytes(second));
    let differs = |index: &u64| ours.get(*index as usize) != theirs.get(*index as usize);
    let changed = (0..size.div_ceil(CHUNK)).filter(differs);
    let changed_bytes = changed.map(|index| CHUNK.min(size - index * CHUNK)).sum();
    Ok(ContentDiff { name: name.to_string(), bytes: size, changed_bytes })
}
