//! Requests about names: look up, make, remove, rename, link.
use crate::protocol::{Input, Output, no_entry_out};
use crate::session::{Session, by_number};
use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, linkat, mkdirat, mknodat, readlinkat, renameat_with, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

/// The permissions that a guest may give: a program that runs as its owner would be ours to answer for.
pub(crate) const PERMISSIONS: u32 = 0o1777;

impl Session<'_> {
    pub(crate) fn lookup(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let name = input.component()?;
        self.parent(parent)?;
        match self.entry(parent, name, output) {
            // That it is not there may be remembered as long as what is.
            Err(Errno::NOENT) => {
                no_entry_out(output);
                Ok(())
            }
            result => result,
        }
    }

    pub(crate) fn readlink(&mut self, node: u64, output: &mut Output<'_>) -> Result<(), Errno> {
        if self.nodes.kind(node)? != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = readlinkat(&*self.nodes.file(node)?, c"", Vec::new())?;
        output.put(target.as_bytes());
        Ok(())
    }

    pub(crate) fn symlink(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (name, target) = (input.component()?, input.text()?);
        symlinkat(target, &*self.parent(parent)?, name)?;
        self.entry(parent, name, output)
    }

    pub(crate) fn mknod(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (mode, _device, _umask, _) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        let name = input.component()?;
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            // A device of the host.
            return Err(Errno::PERM);
        }
        mknodat(&*self.parent(parent)?, name, kind, Mode::from_raw_mode(mode & PERMISSIONS), 0)?;
        self.entry(parent, name, output)
    }

    pub(crate) fn mkdir(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (mode, _umask) = (input.u32()?, input.u32()?);
        let name = input.component()?;
        mkdirat(&*self.parent(parent)?, name, Mode::from_raw_mode(mode & PERMISSIONS))?;
        self.entry(parent, name, output)
    }

    pub(crate) fn unlink(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        directory: bool,
    ) -> Result<(), Errno> {
        let name = input.component()?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(&*self.parent(parent)?, name, flags)
    }

    pub(crate) fn rename(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        with_flags: bool,
    ) -> Result<(), Errno> {
        let new_parent = input.u64()?;
        let flags = if with_flags { (input.u32()?, input.u32()?).0 } else { 0 };
        let (name, new_name) = (input.component()?, input.component()?);
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.parent(parent)?, self.parent(new_parent)?);
        renameat_with(&*from, name, &*to, new_name, flags)?;
        self.nodes.renamed(new_parent, new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.nodes.renamed(parent, name);
        }
        Ok(())
    }

    pub(crate) fn link(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let node = input.u64()?;
        let name = input.component()?;
        if self.nodes.kind(node)? == FileType::Directory {
            return Err(Errno::PERM);
        }
        let (file, to) = (self.nodes.file(node)?, self.parent(parent)?);
        linkat(&self.directory.numbers, by_number(&file), &*to, name, AtFlags::SYMLINK_FOLLOW)?;
        self.entry(parent, name, output)
    }
}
