//! Extended attributes, in the inode and in a block of their own (struct ext4_xattr_entry; "Extended Attributes").
use super::{FileSystem, Inode, damaged, u16_at, u32_at};
use std::collections::BTreeMap;
use viv_model::Fault;

/// EXT4_XATTR_MAGIC.
const MAGIC: u32 = 0xea02_0000;
/// Bytes of a block's header, and of an entry before its name.
const BLOCK_HEAD: usize = 32;
const ENTRY_HEAD: usize = 16;
/// Version of access lists on the disk (EXT4_ACL_VERSION) and in extended attributes (POSIX_ACL_XATTR_VERSION).
const ACL_ON_DISK: u32 = 1;
const ACL: u32 = 2;
/// Entries that name somebody: ACL_USER and ACL_GROUP (include/linux/posix_acl.h).
const ACL_NAMED: [u16; 2] = [0x2, 0x8];

impl FileSystem<'_> {
    /// The extended attributes of an inode by their full names.
    pub(crate) fn xattrs(&self, inode: &Inode) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Fault> {
        let mut found = BTreeMap::new();
        if u32_at(&inode.attributes, 0) == Some(MAGIC) {
            let entries = inode.attributes.get(4..).unwrap_or_default();
            take(entries, entries, &mut found)?;
        }
        if inode.attributes_at != 0 {
            let block = self.block(inode.attributes_at)?;
            if u32_at(&block, 0) != Some(MAGIC) {
                return Err(damaged(format!("inode {} has attributes that are none", inode.number)));
            }
            take(block.get(BLOCK_HEAD..).unwrap_or_default(), &block, &mut found)?;
        }
        Ok(found)
    }
}

/// Takes the entries; their values are where they say in `values`.
fn take(mut entries: &[u8], values: &[u8], found: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), Fault> {
    let bad = || damaged("a file's extended attributes contradict themselves");
    while u32_at(entries, 0).is_some_and(|word| word != 0) {
        let (Some([name_len, index]), Some(at), Some(elsewhere), Some(length)) =
            (entries.first_chunk(), u16_at(entries, 2), u32_at(entries, 4), u32_at(entries, 8))
        else {
            return Err(bad());
        };
        let end = ENTRY_HEAD.saturating_add(usize::from(*name_len));
        let name = entries.get(ENTRY_HEAD..end).ok_or_else(bad)?;
        let (at, length) = (usize::from(at), usize::try_from(length).map_err(|_| bad())?);
        let value = values.get(at..at.saturating_add(length)).filter(|_| elsewhere == 0).ok_or_else(bad)?;
        if let Some(prefix) = prefix(*index) {
            let is_acl = matches!(index, 2 | 3);
            let value = if is_acl { acl(value).ok_or_else(bad)? } else { value.to_vec() };
            found.insert([prefix, name].concat(), value);
        }
        entries = entries.get(end.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// How a name begins that is stored without its beginning (EXT4_XATTR_INDEX_*).
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        _ => return None,
    })
}

/// An access list as programs see it (fs/ext4/acl.c, ext4_acl_from_disk; include/uapi/linux/posix_acl_xattr.h).
fn acl(stored: &[u8]) -> Option<Vec<u8>> {
    if u32_at(stored, 0)? != ACL_ON_DISK {
        return None;
    }
    let mut out = ACL.to_le_bytes().to_vec();
    let mut entries = stored.get(4..)?;
    while !entries.is_empty() {
        let tag = u16_at(entries, 0)?;
        out.extend_from_slice(entries.get(..4)?);
        let has_id = ACL_NAMED.contains(&tag);
        let id = if has_id { u32_at(entries, 4)? } else { u32::MAX };
        out.extend(id.to_le_bytes());
        entries = entries.get(if has_id { 8 } else { 4 }..)?;
    }
    Some(out)
}
