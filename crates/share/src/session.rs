//! One guest's use of a share, from its INIT to its end: each request finds its answer here.
use crate::directory::Directory;
use crate::handles::Handles;
use crate::nodes::Nodes;
use crate::protocol::{self, Header, Input, MAJOR, MINOR, MINOR_MIN, Output, Owner, WRITE_MAX, init, opcode};
use rustix::fd::OwnedFd;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::path::DecInt;
use std::ffi::CStr;
use std::sync::Arc;

/// See the module.
pub struct Session<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) owner: Owner,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
}

/// Requests that change files, or may do.
const CHANGES: &[u32] = &[
    opcode::SETATTR,
    opcode::SYMLINK,
    opcode::MKNOD,
    opcode::MKDIR,
    opcode::UNLINK,
    opcode::RMDIR,
    opcode::RENAME,
    opcode::RENAME2,
    opcode::LINK,
    opcode::WRITE,
    opcode::SETXATTR,
    opcode::REMOVEXATTR,
    opcode::CREATE,
    opcode::FALLOCATE,
    opcode::COPY_FILE_RANGE,
];

/// What we can of what the kernel offers.
const FEATURES: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2;

impl<'a> Session<'a> {
    /// A guest that knows nothing yet.
    pub fn new(directory: &'a Directory) -> Result<Session<'a>, Errno> {
        let (nodes_max, handles_max) = directory.limits();
        Ok(Session {
            directory,
            owner: directory.owner(),
            nodes: Nodes::new(directory.name()?, nodes_max)?,
            handles: Handles::new(handles_max),
        })
    }

    /// Answers `request` with at most `room` bytes in `reply`; none if there is nothing to say.
    pub fn answer(&mut self, request: &[u8], room: usize, reply: &mut Vec<u8>) {
        let mut input = Input(request);
        let Ok(header) = input.header() else {
            // Without a whole header there is nobody to answer.
            reply.clear();
            return;
        };
        let mut output = Output::new(reply, room);
        match header.opcode {
            opcode::FORGET => {
                if let Ok(lookups) = input.u64() {
                    self.nodes.forget(header.node, lookups);
                }
                reply.clear();
            }
            opcode::BATCH_FORGET => {
                let _ = self.batch_forget(&mut input);
                reply.clear();
            }
            opcode::INTERRUPT => reply.clear(),
            _ => {
                let result = self.perform(&header, &mut input, &mut output);
                output.finish(header.unique, result);
            }
        }
    }

    fn perform(
        &mut self,
        header: &Header,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        if self.directory.read_only && CHANGES.contains(&header.opcode) {
            return Err(Errno::ROFS);
        }
        match header.opcode {
            opcode::INIT => self.init(input, output),
            opcode::DESTROY => {
                self.forget_all();
                Ok(())
            }
            opcode::LOOKUP => self.lookup(header.node, input, output),
            opcode::GETATTR => self.getattr(header.node, input, output),
            opcode::SETATTR => self.setattr(header.node, input, output),
            opcode::READLINK => self.readlink(header.node, output),
            opcode::SYMLINK => self.symlink(header.node, input, output),
            opcode::MKNOD => self.mknod(header.node, input, output),
            opcode::MKDIR => self.mkdir(header.node, input, output),
            opcode::UNLINK => self.unlink(header.node, input, false),
            opcode::RMDIR => self.unlink(header.node, input, true),
            opcode::RENAME => self.rename(header.node, input, false),
            opcode::RENAME2 => self.rename(header.node, input, true),
            opcode::LINK => self.link(header.node, input, output),
            opcode::OPEN => self.open(header.node, input, output),
            opcode::CREATE => self.create(header.node, input, output),
            opcode::READ => self.read(input, output),
            opcode::WRITE => self.write(input, output),
            opcode::STATFS => self.statfs(output),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(input),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(input),
            opcode::SETXATTR => self.setxattr(header.node, input),
            opcode::GETXATTR => self.getxattr(header.node, input, output),
            opcode::LISTXATTR => self.listxattr(header.node, input, output),
            opcode::REMOVEXATTR => self.removexattr(header.node, input),
            opcode::OPENDIR => self.opendir(header.node, output),
            opcode::READDIR => self.readdir(header.node, input, output, false),
            opcode::READDIRPLUS => self.readdir(header.node, input, output, true),
            opcode::ACCESS => self.access(header.node, input),
            opcode::FALLOCATE => self.fallocate(input),
            opcode::LSEEK => self.lseek(input, output),
            opcode::COPY_FILE_RANGE => self.copy_file_range(input, output),
            opcode::SYNCFS => self.directory.sync(),
            // The rest, and FLUSH: whoever closes a file has nothing to wait for, since writes have arrived. The
            // kernel remembers, and asks no more.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Errno> {
        let (major, minor, readahead, flags) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        if major < MAJOR || major == MAJOR && minor < MINOR_MIN {
            return Err(Errno::PROTO);
        }
        self.forget_all();
        output.u32(MAJOR);
        output.u32(MINOR);
        output.u32(readahead.min(WRITE_MAX));
        output.u32(flags & FEATURES);
        // max_background and congestion_threshold: 16 bits each.
        output.u32(64 | 48 << 16);
        output.u32(WRITE_MAX);
        // Times are as fine as a nanosecond.
        output.u32(1);
        output.u32(protocol::PAGES_MAX.into());
        output.put(&[0; 32]);
        Ok(())
    }

    fn forget_all(&mut self) {
        self.nodes.clear();
        self.handles.clear();
    }

    fn batch_forget(&mut self, input: &mut Input<'_>) -> Result<(), Errno> {
        let (count, _) = (input.u32()?, input.u32()?);
        for _ in 0..count {
            let (node, lookups) = (input.u64()?, input.u64()?);
            self.nodes.forget(node, lookups);
        }
        Ok(())
    }

    /// The descriptor of a node that is a directory.
    pub(crate) fn parent(&mut self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.nodes.kind(node)? {
            FileType::Directory => self.nodes.file(node),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Tells the guest of `name` in a directory.
    pub(crate) fn entry(&mut self, parent: u64, name: &CStr, output: &mut Output<'_>) -> Result<(), Errno> {
        let (node, stat) = self.nodes.look_up(parent, name)?;
        self.owner.entry_out(output, node, &stat);
        Ok(())
    }
}

/// The path, in `/proc/self/fd`, that leads to the very file of a descriptor: for calls that take no such descriptor.
pub(crate) fn by_number(file: &OwnedFd) -> DecInt {
    DecInt::from_fd(file)
}
