//! The file system device (virtio 1.3 §5.11): FUSE requests come off the queues as values, replies go back by tag.
//!
//! ```text
//!  guest ─ notify ─► Fs ─ take_requests() ─► a thread (bytes to the file server, its reply to the segments)
//!  guest ◄─ used ring ─ Fs::complete(rings, tag, written) ◄─┘
//! ```
//! What the bytes mean is the server's business: the device only bounds how many there are.

use super::in_flight::InFlight;
use super::{Chain, Rings, Segment, VirtioDevice, another_kind, cut, read_config_bytes};
use crate::{Unfit, Unsaved};
use viv_arch::saved::VirtioDeviceSaved;
use viv_arch::virtio::{device_type, fs as reg};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 512;
/// Request queues. One server answers them in order, so that more would wait for each other.
const REQUEST_QUEUES: u32 = 1;
/// Most bytes of a request: a write of 1 MiB with its headers, or two names of a path's length.
pub const REQUEST_MAX: u64 = (1 << 20) + 4096;
/// Most bytes of a reply; a chain with room for more gets no more.
pub const REPLY_MAX: u64 = (1 << 20) + 4096;
/// Requests in one notification: see [`super::blk`].
const BATCH_MAX: u32 = 1 << 16;

/// A request for the file server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsRequest {
    /// What [`Fs::complete`] wants back; never used twice.
    pub tag: u64,
    /// Where the request is: at most [`REQUEST_MAX`] bytes.
    pub readable: Vec<Segment>,
    /// Where the reply goes: at most [`REPLY_MAX`] bytes; none for a request without reply.
    pub writable: Vec<Segment>,
}

/// The file system device.
#[derive(Debug)]
pub struct Fs {
    config: [u8; reg::CONFIG_LEN],
    requests: Vec<FsRequest>,
    /// Queue and head of each chain that waits for its reply, by tag.
    in_flight: InFlight<(u16, u16)>,
}

impl Fs {
    /// A file system that the guest finds by `tag`, of which [`reg::TAG_LEN`] bytes count.
    pub fn new(tag: &str) -> Fs {
        let mut config = [0; reg::CONFIG_LEN];
        for (to, from) in config.iter_mut().take(reg::TAG_LEN).zip(tag.bytes()) {
            *to = from;
        }
        let queues = config.iter_mut().skip(reg::CONFIG_NUM_REQUEST_QUEUES);
        queues.zip(REQUEST_QUEUES.to_le_bytes()).for_each(|(to, from)| *to = from);
        Fs { config, requests: Vec::new(), in_flight: InFlight::default() }
    }

    /// Takes the requests that came in since the last call, in order.
    pub fn take_requests(&mut self) -> Vec<FsRequest> {
        std::mem::take(&mut self.requests)
    }

    /// Number of requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// `written` bytes of reply are in the request's segments. Every request that was taken is completed, also
    /// after a reset, which is complete only then.
    pub fn complete(&mut self, rings: &mut Rings<'_>, tag: u64, written: u32) {
        if let Some((queue, head)) = self.in_flight.finish(tag) {
            rings.push(queue, head, written);
        }
    }

    fn request(&mut self, rings: &mut Rings<'_>, queue: u16, chain: &Chain) {
        if chain.readable_len() > REQUEST_MAX {
            // More than any driver sends that has heard what the server takes (§2.1.2).
            rings.fail();
            return;
        }
        let tag = self.in_flight.add((queue, chain.head()));
        let writable = cut(&chain.writable, 0, REPLY_MAX);
        self.requests.push(FsRequest { tag, readable: chain.readable.clone(), writable });
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u16 {
        device_type::FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 1 + REQUEST_QUEUES as usize]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, rings: &mut Rings<'_>) {
        for queue in reg::QUEUE_HIPRIO..reg::QUEUE_REQUEST + REQUEST_QUEUES as u16 {
            self.notified(queue, rings);
        }
    }

    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>) {
        for _ in 0..BATCH_MAX {
            let most = usize::from(QUEUE_SIZE) * (1 + REQUEST_QUEUES as usize);
            if self.in_flight.len() > most || self.in_flight.piled_up(most) {
                // As on a disk: descriptors reused while we hold them, or resets that are not waited for.
                rings.fail();
                return;
            }
            let Some(chain) = rings.pop(queue) else { return };
            self.request(rings, queue, &chain);
        }
        rings.fail();
    }

    fn busy(&self) -> bool {
        self.in_flight.busy()
    }

    /// What the guest knows of the directory is its server's to save.
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        if self.in_flight.len() != 0 || self.in_flight.busy() {
            return Err(Unsaved::Busy);
        }
        Ok(VirtioDeviceSaved::Fs)
    }

    fn load(&mut self, saved: &VirtioDeviceSaved, _rings: &mut Rings<'_>) -> Result<(), Unfit> {
        match saved {
            VirtioDeviceSaved::Fs => Ok(()),
            _ => Err(another_kind()),
        }
    }

    fn reset(&mut self) {
        for request in std::mem::take(&mut self.requests) {
            self.in_flight.finish(request.tag);
        }
        self.in_flight.abandon();
    }
}
