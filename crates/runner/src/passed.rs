//! Files that come with the bytes of a Unix socket (SCM_RIGHTS, unix(7)).
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

/// Most files that come at a time: a disk with all that lies below it.
const FILES_MAX: usize = 72;

/// Reads a connection and keeps the files that come.
pub(crate) struct WithFiles {
    connection: UnixStream,
    /// Since they were last taken.
    files: Vec<File>,
}

impl WithFiles {
    pub(crate) fn new(connection: UnixStream) -> WithFiles {
        WithFiles { connection, files: Vec::new() }
    }

    /// The files that came since the last call.
    pub(crate) fn take_files(&mut self) -> Vec<File> {
        std::mem::take(&mut self.files)
    }
}

impl Read for WithFiles {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.connection, &mut [IoSliceMut::new(data)], &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files.map(File::from));
            }
        }
        // Whoever sends files without a request has them closed.
        self.files.truncate(FILES_MAX);
        Ok(received.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::{IoSlice, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_file_comes_with_the_bytes_that_it_was_sent_with() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile();
        file.write_all(b"content").unwrap();
        file.rewind().unwrap();
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&theirs, &[IoSlice::new(b"a line\n")], &mut ancillary, SendFlags::empty()).unwrap();
        let mut reader = WithFiles::new(ours);
        let mut bytes = [0; 32];
        assert_eq!(reader.read(&mut bytes).unwrap(), 7);
        let mut came = reader.take_files();
        assert_eq!((came.len(), reader.take_files().len()), (1, 0));
        let mut text = String::new();
        came[0].read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    fn tempfile() -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        rustix::fs::memfd_create("test", flags).unwrap().into()
    }
}
