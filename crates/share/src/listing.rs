//! Requests about directories as lists.
use crate::handles::{Listed, Listing};
use crate::nodes::open_beneath;
use crate::protocol::{ENTRY_LEN, Input, Output, no_entry_out};
use crate::session::Session;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;
use std::mem::MaybeUninit;

/// Bytes of a directory that are read at once.
const PIECE: usize = 32 << 10;
/// Bytes of `fuse_dirent` before the name: ino, off u64; namelen, type u32.
const DIRENT_LEN: usize = 24;

impl Session<'_> {
    pub(crate) fn opendir(&mut self, node: u64, output: &mut Output<'_>) -> Result<(), Errno> {
        let file = self.open_listing(node)?;
        output.u64(self.handles.add_listing(file, node)?);
        output.u64(0);
        Ok(())
    }

    pub(crate) fn open_listing(&mut self, node: u64) -> Result<OwnedFd, Errno> {
        let directory = self.parent(node)?;
        open_beneath(directory.as_fd(), c".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    pub(crate) fn readdir(
        &mut self,
        node: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
        plus: bool,
    ) -> Result<(), Errno> {
        let (handle, offset, size) = (input.u64()?, input.u64()?, input.u32()?);
        let size = (size as usize).min(output.room());
        let start = output.len();
        let listing = self.handles.listing(handle)?;
        if listing.at != offset {
            listing.waiting.clear();
            seek(&listing.file, SeekFrom::Start(offset))?;
            listing.at = offset;
        }
        loop {
            let listing = self.handles.listing(handle)?;
            if listing.waiting.is_empty() {
                match refill(listing) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    // What has been listed so far counts; the error comes again.
                    Err(_) if output.len() > start => return Ok(()),
                    Err(errno) => return Err(errno),
                }
            }
            let Some(listed) = listing.waiting.front() else { return Ok(()) };
            let entry = if plus { ENTRY_LEN } else { 0 };
            let len = (entry + DIRENT_LEN + listed.name.count_bytes()).next_multiple_of(8);
            if output.len() - start + len > size {
                return Ok(());
            }
            let Some(listed) = listing.waiting.pop_front() else { return Ok(()) };
            listing.at = listed.next;
            if plus {
                self.listed_entry(node, &listed, output);
            }
            let end = output.len() - entry + len;
            output.u64(listed.inode);
            output.u64(listed.next);
            output.u32(listed.name.count_bytes() as u32);
            output.u32(listed.kind.into());
            output.put(listed.name.to_bytes());
            output.put(&[0; 8][..(end - output.len()).min(8)]);
        }
    }

    /// The entry of a listed name; none for the directory itself, the one above, and what has gone meanwhile.
    fn listed_entry(&mut self, parent: u64, listed: &Listed, output: &mut Output<'_>) {
        // Under these names nothing is known: they are no way from a directory to what is in it.
        if matches!(listed.name.to_bytes(), b"." | b"..") {
            return no_entry_out(output);
        }
        match self.nodes.look_up(parent, &listed.name) {
            Ok((node, stat)) => self.owner.entry_out(output, node, &stat),
            Err(_) => no_entry_out(output),
        }
    }
}

/// Reads the next piece of a directory; gives how many names there are now.
fn refill(listing: &mut Listing) -> Result<usize, Errno> {
    let mut buffer = [const { MaybeUninit::uninit() }; PIECE];
    let mut names = RawDir::new(&listing.file, &mut buffer);
    while let Some(entry) = names.next() {
        let entry = entry?;
        let kind = match entry.file_type() {
            FileType::Unknown => 0,
            // The upper bits of a mode, as in d_type (readdir(3)).
            kind => (kind.as_raw_mode() >> 12) as u8,
        };
        listing.waiting.push_back(Listed {
            name: entry.file_name().to_owned(),
            inode: entry.ino(),
            kind,
            next: entry.next_entry_cookie(),
        });
        if names.is_buffer_empty() {
            break;
        }
    }
    Ok(listing.waiting.len())
}
