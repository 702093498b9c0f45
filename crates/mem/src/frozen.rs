//! RAM as it was at one moment, while it goes on.
//!
//! A copy of the process (clone(2) without `CLONE_VM`) has every page of that moment: the host copies those that either
//! writes to from then on. The copy runs nothing but a loop that sends what it is asked for through a socket, and ends when the socket
//! does: with whoever asks, or with its process. Or it pours all that it has into a file, and ends when that is done, whatever becomes of
//! the process that it is a copy of.
#![allow(unsafe_code)]

use crate::arrival::{Board, last_errno};
use crate::origin::PIECE;
use crate::{GuestMemory, PAGE_SIZE};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

/// Bytes of a question: offset and length.
const QUESTION: usize = 16;
/// Instead of an offset: pour, with what comes along.
const POUR: u64 = u64::MAX;
/// Most wishes that are granted before the next piece in order is poured.
const WISHES: usize = 16;

/// See [`GuestMemory::freeze`].
pub struct FrozenMemory {
    memory: GuestMemory,
    copy: libc::pid_t,
    socket: UnixStream,
    /// It ends by itself.
    pours: bool,
}

impl FrozenMemory {
    pub(crate) fn new(memory: GuestMemory) -> io::Result<FrozenMemory> {
        let (socket, other) = UnixStream::pair()?;
        memory.mapping().note_given()?;
        let (base, len) = (memory.mapping().base(), memory.mapping().len());
        // SAFETY: a copy of this process with this thread alone, as fork(2) makes it, but for what the C library does in
        // between: the copy calls none of it that has state.
        let copy = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        match copy {
            -1 => {
                let error = io::Error::last_os_error();
                memory.mapping().forget_given();
                Err(error)
            }
            // SAFETY: this is the copy, and `base` the mapping in it.
            0 => unsafe { serve(other.as_raw_fd(), base, len) },
            copy => Ok(FrozenMemory { memory, copy: copy as libc::pid_t, socket, pours: false }),
        }
    }

    /// Bytes of RAM in all regions.
    pub fn size(&self) -> u64 {
        self.memory.size()
    }

    /// The ranges that may hold something else than zeroes, in order, as (offset, bytes) counted through all regions. To be
    /// asked for once.
    pub fn in_use(&self) -> io::Result<Vec<(u64, u64)>> {
        if !self.memory.is_whole() {
            return Err(self.damaged());
        }
        // Pages that the RAM has taken since are zeroes in the copy.
        self.memory.mapping().in_use()
    }

    /// Copies out what is at `offset`, counted through all regions.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let len = data.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if !self.memory.passes(offset, len) {
            return Err(self.damaged());
        }
        self.socket.write_all(&question(offset, len))?;
        self.socket.read_exact(data)
    }

    fn damaged(&self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self.memory.damage().unwrap_or_default())
    }

    /// Has all that is in use poured into `file`, which is empty, while others use it already: `board` becomes the file by which they
    /// know what is there ([`crate::Arrival`]), and from `wanted`, the end for reading of a pipe, which must not block, comes what
    /// they need first. Gives the bytes that will be poured, zeroes among them; there is room for them. What is poured is poured to the
    /// end, also if this process ends before.
    pub fn pour(mut self, file: &File, board: &File, wanted: &File) -> io::Result<u64> {
        let (in_use, size) = (self.in_use()?, self.size());
        if !in_use.iter().all(|(offset, len)| self.memory.passes(*offset, *len)) {
            return Err(self.damaged());
        }
        file.set_len(size)?;
        Board::make(board, size, |piece| {
            // The first range that does not end before it.
            let index = in_use.partition_point(|(offset, len)| offset + len <= piece * PIECE);
            in_use.get(index).is_none_or(|(offset, _)| *offset >= (piece + 1) * PIECE)
        })?;
        let mut bytes = 0;
        for (offset, len) in &in_use {
            reserve(file, *offset, *len)?;
            bytes += len;
        }
        let files = [file.as_fd(), board.as_fd(), wanted.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        along.push(SendAncillaryMessage::ScmRights(&files));
        let question = question(POUR, size);
        sendmsg(&self.socket, &[IoSlice::new(&question)], &mut along, SendFlags::NOSIGNAL)?;
        self.pours = true;
        // Somebody must see that it has ended.
        std::thread::Builder::new().name("pour".into()).spawn(move || drop(self))?;
        Ok(bytes)
    }
}

fn question(offset: u64, len: u64) -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    let (first, second) = question.split_at_mut(QUESTION / 2);
    first.copy_from_slice(&offset.to_ne_bytes());
    second.copy_from_slice(&len.to_ne_bytes());
    question
}

/// Sees that the host has room for a range of a file, where it can say so.
fn reserve(file: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: a call on our own file; the numbers are below 2^63, for memory is.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, offset as i64, len as i64) } {
        -1 if last_errno() != libc::EOPNOTSUPP => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Drop for FrozenMemory {
    fn drop(&mut self) {
        self.memory.mapping().forget_given();
        // It ends with its socket.
        if !self.pours {
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
        // SAFETY: a child of ours that nobody else waits for.
        while unsafe { libc::waitpid(self.copy, std::ptr::null_mut(), 0) } == -1
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
}

/// All that the copy does.
///
/// # Safety
///
/// `base` must be `len` readable bytes. Only the one thread of a fresh copy of a process may call it: it closes all descriptors but
/// `socket`, and may use nothing that another thread could have held at the moment of copying, such as the heap.
unsafe fn serve(socket: libc::c_int, base: *const u8, len: usize) -> ! {
    // SAFETY: system calls on our own descriptors, memory and process; ranges are checked.
    unsafe {
        // Nobody's pipe, socket or lock stays open because of us.
        let socket = libc::dup2(socket, 0);
        libc::close_range(1, libc::c_uint::MAX, 0);
        loop {
            let mut question = [0u64; QUESTION / 8];
            let mut files = [0; 3];
            if !receive(socket, &mut question, &mut files) {
                libc::_exit(0);
            }
            let [offset, asked] = question;
            if offset == POUR {
                libc::_exit(pour(std::slice::from_raw_parts(base, len), files));
            }
            let (offset, asked) = (offset as usize, asked as usize);
            if offset > len || asked > len - offset {
                libc::_exit(0);
            }
            let mut sent = 0;
            while sent < asked {
                let from = base.add(offset + sent).cast();
                match libc::send(socket, from, asked - sent, libc::MSG_NOSIGNAL) {
                    more @ 1.. => sent += more as usize,
                    _ => libc::_exit(0),
                }
            }
        }
    }
}

/// A question, with the files that come along, if some do; false at the end.
///
/// # Safety
///
/// As for [`serve`].
unsafe fn receive(
    socket: libc::c_int,
    question: &mut [u64; QUESTION / 8],
    files: &mut [libc::c_int; 3],
) -> bool {
    let mut space = [0u64; 8];
    let mut parts = libc::iovec { iov_base: question.as_mut_ptr().cast(), iov_len: QUESTION };
    // SAFETY: all zeroes is an empty header. It points to what lives as long as the call, with its true sizes; a control message is
    // read as the C library's macros have it, and no further than it is long.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut parts;
        header.msg_iovlen = 1;
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&space);
        if libc::recvmsg(socket, &raw mut header, libc::MSG_WAITALL) != QUESTION as isize {
            return false;
        }
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        if !message.is_null()
            && (*message).cmsg_type == libc::SCM_RIGHTS
            && (*message).cmsg_len >= libc::CMSG_LEN(size_of_val(files) as u32) as usize
        {
            *files = libc::CMSG_DATA(message).cast::<[libc::c_int; 3]>().read_unaligned();
        }
    }
    true
}

/// Pours the RAM into the first file, tells by the second and listens to the third. Gives an exit status.
fn pour(ram: &[u8], [file, board, wanted]: [libc::c_int; 3]) -> libc::c_int {
    let Ok(board) = Board::map(board, ram.len() as u64, true) else { return 1 };
    let piece_at = |offset: u64| -> Result<(), libc::c_int> {
        let piece = offset / PIECE;
        if board.has(piece) {
            return Ok(());
        }
        let start = piece * PIECE;
        let rest = ram.get(start as usize..).unwrap_or_default();
        write_pages(file, rest.get(..PIECE as usize).unwrap_or(rest), start)?;
        board.set(piece);
        board.wake();
        Ok(())
    };
    let all = || -> Result<(), libc::c_int> {
        for start in (0..ram.len() as u64).step_by(PIECE as usize) {
            for offset in std::iter::from_fn(|| wish(wanted)).take(WISHES) {
                piece_at(offset)?;
            }
            piece_at(start)?;
        }
        Ok(())
    };
    match all() {
        Ok(()) => 0,
        Err(errno) => {
            board.fail(errno);
            1
        }
    }
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// What somebody needs next.
fn wish(wanted: libc::c_int) -> Option<u64> {
    let mut offset = [0; 8];
    // SAFETY: it reads into what is that long.
    let got = unsafe { libc::read(wanted, offset.as_mut_ptr().cast(), offset.len()) };
    (got == offset.len() as isize).then(|| u64::from_ne_bytes(offset))
}

/// Writes the pages that are not zero, neighbours together: what is not written is zero.
fn write_pages(file: libc::c_int, mut pages: &[u8], mut offset: u64) -> Result<(), libc::c_int> {
    let len_of = |pages: &[u8], zero| -> usize {
        let pages = pages.chunks(PAGE_SIZE as usize).take_while(|page| is_zero(page) == zero);
        pages.map(<[u8]>::len).sum()
    };
    while !pages.is_empty() {
        let (zeroes, rest) = pages.split_at(len_of(pages, true));
        let (data, rest) = rest.split_at(len_of(rest, false));
        write_all(file, data, offset + zeroes.len() as u64)?;
        offset += (zeroes.len() + data.len()) as u64;
        pages = rest;
    }
    Ok(())
}

fn write_all(file: libc::c_int, mut data: &[u8], mut offset: u64) -> Result<(), libc::c_int> {
    while !data.is_empty() {
        // SAFETY: it writes what is that long.
        let written = unsafe { libc::pwrite(file, data.as_ptr().cast(), data.len(), offset as i64) };
        match usize::try_from(written) {
            Ok(0) => return Err(libc::EIO),
            Ok(written) => {
                data = data.get(written..).unwrap_or_default();
                offset += written as u64;
            }
            Err(_) if last_errno() == libc::EINTR => {}
            Err(_) => return Err(last_errno()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arrival, Check, Gpa, SavedMemory};

    #[test]
    fn a_frozen_copy_stays_as_it_was() {
        let memory = GuestMemory::new(&[(Gpa(0), 8 << 20), (Gpa(1 << 32), 4 << 20)]).unwrap();
        memory.write(Gpa(0x5000), b"one").unwrap();
        memory.write(Gpa((1 << 32) + 0x3000), b"two").unwrap();
        memory.write(Gpa(0x60_0000), b"given").unwrap();
        let mut frozen = memory.freeze().unwrap();
        memory.write(Gpa(0x5000), b"new").unwrap();
        memory.write(Gpa(0x20_0000), b"new").unwrap();
        memory.give_back(Gpa(0x60_0000), 0x1000).unwrap();
        let ranges = frozen.in_use().unwrap();
        for (offset, text) in
            [(0x5000, b"one".to_vec()), (0x80_3000, b"two".to_vec()), (0x60_0000, b"given".to_vec())]
        {
            assert!(ranges.iter().any(|(at, len)| (*at..at + len).contains(&offset)), "{ranges:x?}");
            let mut data = vec![0; text.len()];
            frozen.read(offset, &mut data).unwrap();
            assert_eq!(data, text);
        }
        let mut large = vec![1; 4 << 20];
        frozen.read(0x1_0000, &mut large).unwrap();
        assert!(large.iter().all(|byte| *byte == 0));
        assert!(frozen.read((12 << 20) - 1, &mut [0; 2]).is_err());
        let copy = frozen.copy;
        drop(frozen);
        // SAFETY: asks only whether the process is there.
        assert_eq!(unsafe { libc::kill(copy, 0) }, -1);
        // Another one has the new content.
        let mut frozen = memory.freeze().unwrap();
        let mut data = [0; 5];
        frozen.read(0x60_0000, &mut data).unwrap();
        assert_eq!(data, [0; 5]);
    }

    /// A file without a name.
    fn file() -> File {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("viv-pour-{}-{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    /// A RAM that arrives in `file`, and the pipe's end for reading.
    fn arriving(file: &File, board: &File, size: u64) -> (GuestMemory, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        board.set_len(Board::len_for(size)).unwrap();
        file.set_len(size).unwrap();
        let arrival =
            Arrival::new(board, Some(File::from(std::os::fd::OwnedFd::from(writer))), size).unwrap();
        let saved = SavedMemory {
            file: file.try_clone().unwrap(),
            zeroes: arrival.zeroes().to_vec(),
            check: Some(Check::Arrival(arrival)),
            above: Vec::new(),
            read: Box::new(|_, _| Ok(())),
            first: Vec::new(),
        };
        (GuestMemory::of_saved(&[(Gpa(0), size)], saved).unwrap(), reader)
    }

    #[test]
    fn what_the_source_has_not_used_is_said_to_be_zeroes() {
        const SIZE: u64 = 32 << 20;
        let memory = GuestMemory::new(&[(Gpa(0), SIZE)]).unwrap();
        memory.write(Gpa(0x1000), &[1]).unwrap();
        memory.write(Gpa(0x180_0000), &[2]).unwrap();
        let (file, board) = (file(), file());
        let (reader, _writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let wanted = File::from(std::os::fd::OwnedFd::from(reader));
        memory.freeze().unwrap().pour(&file, &board, &wanted).unwrap();
        let arrival = Arrival::new(&board, None, SIZE).unwrap();
        let zeroes = arrival.zeroes().to_vec();
        let is_zero = |offset| zeroes.iter().any(|(at, len)| (*at..at + len).contains(&offset));
        assert!(!is_zero(0x1000) && !is_zero(0x180_0000) && is_zero(0x100_0000) && is_zero(SIZE - 1));
        // A board of a release before says nothing of them.
        board.set_len(Board::len_for(SIZE)).unwrap();
        assert_eq!(Arrival::new(&board, None, SIZE).unwrap().zeroes(), []);
        board.set_len(Board::len_for(SIZE) - 1).unwrap();
        assert!(Arrival::new(&board, None, SIZE).is_err());
    }

    #[test]
    fn what_is_poured_arrives_and_what_is_needed_comes_first() {
        const SIZE: u64 = 64 << 20;
        let memory = GuestMemory::new(&[(Gpa(0), SIZE)]).unwrap();
        for page in (0..SIZE).step_by(0x1000).filter(|page| page % 0x5000 != 0) {
            memory.write(Gpa(page + 8), &page.to_le_bytes()).unwrap();
        }
        let (file, board) = (file(), file());
        let (child, wanted) = arriving(&file, &board, SIZE);
        let wanted = File::from(std::os::fd::OwnedFd::from(wanted));
        // The last page is asked for before anything is there.
        let last = std::thread::scope(|scope| {
            let reader = child.clone();
            let last = scope.spawn(move || reader.read_array::<8>(Gpa(SIZE - 0x1000 + 8)).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!last.is_finished());
            let bytes = memory.freeze().unwrap().pour(&file, &board, &wanted).unwrap();
            assert!((SIZE / 5 * 4..=SIZE).contains(&bytes), "{bytes}");
            drop(wanted);
            // What happens to the source from now on is its own.
            memory.fill(Gpa(0), SIZE, 0xff).unwrap();
            last.join().unwrap()
        });
        assert_eq!(u64::from_le_bytes(last), SIZE - 0x1000);
        // A copy of what has not arrived as a whole waits for it.
        child.write(Gpa(0x7008), &[7]).unwrap();
        let mut grandchild = child.freeze().unwrap();
        assert!(!grandchild.in_use().unwrap().is_empty());
        for page in (0..SIZE).step_by(0x1000) {
            let expected = if page % 0x5000 == 0 { 0 } else { page };
            let mut number = [0; 8];
            grandchild.read(page + 8, &mut number).unwrap();
            let changed = if page == 0x7000 { (expected & !0xff) | 7 } else { expected };
            assert_eq!(u64::from_le_bytes(number), changed);
            assert_eq!(u64::from_le_bytes(child.read_array(Gpa(page + 8)).unwrap()), changed);
        }
        assert_eq!(child.damage(), None);
    }

    #[test]
    fn nobody_waits_for_what_never_comes() {
        let (file, board) = (file(), file());
        let (child, wanted) = arriving(&file, &board, 1 << 20);
        std::thread::scope(|scope| {
            let reader = child.clone();
            let read = scope.spawn(move || reader.read_array::<8>(Gpa(0x1_0000)));
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(wanted);
            assert!(read.join().unwrap().is_err());
        });
        assert!(child.damage().unwrap().contains("was killed"));
        assert!(child.freeze().unwrap().in_use().is_err());
    }

    #[test]
    fn what_takes_nothing_is_an_error() {
        let memory = GuestMemory::new(&[(Gpa(0), 1 << 20)]).unwrap();
        memory.write(Gpa(0), &[1]).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        assert!(memory.freeze().unwrap().pour(&full, &file(), &reader).is_err());
    }

    #[test]
    fn only_what_was_touched_is_in_use() {
        let memory = GuestMemory::new(&[(Gpa(0), 64 << 20)]).unwrap();
        memory.write(Gpa(0x100_0000), &[1]).unwrap();
        let ranges = memory.freeze().unwrap().in_use().unwrap();
        // A page, or a large page.
        assert!(matches!(ranges[..], [(0x100_0000, 0x1000 | 0x20_0000)]), "{ranges:x?}");
    }

    #[test]
    fn what_others_map_cannot_be_frozen() {
        assert!(GuestMemory::viewable(&[(Gpa(0), 0x1000)]).unwrap().freeze().is_err());
    }
}
