//! Files that come with the bytes of a Unix socket (SCM_RIGHTS, unix(7)).
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most files that come at a time: a disk with all that lies below it, or a card with all published ports.
const FILES_MAX: usize = 72;

/// Reads a connection and keeps the files that come.
#[derive(Debug)]
pub struct WithFiles {
    connection: UnixStream,
    /// Since they were last taken.
    files: Vec<OwnedFd>,
}

impl WithFiles {
    /// Reads this connection.
    pub fn new(connection: UnixStream) -> WithFiles {
        WithFiles { connection, files: Vec::new() }
    }

    /// The files that came since the last call.
    pub fn take_files(&mut self) -> Vec<OwnedFd> {
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
                self.files.extend(files);
            }
        }
        // Whoever sends files without a request has them closed.
        self.files.truncate(FILES_MAX);
        Ok(received.bytes)
    }
}

/// Answers JSON lines of up to `line_max` bytes, each with the files that came along, until the other side goes. What is not
/// understood goes to `reply` too.
pub fn answer_lines<A: DeserializeOwned, R: Serialize>(
    connection: UnixStream,
    line_max: usize,
    mut reply: impl FnMut(serde_json::Result<A>, Vec<OwnedFd>) -> R,
) {
    let Ok(mut writer) = connection.try_clone() else { return };
    let mut reader = BufReader::new(WithFiles::new(connection));
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(line_max as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let asked = serde_json::from_slice(&line);
        let answer = reply(asked, reader.get_mut().take_files());
        let Ok(mut bytes) = serde_json::to_vec(&answer) else { return };
        bytes.push(b'\n');
        if writer.write_all(&bytes).is_err() || line.last() != Some(&b'\n') {
            return;
        }
    }
}

/// Sends all of `bytes`, and the files with the first of them.
pub fn send(mut socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    if !files.is_empty() {
        let message = SendAncillaryMessage::ScmRights(files);
        let mut space = vec![MaybeUninit::uninit(); message.size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if files.len() > FILES_MAX || !ancillary.push(message) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    socket.write_all(bytes.get(sent..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Seek;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_comes_with_the_bytes_that_it_was_sent_with() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let path = std::env::temp_dir().join(format!("viv-passed-{}", std::process::id()));
        let mut file =
            File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"content").unwrap();
        file.rewind().unwrap();
        send(&theirs, b"a line\n", &[file.as_fd()]).unwrap();
        let mut reader = WithFiles::new(ours);
        let mut bytes = [0; 32];
        assert_eq!(reader.read(&mut bytes).unwrap(), 7);
        let mut came = reader.take_files();
        assert_eq!((came.len(), reader.take_files().len()), (1, 0));
        let mut text = String::new();
        File::from(came.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }
}
