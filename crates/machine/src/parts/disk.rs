//! The block device's host side: one thread for each queue moves data between disk and guest memory.
use super::{HostSide, Hosted, Work};
use crate::core::lock;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use viv_block::{Disk, SECTOR};
use viv_devices::virtio::Rings;
use viv_devices::virtio::blk::{Blk, BlkKind, BlkOutcome, BlkRequest};
use viv_mem::{Gpa, GuestMemory};

/// Bytes that are moved at once. A guest's request of that size has a segment for each of its pages; the disk sees one access.
const PIECE: usize = 128 << 10;

/// The sending end, in the device. Dropping a request's sender ends its thread.
pub(crate) struct DiskHost {
    queues: Mutex<Vec<Sender<BlkRequest>>>,
}

/// The receiving ends, until the threads start.
pub(crate) struct DiskThreads {
    queues: Vec<Receiver<BlkRequest>>,
    disk: Arc<dyn Disk>,
}

impl DiskHost {
    pub(crate) fn new(disk: Arc<dyn Disk>, queues: u16) -> (DiskHost, DiskThreads) {
        let (senders, receivers) = (0..queues.max(1)).map(|_| channel()).unzip();
        (DiskHost { queues: Mutex::new(senders) }, DiskThreads { queues: receivers, disk })
    }
}

impl HostSide<Blk> for DiskHost {
    fn serve(&self, device: &mut Blk, _rings: &mut Rings<'_>) {
        let requests = device.take_requests();
        if requests.is_empty() {
            return;
        }
        let queues = lock(&self.queues);
        for request in requests {
            if let Some(queue) = queues.get(usize::from(request.queue)) {
                // The thread is gone only when the machine has ended: nobody waits for the answer.
                let _ = queue.send(request);
            }
        }
    }
}

impl DiskThreads {
    /// The work of each thread: it goes on until `ended` says so, and looks after each request.
    pub(crate) fn work(
        self,
        device: &Arc<dyn Hosted<Blk>>,
        memory: &GuestMemory,
        ended: impl Fn() -> bool + Clone + Send + 'static,
    ) -> Vec<Work> {
        let disk = self.disk;
        let make = |queue: Receiver<BlkRequest>| {
            let (disk, memory, ended) = (disk.clone(), memory.clone(), ended.clone());
            let device = Arc::downgrade(device);
            Box::new(move || {
                let mut scratch = Scratch::default();
                while let Ok(request) = queue.recv() {
                    if ended() {
                        return;
                    }
                    let outcome = perform(&*disk, &memory, &request, &mut scratch);
                    let Some(device) = device.upgrade() else { return };
                    device.with_device(&mut |blk, rings| blk.complete(rings, request.tag, outcome));
                }
            }) as Work
        };
        self.queues.into_iter().map(make).collect()
    }
}

/// What a thread keeps from request to request.
#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    /// Where in guest memory they go, or come from, and how many.
    parts: Vec<(Gpa, usize)>,
}

fn perform(disk: &dyn Disk, memory: &GuestMemory, request: &BlkRequest, scratch: &mut Scratch) -> BlkOutcome {
    disk.admit(request.segments.iter().map(|segment| u64::from(segment.len)).sum());
    let offset = request.sector.saturating_mul(SECTOR);
    let done = match request.kind {
        BlkKind::Read => in_pieces(request, scratch, |at, bytes, parts| {
            disk.read(offset.saturating_add(at), bytes)?;
            each(bytes, parts, |gpa, part| memory.write(gpa, part).map_err(io::Error::other))
        }),
        BlkKind::Write { durable } => in_pieces(request, scratch, |at, bytes, parts| {
            each(bytes, parts, |gpa, part| memory.read(gpa, part).map_err(io::Error::other))?;
            disk.write(offset.saturating_add(at), bytes)
        })
        .and_then(|()| if durable { disk.flush() } else { Ok(()) }),
        BlkKind::Flush => disk.flush(),
        BlkKind::Discard { sectors } => disk.discard(offset, u64::from(sectors) * SECTOR),
        BlkKind::WriteZeroes { sectors, unmap } => {
            disk.write_zeroes(offset, u64::from(sectors) * SECTOR, unmap)
        }
    };
    match done {
        Ok(()) => BlkOutcome::Ok,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => BlkOutcome::Unsupported,
        Err(_) => BlkOutcome::IoError,
    }
}

/// Goes through the request in pieces of at most [`PIECE`] bytes, over the borders of its segments; `at` counts bytes from its
/// first sector.
fn in_pieces(
    request: &BlkRequest,
    scratch: &mut Scratch,
    mut act: impl FnMut(u64, &mut [u8], &[(Gpa, usize)]) -> io::Result<()>,
) -> io::Result<()> {
    let Scratch { bytes, parts } = scratch;
    let mut now = |at: u64, len: usize, parts: &[(Gpa, usize)]| {
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        act(at, bytes.get_mut(..len).unwrap_or_default(), parts)
    };
    parts.clear();
    let (mut at, mut len) = (0u64, 0usize);
    for segment in &request.segments {
        let mut done = 0u64;
        while done < u64::from(segment.len) {
            let part = (u64::from(segment.len) - done).min((PIECE - len) as u64);
            let gpa = segment.gpa.checked_add(done).ok_or(io::ErrorKind::InvalidInput)?;
            parts.push((gpa, part as usize));
            len += part as usize;
            done += part;
            if len == PIECE {
                now(at, len, parts)?;
                at += len as u64;
                len = 0;
                parts.clear();
            }
        }
    }
    if len > 0 { now(at, len, parts) } else { Ok(()) }
}

/// Gives each part of guest memory its bytes.
fn each(
    mut bytes: &mut [u8],
    parts: &[(Gpa, usize)],
    mut act: impl FnMut(Gpa, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    for (gpa, len) in parts {
        let (part, rest) = bytes.split_at_mut_checked(*len).ok_or(io::ErrorKind::InvalidInput)?;
        act(*gpa, part)?;
        bytes = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_block::MemoryDisk;
    use viv_devices::virtio::Segment;

    const SECTORS: u64 = 4096;

    fn request(kind: BlkKind, sector: u64, segments: &[(u64, usize)]) -> BlkRequest {
        let segments =
            segments.iter().map(|(gpa, len)| Segment { gpa: Gpa(*gpa), len: *len as u32 }).collect();
        BlkRequest { tag: 0, queue: 0, kind, sector, segments }
    }

    /// Whatever the segments of a request are, its bytes are one run of the disk, and it sees one access for each piece.
    #[test]
    fn segments_of_any_size_are_one_run_of_the_disk() {
        let memory = GuestMemory::new(&[(Gpa(0), 2 << 20)]).unwrap();
        let content: Vec<u8> = (0..SECTORS * SECTOR).map(|at| (at * 7 + at / 509) as u8).collect();
        let disk = MemoryDisk::new(content.clone());
        let mut scratch = Scratch::default();
        let cases: [&[(u64, usize)]; 6] = [
            &[(0x1000, 512)],
            &[(0x5000, 4096), (0x3000, 4096), (0x9000, 512), (0x8000, 1536)],
            &[(0, 0), (0x2_0000, PIECE), (0, 0)],
            &[(0x2_0000, PIECE - 512), (0x10_0000, 1024), (0, 0)],
            &[(0x1000, 512), (0x4_0000, 3 * PIECE + 512), (0x2000, 1024)],
            &[(0, 0)],
        ];
        for (index, segments) in cases.into_iter().enumerate() {
            let total: usize = segments.iter().map(|(_, len)| len).sum();
            let begin = (3 + index) * SECTOR as usize;
            let wanted = content.get(begin..begin + total).unwrap();
            let before = disk.counts();
            let read = request(BlkKind::Read, begin as u64 / SECTOR, segments);
            assert_eq!(perform(&disk, &memory, &read, &mut scratch), BlkOutcome::Ok);
            assert_eq!(disk.counts().reads - before.reads, total.div_ceil(PIECE) as u64, "{segments:?}");
            let mut found = Vec::new();
            for (gpa, len) in segments {
                let mut part = vec![0; *len];
                memory.read(Gpa(*gpa), &mut part).unwrap();
                found.extend(part);
            }
            assert!(found == wanted, "{segments:?}");
            let at = SECTORS / 2;
            let write = request(BlkKind::Write { durable: true }, at, segments);
            assert_eq!(perform(&disk, &memory, &write, &mut scratch), BlkOutcome::Ok);
            let at = (at * SECTOR) as usize;
            assert!(disk.content().get(at..at + total) == Some(wanted), "{segments:?}");
        }
    }

    #[test]
    fn what_lies_outside_of_memory_or_disk_is_an_error_and_changes_nothing() {
        let memory = GuestMemory::new(&[(Gpa(0), 1 << 20)]).unwrap();
        let disk = MemoryDisk::zeroed(SECTORS);
        memory.write(Gpa(0), &[1; 4096]).unwrap();
        let mut scratch = Scratch::default();
        for (sector, last) in
            [(0, 1 << 20), (0, u64::MAX - 100), (SECTORS - 1, 0x1000), (u64::MAX / 512, 0x1000)]
        {
            let write = request(BlkKind::Write { durable: false }, sector, &[(0, 512), (last, 512)]);
            assert_eq!(perform(&disk, &memory, &write, &mut scratch), BlkOutcome::IoError);
        }
        assert!(disk.content().iter().all(|byte| *byte == 0));
    }
}
