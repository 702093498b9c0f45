//! How a machine and a share's server talk, each in its own process.
//!
//! ```text
//!  runner ── control: "here is a socket for a new guest" ──► server        (a packet with a descriptor)
//!  machine ── session: length, room, request ──► server ── length, reply ──► machine    (a stream)
//! ```
//! One request at a time: the server does one thing after the other anyway. A session ends with its stream, the server
//! with the control socket. Two heads are no request's: what the guest knows is given ([`Caller::save`]), or taken before
//! its first request ([`Caller::load`]).
use crate::directory::Directory;
use crate::protocol::WRITE_MAX;
use crate::saved::SAVED_MAX;
use crate::session::Session;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

/// Most bytes of a request.
pub const REQUEST_MAX: usize = WRITE_MAX as usize + 4096;
/// Most bytes of a reply.
pub const REPLY_MAX: usize = WRITE_MAX as usize + 4096;
/// Bytes before a request, and before a reply.
const REQUEST_HEAD: usize = 8;
const REPLY_HEAD: usize = 4;
/// Bytes of a reply that are taken in one piece with its head: nearly all have fewer.
const REPLY_USUAL: usize = 4096;
/// Instead of a request's head: the session's state is asked for. The answer is a word of 0 or 1, whether what follows
/// (its length in a word, and bytes) is the state, or words that say why there is none.
const SAVE: u64 = u64::MAX;
/// The session's state follows, length and bytes. The answer is like that to [`SAVE`], without a state.
const LOAD: u64 = u64::MAX - 1;

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the other side does not keep to the protocol")
}

/// The machine's end of a session.
pub struct Caller {
    stream: UnixStream,
}

impl Caller {
    /// Talks over `stream`.
    pub fn new(stream: UnixStream) -> Caller {
        Caller { stream }
    }

    /// Sends a request, and waits for its reply of at most `room` bytes; it is empty for a request without one.
    pub fn call(&mut self, request: &[u8], room: usize, reply: &mut Vec<u8>) -> io::Result<()> {
        let room = room.min(REPLY_MAX);
        let len = u32::try_from(request.len()).ok().filter(|len| *len as usize <= REQUEST_MAX);
        let head = u64::from(len.ok_or_else(broken)?) | (room as u64) << 32;
        write_both(&mut self.stream, &head.to_le_bytes(), request)?;
        reply.clear();
        // Most replies come in one piece, head and all.
        reply.resize(REPLY_HEAD + room.min(REPLY_USUAL), 0);
        let mut have = 0;
        while have < REPLY_HEAD {
            have += read_some(&mut self.stream, reply, have)?;
        }
        let head = reply.first_chunk::<REPLY_HEAD>().ok_or_else(broken)?;
        let len = u32::from_le_bytes(*head) as usize;
        if len > room || have > REPLY_HEAD + len {
            return Err(broken());
        }
        reply.resize(REPLY_HEAD + len, 0);
        while have < REPLY_HEAD + len {
            have += read_some(&mut self.stream, reply, have)?;
        }
        reply.drain(..REPLY_HEAD);
        Ok(())
    }
}

impl Caller {
    /// What the guest knows by now, for [`Caller::load`]. The inner error says why the server does not give it.
    pub fn save(&mut self) -> io::Result<Result<Vec<u8>, String>> {
        self.stream.write_all(&SAVE.to_le_bytes())?;
        self.state()
    }

    /// The guest goes on from what [`Caller::save`] gave, there or elsewhere. The inner error says why it cannot.
    pub fn load(&mut self, state: &[u8]) -> io::Result<Result<(), String>> {
        write_both(&mut self.stream, &LOAD.to_le_bytes(), &(state.len() as u64).to_le_bytes())?;
        self.stream.write_all(state)?;
        Ok(self.state()?.map(drop))
    }

    fn state(&mut self) -> io::Result<Result<Vec<u8>, String>> {
        let given = match word(&mut self.stream)? {
            0 => false,
            1 => true,
            _ => return Err(broken()),
        };
        let bytes = state(&mut self.stream)?;
        Ok(if given { Ok(bytes) } else { Err(String::from_utf8_lossy(&bytes).to_string()) })
    }
}

fn word(stream: &mut impl Read) -> io::Result<u64> {
    let mut word = [0; 8];
    stream.read_exact(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// Length and bytes.
fn state(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let len = word(stream)?;
    if len > SAVED_MAX as u64 {
        return Err(broken());
    }
    let mut bytes = Vec::new();
    stream.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

fn give_state(stream: &mut UnixStream, state: Result<Vec<u8>, String>) -> io::Result<()> {
    let (given, bytes) = match state {
        Ok(bytes) => (1u64, bytes),
        Err(why) => (0, why.into_bytes()),
    };
    write_both(stream, &given.to_le_bytes(), &(bytes.len() as u64).to_le_bytes())?;
    stream.write_all(&bytes)
}

fn read_some(stream: &mut UnixStream, buffer: &mut [u8], from: usize) -> io::Result<usize> {
    loop {
        match stream.read(buffer.get_mut(from..).unwrap_or_default()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn write_both(stream: &mut UnixStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let written = loop {
        match stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    match head.get(written..).filter(|rest| !rest.is_empty()) {
        Some(rest) => {
            stream.write_all(rest)?;
            stream.write_all(body)
        }
        None => stream.write_all(body.get(written - head.len()..).unwrap_or_default()),
    }
}

/// Answers one guest's requests until its stream ends.
fn serve_session(directory: &Directory, stream: UnixStream) -> io::Result<()> {
    let mut session = Session::new(directory)?;
    let mut input = BufReader::with_capacity(32 << 10, stream.try_clone()?);
    let mut output = stream;
    let (mut request, mut reply) = (Vec::new(), Vec::new());
    loop {
        let mut head = [0; REQUEST_HEAD];
        match input.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        }
        let head = u64::from_le_bytes(head);
        let state = match head {
            SAVE => Some(session.save()),
            LOAD => Some(session.load(&state(&mut input)?).map(|()| Vec::new())),
            _ => None,
        };
        if let Some(state) = state {
            give_state(&mut output, state)?;
            continue;
        }
        let (len, room) = (head as u32 as usize, (head >> 32) as usize);
        if len > REQUEST_MAX || room > REPLY_MAX {
            return Err(broken());
        }
        request.resize(len, 0);
        input.read_exact(&mut request)?;
        session.answer(&request, room, &mut reply);
        write_both(&mut output, &(reply.len() as u32).to_le_bytes(), &reply)?;
    }
}

/// Serves one guest after the other, as `control` hands their sockets over, until it is closed.
pub fn serve(directory: &Directory, control: OwnedFd) -> io::Result<()> {
    while let Some(session) = take(&control)? {
        match serve_session(directory, session) {
            // The guest has gone, in the midst of something perhaps.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The two ends of a control socket.
pub fn control() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Has the server behind `control` serve a new guest, after the one that it serves now.
pub fn open_session(control: impl AsFd) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    let descriptors = [theirs.as_fd()];
    if !attached.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(broken());
    }
    sendmsg(control, &[IoSlice::new(b"guest")], &mut attached, SendFlags::NOSIGNAL)?;
    Ok(ours)
}

/// The next guest's socket; none if there will be no more.
fn take(control: &OwnedFd) -> io::Result<Option<UnixStream>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let mut message = [0; 16];
    let received = loop {
        match recvmsg(control, &mut [IoSliceMut::new(&mut message)], &mut attached, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptor = attached.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.map(|descriptor| Some(UnixStream::from(descriptor))).ok_or_else(broken)
}
