//! RAM as it was at one moment, while it goes on.
//!
//! A copy of the process (clone(2) without `CLONE_VM`) has every page of that moment: the host copies those that either
//! writes to from then on. The copy runs nothing but a loop that sends what it is asked for through a socket, and ends when the socket
//! does: with whoever asks, or with its process.
#![allow(unsafe_code)]

use crate::GuestMemory;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Bytes of a question: offset and length.
const QUESTION: usize = 16;

/// See [`GuestMemory::freeze`].
pub struct FrozenMemory {
    memory: GuestMemory,
    copy: libc::pid_t,
    socket: UnixStream,
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
            copy => Ok(FrozenMemory { memory, copy: copy as libc::pid_t, socket }),
        }
    }

    /// Bytes of RAM in all regions.
    pub fn size(&self) -> u64 {
        self.memory.size()
    }

    /// The ranges that may hold something else than zeroes, in order, as (offset, bytes) counted through all regions. To be
    /// asked for once.
    pub fn in_use(&self) -> io::Result<Vec<(u64, u64)>> {
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
            return Err(io::Error::new(io::ErrorKind::InvalidData, self.memory.damage().unwrap_or_default()));
        }
        let mut question = [0; QUESTION];
        let (first, second) = question.split_at_mut(QUESTION / 2);
        first.copy_from_slice(&offset.to_ne_bytes());
        second.copy_from_slice(&len.to_ne_bytes());
        self.socket.write_all(&question)?;
        self.socket.read_exact(data)
    }
}

impl Drop for FrozenMemory {
    fn drop(&mut self) {
        self.memory.mapping().forget_given();
        // It ends with its socket.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
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
            let got = libc::recv(socket, question.as_mut_ptr().cast(), QUESTION, libc::MSG_WAITALL);
            let [offset, asked] = question.map(|number| number as usize);
            if got != QUESTION as isize || offset > len || asked > len - offset {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gpa;

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
