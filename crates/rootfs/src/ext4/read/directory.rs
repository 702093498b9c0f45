//! What is in a directory (struct ext4_dir_entry_2; "Directory Entries"). Blocks of the index look like empty ones.
use super::{FileSystem, Inode, damaged, u16_at, u32_at};
use crate::ext4::spec::BLOCK;
use std::collections::BTreeMap;
use viv_model::Fault;

/// Bytes of an entry before its name.
const HEAD: usize = 8;
/// Largest directory: 2 million names of 255 bytes.
const SIZE_MAX: u64 = 1 << 30;

impl FileSystem<'_> {
    /// The names of a directory with their inodes, without `.` and `..`.
    pub(crate) fn names(&self, directory: &Inode) -> Result<BTreeMap<Vec<u8>, u32>, Fault> {
        let bad = || damaged(format!("directory {} contradicts itself", directory.number));
        let content = self.content(directory, SIZE_MAX)?;
        let mut names = BTreeMap::new();
        for mut block in content.chunks(BLOCK as usize) {
            while !block.is_empty() {
                let head = (u32_at(block, 0), u16_at(block, 4), block.get(6));
                let (Some(inode), Some(length), Some(name_len)) = head else { return Err(bad()) };
                let (length, name_len) = (usize::from(length), usize::from(*name_len));
                let entry =
                    block.get(..length).filter(|_| length >= HEAD && length % 4 == 0).ok_or_else(bad)?;
                if inode != 0 {
                    let name = entry.get(HEAD..HEAD.saturating_add(name_len)).ok_or_else(bad)?;
                    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                        return Err(bad());
                    }
                    if name != b"." && name != b".." && names.insert(name.to_vec(), inode).is_some() {
                        return Err(bad());
                    }
                }
                block = block.get(length..).unwrap_or_default();
            }
        }
        Ok(names)
    }
}
