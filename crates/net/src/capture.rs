//! What passes a port, told to somebody who watches: a record for each packet on a socket that keeps records apart. Whoever
//! watches slows nobody down: what finds no room is lost, and counted.

use crate::offload::finish_checksum;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};
use viv_arch::virtio::net::HEADER_LEN;

/// Bytes before the frame in a record: time, records lost before, direction.
const RECORD_HEADER: usize = 16;
/// Most bytes of a record.
pub const RECORD_MAX: usize = RECORD_HEADER + crate::port::PACKET_MAX;

/// A packet that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When, nanoseconds since 1970.
    pub unix_ns: u64,
    /// How many were lost before it, since the last one.
    pub lost: u32,
    /// Whether the guest sent it; else it was sent to the guest.
    pub by_guest: bool,
    /// What passed, its checksum finished.
    pub frame: &'a [u8],
}

impl<'a> Record<'a> {
    /// A record as it was received.
    pub fn parse(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (header, frame) = bytes.split_first_chunk::<RECORD_HEADER>()?;
        let [t0, t1, t2, t3, t4, t5, t6, t7, l0, l1, l2, l3, by_guest, ..] = *header;
        Some(Record {
            unix_ns: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            lost: u32::from_le_bytes([l0, l1, l2, l3]),
            by_guest: by_guest != 0,
            frame,
        })
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub(crate) struct Capture {
    socket: OwnedFd,
    lost: u32,
    packet: Vec<u8>,
}

impl Capture {
    pub(crate) fn new(socket: OwnedFd) -> Capture {
        Capture { socket, lost: 0, packet: Vec::new() }
    }

    /// Tells of a packet; false if nobody watches any more.
    pub(crate) fn tell(&mut self, packet: &[u8], by_guest: bool) -> bool {
        self.packet.clear();
        self.packet.extend_from_slice(packet);
        // One whose header lies is shown as it is.
        finish_checksum(&mut self.packet);
        let Some(frame) = self.packet.get(HEADER_LEN..) else { return true };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
        let (lost, direction) = (self.lost.to_le_bytes(), [u8::from(by_guest), 0, 0, 0]);
        let parts = [&time[..], &lost, &direction, frame].map(IoSlice::new);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.socket, &parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(_) => self.lost = 0,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {
                self.lost = self.lost.saturating_add(1);
            }
            Err(_) => return false,
        }
        true
    }
}
